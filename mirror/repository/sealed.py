"""A repository without an upstream. Content in the store is served whatever its age; all else is "not in this sealed
mirror".

    manifest by tag      the tag's record on disk, believed for two seconds ──> by digest
    manifest by digest   memory ──> disk
    blob                 the bytes, if a manifest of this repository names them
    tags, referrers      what the catalog has

This is a class of its own instead of a proxied repository with an upstream that always fails. In a proxied repository,
an upstream that is down leads to stale answers, limits to their age, and 503. Here a miss is final: the client gets it
at once, and the report of misses records it. A miss is not remembered, because another process may import the content
a moment later.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from mirror.errors import BlobDamaged, BlobUnknown, ManifestUnknown, NameUnknown, StoreError, UpstreamDenied
from mirror.fills.read_ahead import Fetching
from mirror.graph.damage import indexes_naming, manifest_to_serve, set_aside
from mirror.graph.manifests import has_blob
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.oci.reference import Reference, Repo
from mirror.oci.request import Kind
from mirror.policy.history import TagOverride
from mirror.policy.records import TagRecord
from mirror.ports import BlobInfo, BlobReader, Body
from mirror.repository.answers import ManifestAnswer, Outcome, StoredContent, UpstreamStream
from mirror.repository.grants import granted_by
from mirror.repository.shared import LOOK_EVERY, BlobStat, CachedTag, Listing, Shared, page_of


class SealedRepository:
    """One repository, served from the store alone. Cheap to make: all lasting state is in `Shared`."""

    def __init__(self, repo: Repo, shelf: Shared) -> None:
        self.repo = repo
        self._shelf = shelf

    async def prove(self, kind: Kind, reference: Reference | None) -> None:
        """Raises `UpstreamDenied`: without an upstream no caller's rights can be proven."""
        raise UpstreamDenied(f"{self.repo} is sealed: no caller's rights can be verified", upstream=self.repo.registry)

    # ----------------------------------------------------------------------------------------- manifests

    async def manifest(self, reference: Reference) -> ManifestAnswer:
        """Returns an answer with the manifest itself. Raises `ManifestUnknown`, `StoreError`."""
        tag = None if isinstance(reference, Digest) else await self._tag(reference)
        digest = reference if isinstance(reference, Digest) else tag.record.digest if tag else None
        found = await self._manifest(digest) if digest else None
        if found is None:
            if isinstance(reference, str):
                # the tag may move to a manifest that is here: the next request reads the record again
                self._shelf.tags.pop((self.repo, reference), None)
            self._shelf.misses.manifest(self.repo, reference)
            joint = "@" if isinstance(reference, Digest) else ":"
            raise ManifestUnknown(f"{self.repo}{joint}{reference} is not in this sealed mirror")
        return ManifestAnswer.of(found, Outcome.HIT, self.repo.registry, tag.kept if tag else None)

    async def resolve(self, reference: Reference) -> ManifestAnswer:
        """Returns the same answer as `manifest`: HEAD succeeds only if GET would. Raises like `manifest`."""
        return await self.manifest(reference)

    async def _tag(self, tag: str) -> CachedTag | None:
        hot = self._shelf.tags.get((self.repo, tag))
        if hot and hot.since <= self._shelf.now() < hot.until:
            return hot
        found = await self._shelf.once.run(("tag", self.repo, tag), lambda: asyncio.to_thread(self._look, tag))
        if found:
            self._shelf.tags[self.repo, tag] = found
        return found

    def _look(self, tag: str) -> CachedTag | None:
        """Blocking: returns the tag's answer, however old; None if the tag is not here. A freeze overrides the record.

        Raises `StoreError` if the freeze or the record cannot be read: an unreadable tag is not an absent one.

        The minimum age is ignored: the import has decided what is served.
        """
        now = self._shelf.now()
        freeze = self._shelf.histories.frozen(self.repo, tag)
        if freeze:
            record = TagRecord(tag, freeze.digest, freeze.media_type, freeze.size, 0.0)
            return CachedTag(record, Outcome.HIT, now, now + LOOK_EVERY, TagOverride.FROZEN)
        known = self._shelf.catalog.get_tag(self.repo, tag)
        return CachedTag(known, Outcome.HIT, now, now + LOOK_EVERY) if known else None

    async def _manifest(self, digest: Digest) -> Manifest | None:
        found = self._shelf.manifests.get((self.repo, digest))
        if found is None:
            found = await self._shelf.once.run(("manifest", self.repo, digest), lambda: self._load(digest))
            if found is None:
                return None
            self._shelf.manifests[self.repo, digest] = found
        self._shelf.touch(digest)
        return found

    async def _load(self, digest: Digest) -> Manifest | None:
        stored = await asyncio.to_thread(manifest_to_serve, self._shelf.store, self._shelf.catalog, self.repo, digest)
        if stored is None:
            return None
        # the manifest grants its blobs, which other processes may not know yet
        await self._shelf.grants.give(self.repo, granted_by(stored))
        await self._shelf.named(stored.manifest)
        return stored.manifest

    async def fetch_manifest(self, reference: Reference) -> ManifestAnswer:
        """Returns the manifest if it is on the disk. Nothing is fetched. A manifest that is only in memory, not on
        disk, counts as missing. Raises like `manifest`.
        """
        answer = await self.manifest(reference)
        if await self._load(answer.digest) is None:
            self._shelf.manifests.pop((self.repo, answer.digest), None)
            return await self.manifest(reference)
        return answer

    def fetch_ahead(self, answer: ManifestAnswer, by: Fetching | None = None) -> None:
        """Does nothing: a sealed repository never fetches."""

    async def settled(self) -> None:
        """Returns once all that was written before this call is durable. Raises `StoreError`."""
        await self._shelf.settled()

    # --------------------------------------------------------------------------------------------- blobs

    def holds(self, digest: Digest) -> bool:
        """True if the store has the content, from any repository. False if the disk cannot tell."""
        with suppress(StoreError):
            return has_blob(self._shelf.store, digest)
        return False

    def awaits(self, digest: Digest) -> bool:
        """Returns False: a sealed repository never fetches."""
        return False

    async def blob(self, digest: Digest) -> StoredContent:
        """Returns the blob. The caller closes it. Raises `BlobUnknown`, `StoreError`."""
        info, reader = await self._open(digest)
        return StoredContent(digest, info.size, reader, self._passing(digest), self._shelf.doubt)

    async def fetch(self, digest: Digest, progress: Callable[[int, int | None], None]) -> bool:
        """Returns False if the blob is here: nothing is fetched. Raises like `blob`."""
        info, reader = await self._open(digest)
        reader.close()
        progress(info.size, info.size)
        return False

    async def read(self, digest: Digest, limit: int) -> bytes:
        """Returns the whole content of a small blob. Raises like `fetch`, and `BlobDamaged` above `limit` bytes."""
        await self.fetch(digest, lambda received, size: None)
        return await asyncio.to_thread(self._shelf.store.read, digest, limit)

    async def indexes_naming(self, digest: Digest) -> list[Digest]:
        """Returns the stored indexes of this repository that name this manifest. Raises `StoreError`."""
        return await asyncio.to_thread(indexes_naming, self._shelf.store, self._shelf.catalog, self.repo, digest)

    async def stat_blob(self, digest: Digest) -> BlobStat:
        """Returns the answer to HEAD, which succeeds only if GET would. Raises like `blob`."""
        info, reader = await self._open(digest)
        reader.close()
        return BlobStat(info.size, Outcome.HIT, self.repo.registry)

    async def _open(self, digest: Digest) -> tuple[BlobInfo, BlobReader]:
        granted = await self._shelf.grants.size(self.repo, digest)
        if granted is None:
            raise self._missed(digest, named=False)
        try:
            info, reader = self._shelf.store.open(digest)
        except BlobUnknown:
            raise self._missed(digest, named=True) from None
        try:
            await self._shelf.check_whole(info, granted)
        except BlobDamaged:
            reader.close()
            await asyncio.to_thread(set_aside, self._shelf.store, digest)
            raise self._missed(digest, named=True) from None
        except BaseException:
            reader.close()
            raise
        self._shelf.touch(digest)
        return info, reader

    def _missed(self, digest: Digest, *, named: bool) -> BlobUnknown:
        self._shelf.misses.blob(self.repo, digest, named=named)
        return BlobUnknown(f"blob {digest} of {self.repo} is not in this sealed mirror")

    def _passing(self, digest: Digest) -> UpstreamStream:
        """Returns the fallback for a disk that fails in mid-body. It raises `StoreError`, for there is no upstream."""

        @asynccontextmanager
        async def nowhere(_start: int) -> AsyncIterator[Body]:
            raise StoreError(f"{digest} cannot be read, and a sealed mirror has no upstream")
            yield

        return UpstreamStream(digest, self.repo.registry, nowhere, self._shelf.executor)

    # ------------------------------------------------------------------------------------ tags, referrers

    async def tags(self, last: str, count: int) -> Listing:
        """Returns up to `count` stored tags after `last`. Raises `NameUnknown` if the store has nothing of this
        repository.
        """
        kept = await asyncio.to_thread(self._shelf.catalog.tags, self.repo)
        if not kept and not await asyncio.to_thread(self._has_manifests):
            raise self._unknown()
        return page_of(kept, last, count, Outcome.HIT, self.repo.registry)

    async def referrers(self, digest: Digest) -> Listing:
        """Returns descriptors of the stored manifests whose subject is `digest`. Raises `NameUnknown` like `tags`, and
        `StoreError`.
        """
        found = await self._shelf.referring.to(self.repo, digest)
        if found is None and not await asyncio.to_thread(self._shelf.catalog.tags, self.repo):
            raise self._unknown()
        return Listing(tuple(found or ()), Outcome.HIT, self.repo.registry)

    def _has_manifests(self) -> bool:
        """Blocking: true if the store has a manifest of this repository."""
        return any(True for _ in self._shelf.catalog.manifest_digests(self.repo))

    def _unknown(self) -> NameUnknown:
        self._shelf.misses.repository()
        return NameUnknown(f"{self.repo} is not in this sealed mirror")

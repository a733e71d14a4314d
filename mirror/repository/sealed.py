"""A repository without an upstream. Content in the store is served whatever its age; all else is "not in this sealed
mirror".

    manifest by tag      the tag's record on disk, believed for two seconds ──> by digest
    manifest by digest   memory ──> disk
    blob                 the bytes, if a manifest of this repository names them
    tags, referrers      what the catalog has

If the bucket keeps cached content, what the disk has lost comes from there: records and manifests are brought back to
the disk, blobs by a flight whose only source is the bucket. While the bucket does not answer, content that the disk
does not have is not absent: 503.

This is a class of its own instead of a proxied repository with an upstream that always fails. In a proxied repository,
an upstream that is down leads to stale answers, limits to their age, and 503. Here a miss is final: the client gets it
at once, and the report of misses records it. A miss is not remembered, because another process may import the content
a moment later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from mirror import telemetry
from mirror.aio.bounded_threads import in_thread
from mirror.errors import BlobDamaged, BlobUnknown, ManifestUnknown, NameUnknown, StoreError
from mirror.graph.tiered_contents import TieredContents
from mirror.intake.grants import Grants
from mirror.intake.intake import Intake
from mirror.intake.integrity import Integrity
from mirror.intake.tag_history import TagHistories
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.oci.reference import Reference
from mirror.oci.referrer_pages import ReferrersPage
from mirror.policy.hosted_records import BlobLink, LinkState
from mirror.ports import BlobInfo, BlobReader
from mirror.repository.answers import BlobContent, BlobStat, Listing, ManifestAnswer, Outcome, StoredContent, no_stream
from mirror.repository.caches import LOOK_EVERY, CachedTag, Caches
from mirror.repository.copied_blobs import CopiedBlobs
from mirror.repository.miss_report import Misses
from mirror.repository.standing.in_memory import InMemory
from mirror.repository.standing.lasting import Standing
from mirror.repository.standing.on_disk import OnDisk, opened_and_closed
from mirror.repository.stored import StoredRepository

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class KeptBlobs:
    """The cached blobs that a bucket keeps: `pulled` sends them, `contents` reads small ones."""

    pulled: CopiedBlobs
    contents: TieredContents


class SealedRepository:
    """One repository, served from the store alone. Cheap to make: it keeps no state of its own."""

    def __init__(
        self,
        stored: StoredRepository,
        histories: TagHistories,
        grants: Grants,
        caches: Caches,
        integrity: Integrity,
        intake: Intake,
        misses: Misses,
        executor: Executor,
        kept: KeptBlobs | None = None,
    ) -> None:
        """`executor` runs the threads that read blobs. `kept` has blobs that the disk lacks; None if nothing does."""
        self.repo = stored.repo
        self.has = stored.has
        self._stored = stored
        self._histories = histories
        self._grants = grants
        self._caches = caches
        self._integrity = integrity
        self._touch = intake.touch
        self._misses = misses
        self._executor = executor
        self._kept = kept

    def __repr__(self) -> str:
        return f"<SealedRepository {self.repo}>"

    # ----------------------------------------------------------------------------------------- manifests

    async def manifest(self, reference: Reference) -> ManifestAnswer:
        """Returns an answer with the manifest itself. Raises `ManifestUnknown`, `StoreError`."""
        tag = None if isinstance(reference, Digest) else await self._tag(reference)
        digest = reference if isinstance(reference, Digest) else tag.record.digest if tag else None
        manifest = await self._manifest(digest) if digest else None
        if manifest is None:
            if isinstance(reference, str):
                # the tag may move to a manifest that is here: the next request reads the record again
                self._caches.tags.pop((self.repo, reference), None)
            self._misses.manifest(self.repo, reference)
            joint = "@" if isinstance(reference, Digest) else ":"
            raise ManifestUnknown(f"{self.repo}{joint}{reference} is not in this sealed mirror")
        return ManifestAnswer.of(manifest, Outcome.HIT, self.repo.registry, tag.override if tag else None)

    async def resolve(self, reference: Reference) -> ManifestAnswer:
        """Returns the same answer as `manifest`: HEAD succeeds only if GET would. Raises like `manifest`."""
        return await self.manifest(reference)

    async def _tag(self, tag: str) -> CachedTag | None:
        cached = self._caches.tags.get((self.repo, tag))
        if cached and cached.since <= self._caches.now() < cached.until:
            return cached
        fresh = await self._caches.once.run(("tag", self.repo, tag), lambda: self._find_tag(tag))
        if fresh:
            self._caches.tags[self.repo, tag] = fresh
        return fresh

    async def _find_tag(self, tag: str) -> CachedTag | None:
        found = await in_thread(self._histories.threads, self._read_tag, tag)
        if found is None and await self._stored.restore_tag(tag):
            found = await in_thread(self._histories.threads, self._read_tag, tag)
        return found

    def _read_tag(self, tag: str) -> CachedTag | None:
        """Blocking: returns the tag's answer, however old; None if the tag is not here. A freeze overrides the record.

        Raises `StoreError` if the freeze or the record cannot be read: an unreadable tag is not an absent one.

        The minimum age is ignored: the import has decided what is served.
        """
        now = self._caches.now()
        if freeze := self._histories.frozen(self.repo, tag):
            return CachedTag.frozen(freeze, now)
        record = self._stored.catalog.get_tag(self.repo, tag)
        return CachedTag(record, Outcome.HIT, now, now + LOOK_EVERY) if record else None

    async def _manifest(self, digest: Digest) -> Manifest | None:
        manifest = self._caches.manifests.get((self.repo, digest))
        if manifest is None:
            key = "manifest", self.repo, digest
            manifest = await self._caches.once.run(key, lambda: self._stored.load(digest))
            if manifest is None:
                return None
            self._caches.manifests[self.repo, digest] = manifest
        self._touch(digest)
        return manifest

    def manifest_stands(self, reference: Reference, answer: ManifestAnswer, *, head: bool) -> Standing | None:
        """See `Lasting`."""
        return InMemory.of(self._caches, self.repo, reference, answer, self._touch, checked=False)

    # --------------------------------------------------------------------------------------------- blobs

    async def blob(self, digest: Digest) -> BlobContent:
        """Returns the blob. The caller closes it. Raises `BlobUnknown`, `StoreError`."""
        granted = await self._granted(digest)
        opened = await self._open(digest, granted)
        if opened is None:
            return await self._of_bucket(digest, granted, lambda kept, link: kept.pulled.content(self.repo, link))
        info, reader = opened
        stream = no_stream(digest, self.repo.registry, self._executor, "a sealed mirror has no upstream")
        return StoredContent(digest, info.size, reader, stream, self._integrity.recheck_later)

    async def stat_blob(self, digest: Digest) -> BlobStat:
        """Returns the answer to HEAD, which succeeds only if GET would. Raises like `blob`."""
        granted = await self._granted(digest)
        opened = await self._open(digest, granted)
        if opened is None:
            return await self._of_bucket(digest, granted, lambda kept, link: kept.pulled.stat(self.repo, link))
        info, reader = opened
        reader.close()
        return BlobStat(info.size, Outcome.HIT, self.repo.registry)

    def blob_stands(self, digest: Digest, answer: BlobStat) -> Standing | None:
        """See `Lasting`."""
        granted = self._grants.remembered(self.repo, digest)
        look = partial(opened_and_closed, self._stored.store.open)
        return OnDisk.of(digest, answer, granted, look, self._caches.now, self._touch)

    async def read(self, digest: Digest, limit: int) -> bytes:
        """Returns the whole content of a small blob. Raises like `blob`, and `BlobDamaged` above `limit` bytes."""
        await self.stat_blob(digest)
        if self._kept is None or self.has(digest):
            return await self._stored.read(digest, limit)
        return await in_thread(self._kept.pulled.threads, self._kept.contents.read, digest, limit)

    async def _granted(self, digest: Digest) -> int:
        """Returns the size with which this repository may serve the blob (-1: unknown). Raises `BlobUnknown`."""
        granted = await self._grants.size(self.repo, digest)
        # the manifest that names the blob may be one that the disk has lost
        if granted is None and await self._stored.restore_all():
            granted = await self._grants.size(self.repo, digest)
        if granted is None:
            raise self._missed(digest, named=False)
        return granted

    async def _open(self, digest: Digest, granted: int) -> tuple[BlobInfo, BlobReader] | None:
        """Opens the blob on the disk; None if it is not there."""
        try:
            info, reader = self._stored.store.open(digest)
        except BlobUnknown:
            return None
        try:
            await self._integrity.check(info, granted)
        except BlobDamaged:
            reader.close()
            await self._integrity.set_aside(digest)
            return None
        except BaseException:
            reader.close()
            raise
        self._touch(digest)
        return info, reader

    async def _of_bucket(self, digest: Digest, granted: int, ask: Callable[[KeptBlobs, BlobLink], Awaitable[T]]) -> T:
        """Returns the bucket's answer. Raises `BlobUnknown` if it does not have the blob either, `StoreError`."""
        if self._kept is not None and granted >= 0:
            with suppress(BlobUnknown):
                return await ask(self._kept, BlobLink(digest, granted, LinkState.LINKED, 0.0))
        raise self._missed(digest, named=True)

    def _missed(self, digest: Digest, *, named: bool) -> BlobUnknown:
        self._misses.blob(self.repo, digest, named=named)
        return BlobUnknown(f"blob {digest} of {self.repo} is not in this sealed mirror")

    # ------------------------------------------------------------------------------------ tags, referrers

    async def tags(self, last: str, count: int) -> Listing:
        """Returns up to `count` stored tags after `last`. Raises `NameUnknown` if the store has nothing of this
        repository.
        """
        await self._restore_all()
        tags = await self._stored.tags()
        if not tags and not await asyncio.to_thread(self._has_manifests):
            raise self._unknown()
        return Listing.page(tags, last, count, Outcome.HIT, self.repo.registry)

    async def referrers(self, digest: Digest, after: Digest | None = None) -> Listing:
        """Returns a page of the stored manifests whose subject is `digest`. Raises `NameUnknown` like `tags`, and
        `StoreError`.
        """
        await self._restore_all()
        page = await self._stored.referrers(digest, after)
        if page is None and not await self._stored.tags():
            raise self._unknown()
        page = page or ReferrersPage()
        return Listing(page.items, Outcome.HIT, self.repo.registry, page.more)

    async def _restore_all(self) -> None:
        """Brings back what the disk has lost of this repository. If it is not known whether there is more, the list has
        what is here. Raises `StoreError` if nothing is: an empty list would be wrong.
        """
        try:
            await self._stored.restore_all()
        except StoreError as error:
            if not await asyncio.to_thread(self._has_manifests):
                raise
            telemetry.log.warning("list without bucket", repository=str(self.repo), reason=str(error))

    def _has_manifests(self) -> bool:
        """Blocking: true if the store has a manifest of this repository."""
        return any(True for _ in self._stored.catalog.manifest_digests(self.repo))

    def _unknown(self) -> NameUnknown:
        self._misses.repository()
        return NameUnknown(f"{self.repo} is not in this sealed mirror")

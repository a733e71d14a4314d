"""A repository of an upstream registry: content in the store is served from there, the rest is fetched.

A manifest is fetched by digest, after its tag was resolved (`tag_answers.py`), and only if this repository does not
have it yet. A blob is served, from the store or from its flight, if this repository has a grant for it (`grants.py`).
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from dataclasses import replace
from typing import Any, Final, TypeVar

from mirror import telemetry
from mirror.aio.memo import MISSING
from mirror.caller import caller, for_caller
from mirror.errors import (
    BlobDamaged,
    BlobUnknown,
    BlobUnreadable,
    ManifestUnknown,
    StoreError,
    StoreFull,
    UpstreamNotFound,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from mirror.fills.flights import Vouch
from mirror.fills.read_ahead import Fetching
from mirror.graph.damage import doubt, indexes_naming, manifest_to_serve, set_aside
from mirror.graph.manifests import StoredManifest, embedded_blob, has_blob
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, Manifest, is_manifest_type, read_descriptor
from mirror.oci.reference import Reference, Repo
from mirror.oci.request import Kind
from mirror.policy.history import TagOverride
from mirror.policy.records import ManifestRecord, TagRecord
from mirror.policy.rules import RouteRule
from mirror.ports import BlobInfo, Body, Upstream
from mirror.repository.answers import (
    BlobContent,
    GrowingContent,
    ManifestAnswer,
    Outcome,
    StoredContent,
    UncachedContent,
    UpstreamStream,
)
from mirror.repository.grants import granted_by, named_by
from mirror.repository.shared import LOOK_EVERY, BlobStat, CachedTag, Listing, Shared, page_of
from mirror.repository.tag_answers import TagAnswers
from mirror.repository.tag_pages import LIST_FOR, TagPages

_Named = TypeVar("_Named", Descriptor, Manifest)

#: Seconds between two checks whether another process has published a blob that it has filled, and number of checks.
_LOOK_AGAIN: Final = 0.1
_PUBLISHING: Final = 1200
#: Manifests that upstream is asked for, one after the other, until it has one of them.
_PROOFS: Final = 3


class ProxiedRepository:
    """One repository of one upstream. Cheap to make: all lasting state is in `Shared`."""

    def __init__(self, repo: Repo, upstream: Upstream, rule: RouteRule, shelf: Shared) -> None:
        self.repo = repo
        self._upstream = upstream
        self._rule = rule
        self._shelf = shelf
        self._tags = TagAnswers(repo, upstream, rule, shelf)
        self._pages = TagPages(repo, upstream, shelf)

    # ----------------------------------------------------------------------------------------- manifests

    async def manifest(self, reference: Reference) -> ManifestAnswer:
        """Returns an answer with the manifest itself. Raises `ManifestUnknown`, `UpstreamError`."""
        if isinstance(reference, Digest):
            manifest, outcome = await self._manifest(reference)
            return self._answer(manifest, outcome)
        tag = await self._tags.answer(reference)
        try:
            manifest, fetched = await self._manifest(tag.record.digest, None if tag.kept else reference)
        except ManifestUnknown as error:
            if tag.kept:
                raise self._kept_but_gone(reference, tag, error) from error
            # the tag moved between HEAD and GET, or upstream has deleted the digest of the record
            tag = await self._tags.ask_again(reference)
            manifest, fetched = await self._manifest(tag.record.digest, reference)
        if fetched is not Outcome.HIT and tag.outcome is not Outcome.STALE:
            return self._answer(manifest, fetched, tag.kept)
        return self._answer(manifest, tag.outcome, tag.kept)

    async def resolve(self, reference: Reference) -> ManifestAnswer:
        """Returns the answer to HEAD of a manifest. Upstream is asked by HEAD at most. Raises like `manifest`."""
        if isinstance(reference, Digest):
            return await self._resolve_digest(reference)
        tag = await self._tags.answer(reference)
        if tag.kept:
            return await self._resolve_kept(reference, tag)
        record = tag.record
        self._shelf.touch(record.digest)
        if hot := self._shelf.manifests.get((self.repo, record.digest)):
            # upstream's HEAD may have given another size or type than the manifest has
            return self._answer(hot, tag.outcome)
        return ManifestAnswer(record.digest, record.media_type, record.size, None, tag.outcome, self._upstream.name)

    async def _resolve_kept(self, reference: str, tag: CachedTag) -> ManifestAnswer:
        """Returns the answer to HEAD of a frozen tag or one held back by the minimum age. Its digest may be gone here
        and upstream; then HEAD fails as GET would.
        """
        try:
            found = await self._resolve_digest(tag.record.digest, described=False)
        except ManifestUnknown as error:
            raise self._kept_but_gone(reference, tag, error) from error
        return replace(found, outcome=tag.outcome if found.outcome is Outcome.HIT else found.outcome, kept=tag.kept)

    def _kept_but_gone(self, reference: str, tag: CachedTag, error: ManifestUnknown) -> ManifestUnknown:
        why = "frozen at" if tag.kept is TagOverride.FROZEN else "held back by minimum_age at"
        return ManifestUnknown(
            f"{self.repo}:{reference} is {why} {tag.record.digest}, which is not here and cannot be fetched any more:"
            f" {error}"
        )

    async def _resolve_digest(self, digest: Digest, *, described: bool = True) -> ManifestAnswer:
        """Returns the answer to HEAD of a digest. If `described`, a manifest that is not here is answered as a stored
        index describes it, without asking whether upstream still has it.
        """
        manifest = self._shelf.manifests.get((self.repo, digest)) or await self._read_again(digest)
        if manifest:
            self._shelf.touch(digest)
            return self._answer(manifest, Outcome.HIT)
        await self._refuse_unknown(digest)
        if described and (named := await self._shelf.described.get(self.repo, digest)):
            return ManifestAnswer(digest, *named, None, Outcome.DESCRIBED, self._upstream.name)
        found = await self._shelf.once.run(
            ("resolve", self.repo, digest, caller()), lambda: self._by_digest(self._upstream.resolve, digest)
        )
        return ManifestAnswer(digest, found.media_type, found.size, None, Outcome.ASKED, self._upstream.name)

    async def _read_again(self, digest: Digest) -> Manifest | None:
        """Returns the manifest from the disk and keeps it in memory. Concurrent callers share one read, because reading
        a large manifest takes time.
        """

        async def read() -> Manifest | None:
            manifest = await self._load_stored(digest)
            if manifest:
                self._shelf.manifests[self.repo, digest] = manifest
            return manifest

        return await self._shelf.once.run(("read", self.repo, digest), read)

    async def _refuse_unknown(self, digest: Digest, tag: str | None = None) -> None:
        """Raises `ManifestUnknown` if upstream answered a moment ago that it has no such manifest.

        If a tag points to the digest (`tag`, or else the tag that was last resolved to it), only a remembered answer
        about both counts: asking for the tag may make an unknown digest known.
        """
        if tag is None and await self._shelf.is_unknown(self._key("manifest", digest)):
            tag = await self._tags.last_resolved_to(digest)
            if tag is None:
                raise ManifestUnknown(f"{self.repo} has no manifest {digest}")
        if tag is not None and await self._shelf.is_unknown(self._key(f"manifest {tag}", digest)):
            raise ManifestUnknown(f"{self.repo} has no manifest {digest}")

    async def _by_digest(
        self, ask: Callable[[str, Reference], Awaitable[_Named]], digest: Digest, tag: str | None = None
    ) -> _Named:
        """Returns upstream's answer for a digest. `ask` is upstream's `resolve` or `manifest`.

        Pull-through caches of clouds, and registries that build an image on demand, know a digest only after a GET for
        its tag. So before the digest is given up, a tag that points to it is asked for: `tag`, or else the tag that was
        last resolved to it. Raises `ManifestUnknown`, which is remembered for a while, and `UpstreamError`.
        """
        try:
            return await ask(self.repo.name, digest)
        except UpstreamNotFound as error:
            tag = tag or await self._tags.last_resolved_to(digest)
            with suppress(UpstreamNotFound):
                if tag and (named := await ask(self.repo.name, tag)).digest == digest:
                    return named
            await self._shelf.note_unknown(self._key("manifest", digest))
            if tag:
                await self._shelf.note_unknown(self._key(f"manifest {tag}", digest))
            raise ManifestUnknown(f"{self.repo} has no manifest {digest}") from error

    def _answer(self, manifest: Manifest, outcome: Outcome, kept: TagOverride | None = None) -> ManifestAnswer:
        return ManifestAnswer.of(manifest, outcome, self._upstream.name, kept)

    async def _manifest(self, digest: Digest, tag: str | None = None) -> tuple[Manifest, Outcome]:
        """Returns a manifest from memory, disk or upstream. `tag` (None: unknown) was just resolved to the digest."""
        self._shelf.touch(digest)
        hot = self._shelf.manifests.get((self.repo, digest))
        if hot:
            await self._put_back(hot)
            return hot, Outcome.HIT

        async def load() -> tuple[Manifest, Outcome]:
            with telemetry.span("manifest", mirror__repository=str(self.repo), mirror__digest=str(digest)) as span:
                loaded, outcome = await self._load(digest, tag)
                span.note(mirror__cache=outcome.value)
                return loaded, outcome

        loaded, outcome = await self._shelf.once.run(("manifest", self.repo, digest, tag, caller()), load)
        self._shelf.manifests[self.repo, digest] = loaded
        return loaded, outcome

    async def _put_back(self, manifest: Manifest) -> None:
        """Writes a manifest that is in memory back to the disk if it was evicted. Otherwise no manifest on the disk
        would name its blobs, and they would be evicted first. Checks the disk every few seconds at most.
        """
        now = self._shelf.now()
        looked = self._shelf.looked.get(manifest.digest)
        if looked is not None and 0 <= now - looked < LOOK_EVERY:
            return
        self._shelf.looked[manifest.digest] = now
        if not self._is_here(manifest.digest):
            await self._shelf.once.run(("put back", self.repo, manifest.digest), lambda: self._place(manifest))

    async def _place(self, manifest: Manifest) -> None:
        if info := await self._keep(manifest, await self._grants_of(manifest)):
            await self._shelf.landed(info)
            await self._shelf.named(manifest)

    async def _grants_of(self, manifest: Manifest) -> tuple[Digest, ...] | None:
        """Returns the grants for the record of a manifest that comes from memory: those of its record on the disk if
        there is one, otherwise the named content that this repository may serve already (None: all of it). Only a
        manifest from upstream proves all that it names, and this one may have been imported.
        """
        with suppress(StoreError):
            record = await asyncio.to_thread(self._shelf.catalog.get_manifest, self.repo, manifest.digest)
            if record:
                return record.grants
        named = named_by(manifest).keys() - {manifest.digest}
        proven = [digest for digest in sorted(named) if await self._granted_size(digest) is not None]
        return None if len(proven) == len(named) else tuple(proven)

    async def _load(self, digest: Digest, tag: str | None) -> tuple[Manifest, Outcome]:
        stored = await self._load_stored(digest)
        if stored:
            return stored, Outcome.HIT
        await self._refuse_unknown(digest, tag)
        async with self._shelf.alone(f"manifest {self.repo}@{digest}"):
            stored = await self._load_stored(digest)
            if stored:
                return stored, Outcome.HIT
            # another repository may have stored the bytes; only upstream can tell that this repository has them too
            manifest = await self._by_digest(self._upstream.manifest, digest, tag)
            info = await self._keep(manifest)
        # the lock is released: other processes find the manifest on the disk and need not wait for what follows
        if info:
            await self._shelf.landed(info)
            await self._shelf.named(manifest)
        await self._shelf.grants.give(self.repo, named_by(manifest))
        return manifest, Outcome.MISS if info else Outcome.BYPASS

    async def _load_stored(self, digest: Digest) -> Manifest | None:
        stored = await self._stored(digest)
        if stored is None:
            return None
        # the manifest grants its blobs, which other processes may not know yet
        await self._shelf.grants.give(self.repo, granted_by(stored))
        await self._shelf.named(stored.manifest)
        return stored.manifest

    async def _keep(self, manifest: Manifest, grants: tuple[Digest, ...] | None = None) -> BlobInfo | None:
        """Writes a manifest to the disk: first its bytes, then the link, so that no link points to missing bytes.

        Returns None if the store cannot take it. A signed manifest is not written either, because its digest is that of
        other bytes; it stays in memory alone. `grants`: see `ManifestRecord`.
        """
        if manifest.signed:
            return None
        since = self._shelf.histories.clocks.later()
        record = ManifestRecord(manifest.digest, manifest.media_type, len(manifest.content), since, grants)
        try:
            info = await self._shelf.write(self._shelf.store.put, manifest.digest, manifest.content)
            await self._shelf.write(self._shelf.catalog.put_manifest, self.repo, record)
        except StoreError as error:
            self._shelf.went_uncached(error, manifest.digest)
            return None
        self._shelf.settle()
        return info

    async def _stored(self, digest: Digest) -> StoredManifest | None:
        """Returns the manifest if this repository has it on the disk and its bytes are right. None also if the disk
        cannot be read: upstream is then asked, and its answer replaces the unreadable one.
        """
        try:
            return await asyncio.to_thread(manifest_to_serve, self._shelf.store, self._shelf.catalog, self.repo, digest)
        except BlobUnreadable:
            await asyncio.to_thread(doubt, self._shelf.store, digest)
            return None
        except StoreError as error:
            telemetry.log.warning(
                "manifest cannot be read", repository=str(self.repo), digest=str(digest), reason=str(error)
            )
            return None

    async def prove(self, kind: Kind, reference: Reference | None) -> None:
        """Returns if upstream, asked now, gives the content to the current caller. No remembered answer is used.

        Raises `UpstreamDenied`, `ManifestUnknown`, `BlobUnknown`, `UpstreamError`, and `StoreError`.
        """
        name = self.repo.name
        try:
            if kind is Kind.MANIFEST and reference is not None:
                await self._upstream.resolve(name, reference)
                return
            for record in await asyncio.to_thread(self._some_manifests):
                with suppress(UpstreamNotFound):
                    # HEAD costs nothing; a caller who may have one manifest may have all of the repository
                    await self._upstream.resolve(name, record.digest)
                    return
            if kind is Kind.BLOB and isinstance(reference, Digest):
                await self._upstream.blob_size(name, reference)
            else:
                async with aclosing(self._upstream.tags(name)) as batches:
                    await anext(batches)
        except UpstreamNotFound as error:
            unknown = BlobUnknown if kind is Kind.BLOB else ManifestUnknown
            raise unknown(f"{self.repo} has no {reference}") from error

    def _some_manifests(self) -> list[ManifestRecord]:
        """Blocking: returns the stored manifests that were fetched last. Raises `StoreError`."""
        records = self._shelf.catalog.manifests(self.repo)
        return heapq.nlargest(_PROOFS, records, key=lambda record: record.fetched_at)

    # --------------------------------------------------------------------------------------------- blobs

    async def blob(self, digest: Digest) -> BlobContent:
        """Returns the blob, from its first byte on. The caller closes it. Raises `BlobUnknown`, `UpstreamError`."""
        granted = await self._granted(digest)
        if granted is None:
            return await self._blob_without_grant(digest)
        try:
            info, reader = self._shelf.store.open(digest)
        except BlobUnreadable:
            return await self._instead(digest, granted)
        except (BlobUnknown, StoreError):
            return await self._fly(digest, granted)
        try:
            await self._shelf.check_whole(info, granted)
        except (BlobDamaged, BlobUnreadable):
            reader.close()
            return await self._instead(digest, granted)
        except StoreError as error:
            reader.close()
            return await self._around(digest, granted, error)
        except BaseException:
            reader.close()
            raise
        self._shelf.touch(digest)
        return StoredContent(digest, info.size, reader, self._passing(digest), self._shelf.doubt)

    async def _instead(self, digest: Digest, granted: int) -> BlobContent:
        """Sets a damaged blob aside and fetches it again; past the store if it cannot be set aside."""
        try:
            await asyncio.to_thread(set_aside, self._shelf.store, digest)
        except StoreError as refused:
            return await self._around(digest, granted, refused)
        return await self._fly(digest, granted)

    async def _around(self, digest: Digest, granted: int, error: StoreError) -> UncachedContent:
        self._shelf.went_uncached(error, digest)
        size = granted if granted >= 0 else await self._ask(digest)
        return UncachedContent(digest, size, self._passing(digest), str(error))

    async def fetch(self, digest: Digest, progress: Callable[[int, int | None], None]) -> bool:
        """Fetches the blob into the store. False if it was there already.

        `progress` is called with the number of bytes received so far and the blob's size (None: unknown). Raises like
        `blob`, and `StoreError` if the store cannot take it.
        """
        content = await self.blob(digest)
        try:
            if isinstance(content, UncachedContent):
                raise StoreFull(f"the store cannot take {digest}: {content.why}")
            position = 0
            progress(position, content.size)
            while (limit := await content.beyond(position)) > position:
                position = limit
                progress(position, content.size)
            if isinstance(content, GrowingContent):
                await self._stored_by_flight(content)
            return content.outcome is not Outcome.HIT
        finally:
            content.close()

    async def _stored_by_flight(self, content: GrowingContent) -> None:
        """Returns once the flight's blob is published in the store. Raises `StoreError` if it cannot be."""
        filled_here, stored = await content.settled(), content.stored
        for _ in range(_PUBLISHING):
            if self._is_here(content.digest):
                return
            if filled_here and stored:
                raise StoreError(f"dropped again as soon as it was stored: {content.digest}")
            if filled_here:
                raise StoreError(f"{content.digest} could not be stored")
            # another process has filled the blob and publishes it; if that process dies first, this one fills it
            await asyncio.sleep(_LOOK_AGAIN)
            again = await self.blob(content.digest)
            try:
                if isinstance(again, UncachedContent):
                    raise StoreFull(f"the store cannot take {content.digest}: {again.why}")
                filled_here = isinstance(again, GrowingContent) and await again.settled()
                stored = isinstance(again, GrowingContent) and again.stored
            finally:
                again.close()
        raise StoreError(f"the process that has filled {content.digest} does not publish it")

    async def fetch_manifest(self, reference: Reference) -> ManifestAnswer:
        """Returns the manifest once it and its tag are on the disk (durable after `settled`). A manifest that is only
        in memory, because it was evicted or could not be stored, is written now. Raises like `manifest`, and
        `StoreError` if the store cannot take it.
        """
        answer = await self.manifest(reference)
        if await self._stored(answer.digest) is None:
            manifest = answer.read()
            if manifest.signed:
                raise StoreError(
                    f"{self.repo}@{answer.digest} is a signed manifest of schema 1, which cannot be stored"
                )
            grants = await self._grants_of(manifest)
            await self._shelf.landed(await self._shelf.write(self._put_manifest, manifest, grants))
            await self._shelf.named(manifest)
        # the answer of a freeze or of the minimum age is on the disk already, and did not come from upstream
        if isinstance(reference, str) and answer.kept is None:
            hot = self._shelf.tags.get((self.repo, reference))
            await self._shelf.write(self._put_tag, reference, answer, hot.record if hot and not hot.kept else None)
        return answer

    def _put_manifest(self, manifest: Manifest, grants: tuple[Digest, ...] | None) -> BlobInfo:
        """Blocking: writes the manifest and its link. Raises `StoreError`."""
        since = self._shelf.histories.clocks.later()
        info = self._shelf.store.put(manifest.digest, manifest.content)
        record = ManifestRecord(manifest.digest, manifest.media_type, len(manifest.content), since, grants)
        self._shelf.catalog.put_manifest(self.repo, record)
        return info

    def _put_tag(self, tag: str, answer: ManifestAnswer, known: TagRecord | None) -> None:
        """Blocking: writes the tag's record if the disk has none, or one older than `known`. Raises `StoreError`."""
        kept = self._shelf.histories.known_tag(self.repo, tag)
        if kept is None or (known and known.fetched_at > kept.fetched_at):
            fresh = TagRecord(tag, answer.digest, answer.media_type, answer.size, self._shelf.now())
            self._shelf.histories.put_tag(self.repo, kept, known or fresh, self._rule.age)

    def fetch_ahead(self, answer: ManifestAnswer, by: Fetching | None = None) -> None:
        """Begins to fetch the blobs of a manifest that was sent to a client, before the client asks for them. Only if
        the manifest had to be fetched and the route has `prefetch`. Fetches through `by` if a guarded repository stands
        before this one. Returns at once.
        """
        # while the store is failing, each blob fetched ahead would be fetched twice
        if answer.outcome is Outcome.MISS and self._rule.prefetch and self._shelf.uncached_since is None:
            manifest = self._shelf.manifests.get((self.repo, answer.digest))
            if manifest and self._shelf.ahead:
                self._shelf.ahead.begin(by or self, manifest)

    async def settled(self) -> None:
        """Returns once all that was fetched before this call is durable. Raises `StoreError`."""
        await self._shelf.settled()

    def holds(self, digest: Digest) -> bool:
        """True if the store has the content, from any repository. False if the disk cannot tell. Fast enough for the
        event loop.
        """
        return self._is_here(digest)

    def awaits(self, digest: Digest) -> bool:
        """True if this process is fetching the blob, for any repository of this registry."""
        return self._shelf.flights.under_way(digest, self._upstream.name)

    async def read(self, digest: Digest, limit: int) -> bytes:
        """Returns the whole content of a small blob. Raises like `fetch`, and `BlobDamaged` above `limit` bytes."""
        await self.fetch(digest, lambda received, size: None)
        return await asyncio.to_thread(self._shelf.store.read, digest, limit)

    async def indexes_naming(self, digest: Digest) -> list[Digest]:
        """Returns the stored indexes of this repository that name this manifest. Raises `StoreError`."""
        return await asyncio.to_thread(indexes_naming, self._shelf.store, self._shelf.catalog, self.repo, digest)

    async def stat_blob(self, digest: Digest) -> BlobStat:
        """Returns the answer to HEAD. Starts no fill: a client that only looks must not cause a download. Raises like
        `blob`.
        """
        granted = await self._granted(digest)
        info = None
        if granted is not None:
            # an unreadable blob is answered as a miss, which costs no download
            with suppress(BlobUnknown, StoreError):
                info = self._shelf.store.stat(digest)
        if info and (granted == info.size or await self._is_sound(info)):
            self._shelf.touch(digest)
            return BlobStat(info.size, Outcome.HIT, self._upstream.name)
        if granted is not None and granted >= 0:
            return BlobStat(granted, Outcome.DESCRIBED, self._upstream.name)
        said = await self._shelf.memo.get(self._key("size", digest))
        if granted is None or said is MISSING:
            return BlobStat(await self._ask(digest), Outcome.ASKED, self._upstream.name)
        return BlobStat(said, Outcome.DESCRIBED, self._upstream.name)

    async def _granted(self, digest: Digest) -> int | None:
        """Returns the blob's size in bytes (-1: unknown); None if this repository has no grant for it.

        The size comes from a manifest, or from hashing the blob in this process. Neither the file's size nor upstream's
        is used: the file may be truncated, and upstream's answer may be wrong.
        """
        granted = await self._granted_size(digest)
        if granted is None or granted >= 0:
            return granted
        hashed = self._shelf.sound.get(digest)
        if hashed is None:
            return -1
        await self._shelf.grants.give(self.repo, {digest: hashed})
        return hashed

    async def _granted_size(self, digest: Digest) -> int | None:
        """Like `Grants.size`. None also if the grant cannot be read: upstream is then asked, as if there were none."""
        try:
            return await self._shelf.grants.size(self.repo, digest)
        except StoreError as error:
            telemetry.log.warning("grant cannot be read", repository=str(self.repo), reason=str(error))
            return None

    async def _blob_without_grant(self, digest: Digest) -> BlobContent:
        """Returns the blob after upstream has answered for it in this repository. A fill, if one is needed, is that
        question too.
        """
        if self._is_here(digest):
            await self._ask(digest)
            return await self.blob(digest)
        content = await self._fly(digest, -1)
        try:
            if await self._granted_size(digest) is None:
                # the flight was begun for another repository, which proves nothing for this one
                await self._ask(digest)
        except BaseException:
            content.close()
            raise
        return content

    async def _fly(self, digest: Digest, granted: int) -> BlobContent:
        key = self._key("blob", digest)
        if await self._shelf.is_unknown(key):
            raise BlobUnknown(f"{self.repo} has no blob {digest}")
        size = granted if granted >= 0 else None
        joined = self._shelf.flights.under_way(digest, self._upstream.name)

        def pull(start: int) -> AbstractAsyncContextManager[Body]:
            return self._upstream.blob(self.repo.name, digest, start)

        try:
            flight = await self._shelf.flights.join(
                digest,
                pull,
                upstream=self._upstream.name,
                size=size,
                vouch=self._vouch(digest) if size is None else None,
                on_behalf=self.repo,
            )
        except StoreError as error:
            return await self._around(digest, granted, error)
        except UpstreamNotFound as error:
            if granted >= 0 and await self._put_embedded(digest):
                return await self.blob(digest)
            await self._shelf.note_unknown(key)
            raise BlobUnknown(f"{self.repo} has no blob {digest}") from error
        outcome = Outcome.HIT if flight.landed else Outcome.JOINED if joined else Outcome.MISS
        return GrowingContent(flight, self._passing(digest), outcome)

    async def _put_embedded(self, digest: Digest) -> bool:
        """Stores the blob if a stored manifest of this repository embeds it: upstream need not have such a blob. True
        if it is in the store now.
        """
        with suppress(StoreError):
            content = await asyncio.to_thread(embedded_blob, self._shelf.store, self._shelf.catalog, self.repo, digest)
            if content is not None:
                await self._shelf.put_embedded(digest, content)
                return await asyncio.to_thread(has_blob, self._shelf.store, digest)
        return False

    def _vouch(self, digest: Digest) -> Vouch:
        async def vouch(size: int | None) -> None:
            await self._upstream_has(digest, size)

        return vouch

    async def _upstream_has(self, digest: Digest, size: int | None) -> None:
        """Grants the blob after upstream has answered for it. Upstream's size is remembered only for answers to HEAD:
        if later answers were compared with it, one wrong size would keep the blob from ever being fetched.
        """
        await self._shelf.grants.give(self.repo, {digest: -1})
        await self._shelf.memo.put(self._key("size", digest), size, LIST_FOR)

    def _key(self, kind: str, digest: Digest) -> str:
        """Returns the key under which facts about this repository's content are remembered."""
        return f"{kind} {self.repo}@{digest}"

    def _passing(self, digest: Digest) -> UpstreamStream:
        return UpstreamStream(
            digest,
            self._upstream.name,
            lambda start: self._upstream.blob(self.repo.name, digest, start),
            self._shelf.executor,
            telemetry.UPSTREAM_BYTES.labels(self._shelf.label(self.repo.registry)).inc,
        )

    async def _ask(self, digest: Digest) -> int | None:
        """Asks upstream by HEAD for the blob and grants it. Returns its size in bytes (None: unknown). Raises
        `BlobUnknown` if this repository does not have it, which is remembered for a while.
        """

        async def ask() -> int | None:
            try:
                size = await self._upstream.blob_size(self.repo.name, digest)
            except UpstreamNotFound as error:
                await self._shelf.note_unknown(key)
                raise BlobUnknown(f"{self.repo} has no blob {digest}") from error
            await self._upstream_has(digest, size)
            return size

        key = self._key("blob", digest)
        if await self._shelf.is_unknown(key):
            raise BlobUnknown(f"{self.repo} has no blob {digest}")
        return await self._shelf.once.run(("ask", self.repo, digest, caller()), ask)

    async def _is_sound(self, info: BlobInfo) -> bool:
        """Like `Shared.is_sound`, but False if the disk cannot be read."""
        with suppress(StoreError):
            return await self._shelf.is_sound(info)
        return False

    def _is_here(self, digest: Digest) -> bool:
        """True if the store has the content. False also if the disk cannot tell: upstream can then be asked."""
        with suppress(StoreError):
            return has_blob(self._shelf.store, digest)
        return False

    # ------------------------------------------------------------------------------------ tags, referrers

    async def tags(self, last: str, count: int) -> Listing:
        """Returns up to `count` of upstream's tags after `last`, sorted. While upstream is down, the tags that were
        pulled are listed instead. Raises `UpstreamError`, `StoreError`.
        """
        try:
            page = await self._pages.page(last, count)
        except (UpstreamUnavailable, UpstreamThrottled):
            kept = await asyncio.to_thread(self._shelf.catalog.tags, self.repo)
            if not kept:
                raise
            return page_of(kept, last, count, Outcome.STALE, self._upstream.name)
        return Listing(page.tags, Outcome.NONE, self._upstream.name, page.more)

    async def referrers(self, digest: Digest) -> Listing:
        """Returns descriptors of the manifests whose subject is `digest`. While upstream is down, those that were
        pulled are listed instead. Raises `UpstreamError`, `StoreError`.
        """

        async def ask() -> list[dict[str, Any]]:
            found = await self._upstream.referrers(self.repo.name, digest)
            # a descriptor whose media type is not a manifest's could not be pulled from here
            return [one.to_json() for one in found if not one.media_type or is_manifest_type(one.media_type)]

        try:
            key = for_caller(self._key("referrers", digest))
            found = await self._shelf.memo.share(key, ask, LIST_FOR)
        except (UpstreamUnavailable, UpstreamThrottled):
            kept = await self._shelf.referring.to(self.repo, digest)
            if not kept:
                # an empty list would claim that there are no referrers, such as signatures
                raise
            return Listing(tuple(kept), Outcome.STALE, self._upstream.name)
        return Listing(tuple(read_descriptor(item) for item in found), Outcome.NONE, self._upstream.name)

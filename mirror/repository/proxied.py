"""A repository of another registry, seen through the store: what is here is served from here, the rest is fetched.

A manifest is only fetched by digest, after its tag was resolved (`tag_answers.py`), and never if this repository has it
already. A blob is served if this repository may have it (`grants.py`), from the store or from its flight.
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
from mirror.repository.content import (
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

__all__ = ["ProxiedRepository"]

_Named = TypeVar("_Named", Descriptor, Manifest)

#: Seconds between two looks at whether another process has published what it has filled, and how many there are.
_LOOK_AGAIN: Final = 0.1
_PUBLISHING: Final = 1200
#: Manifests that upstream is asked for, one after the other, until it knows one.
_PROOFS: Final = 3


class ProxiedRepository:
    """One repository of one upstream. Cheap to make; everything that lasts is on the shelf."""

    def __init__(self, repo: Repo, upstream: Upstream, rule: RouteRule, shelf: Shared) -> None:
        self.repo = repo
        self._upstream = upstream
        self._rule = rule
        self._shelf = shelf
        self._tags = TagAnswers(repo, upstream, rule, shelf)
        self._pages = TagPages(repo, upstream, shelf)

    # ----------------------------------------------------------------------------------------- manifests

    async def manifest(self, reference: Reference) -> ManifestAnswer:
        """The manifest itself. Raises `ManifestUnknown`, `UpstreamError`."""
        if isinstance(reference, Digest):
            manifest, outcome = await self._manifest(reference)
            return self._answer(manifest, outcome)
        tag = await self._tags.answer(reference)
        try:
            manifest, fetched = await self._manifest(tag.record.digest, None if tag.kept else reference)
        except ManifestUnknown as error:
            if tag.kept:
                raise self._kept_but_gone(reference, tag, error) from error
            # the tag moved on between the HEAD and the GET, or the record is of a digest that upstream has dropped
            tag = await self._tags.ask_again(reference)
            manifest, fetched = await self._manifest(tag.record.digest, reference)
        if fetched is not Outcome.HIT and tag.outcome is not Outcome.STALE:
            return self._answer(manifest, fetched, tag.kept)
        return self._answer(manifest, tag.outcome, tag.kept)

    async def resolve(self, reference: Reference) -> ManifestAnswer:
        """What HEAD of a manifest tells; upstream is asked for no more than that. Raises like `manifest`."""
        if isinstance(reference, Digest):
            return await self._resolve_digest(reference)
        tag = await self._tags.answer(reference)
        if tag.kept:
            return await self._resolve_kept(reference, tag)
        record = tag.record
        self._shelf.touch(record.digest)
        if hot := self._shelf.manifests.get((self.repo, record.digest)):
            # upstream's HEAD may have said another size or type than the manifest has that GET gives
            return self._answer(hot, tag.outcome)
        return ManifestAnswer(record.digest, record.media_type, record.size, None, tag.outcome, self._upstream.name)

    async def _resolve_kept(self, reference: str, tag: CachedTag) -> ManifestAnswer:
        """An older digest may be gone here and upstream: HEAD says what GET would."""
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
        """`described`: what is not here is told as an index here describes it, whether or not upstream has it still."""
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
        """From the disk: by one reader however many ask, and remembered, because reading a large one is work."""

        async def read() -> Manifest | None:
            manifest = await self._load_stored(digest)
            if manifest:
                self._shelf.manifests.put((self.repo, digest), manifest)
            return manifest

        return await self._shelf.once.run(("read", self.repo, digest), read)

    async def _refuse_unknown(self, digest: Digest, tag: str | None = None) -> None:
        """Raises `ManifestUnknown` if upstream said a moment ago that it has no such manifest.

        That a digest was not known says nothing about a tag that points to it, which may make it known: `tag`, or else
        one that was resolved to it since.
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
        """What upstream has under a digest, by its `resolve` or `manifest`.

        Pull-through caches of clouds, and registries that make an image when it is asked for, know a digest only once
        its tag was asked for by GET. So a tag that points to it is asked for before the digest is given up: `tag`, or
        else the one that was resolved to it last. Raises `ManifestUnknown`, which is remembered for a while, and
        `UpstreamError`.
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
        """By digest, from memory, disk or upstream; `tag` was just resolved to it."""
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
        self._shelf.manifests.put((self.repo, digest), loaded)
        return loaded, outcome

    async def _put_back(self, manifest: Manifest) -> None:
        """What was evicted but is in memory gets its place on the disk again: else what it names would be nobody's."""
        now = self._shelf.now()
        looked = self._shelf.looked.get(manifest.digest)
        if looked is not None and 0 <= now - looked < LOOK_EVERY:
            return
        self._shelf.looked.put(manifest.digest, now)
        if not self._is_here(manifest.digest):
            await self._shelf.once.run(("put back", self.repo, manifest.digest), lambda: self._place(manifest))

    async def _place(self, manifest: Manifest) -> None:
        if info := await self._keep(manifest, await self._grants_of(manifest)):
            await self._shelf.landed(info)
            await self._shelf.named(manifest)

    async def _grants_of(self, manifest: Manifest) -> tuple[Digest, ...] | None:
        """What a manifest that comes from memory grants, for its record: what the record says that is there, otherwise
        what this repository may serve anyway. It need not have come from upstream, which proves all that it names.
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
            # its bytes may be here for another repository; only upstream can tell that they are this one's too
            manifest = await self._by_digest(self._upstream.manifest, digest, tag)
            info = await self._keep(manifest)
        # the others find it on the disk by now: what follows is no reason to keep them waiting
        if info:
            await self._shelf.landed(info)
            await self._shelf.named(manifest)
        await self._shelf.grants.give(self.repo, named_by(manifest))
        return manifest, Outcome.MISS if info else Outcome.BYPASS

    async def _load_stored(self, digest: Digest) -> Manifest | None:
        stored = await self._stored(digest)
        if stored is None:
            return None
        # whoever has the manifest may have its blobs: other processes may not know that yet
        await self._shelf.grants.give(self.repo, granted_by(stored))
        await self._shelf.named(stored.manifest)
        return stored.manifest

    async def _keep(self, manifest: Manifest, grants: tuple[Digest, ...] | None = None) -> BlobInfo | None:
        """Bytes first, then the link to them: a link without bytes would be a promise. None: the store cannot, or it is
        a signed manifest, whose digest names other bytes: it is kept in memory alone.

        `grants`: see `ManifestRecord`.
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
        """The manifest, if this repository has it and its bytes are right. None, too, if that cannot be told: upstream
        is asked then, and its answer is stored over what cannot be read.
        """
        try:
            return await asyncio.to_thread(manifest_to_serve, self._shelf.store, self._shelf.catalog, self.repo, digest)
        except BlobUnreadable:
            await asyncio.to_thread(doubt, self._shelf.store, digest)
            return None
        except StoreError as error:
            telemetry.log.warning(
                "could not read a manifest", repository=str(self.repo), digest=str(digest), reason=str(error)
            )
            return None

    async def prove(self, kind: Kind, reference: Reference | None) -> None:
        """Returns where upstream, asked now, gives what is meant to whoever we act for; nothing remembered counts.

        Raises `UpstreamDenied`, `ManifestUnknown`, `BlobUnknown`, `UpstreamError`.
        """
        name = self.repo.name
        try:
            if kind is Kind.MANIFEST and reference is not None:
                await self._upstream.resolve(name, reference)
                return
            for record in await asyncio.to_thread(self._some_manifests):
                with suppress(UpstreamNotFound):
                    # by HEAD, which costs nothing; who may have this may have all of the repository
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
        """Blocking: the latest that are here. Raises `StoreError`."""
        records = self._shelf.catalog.manifests(self.repo)
        return heapq.nlargest(_PROOFS, records, key=lambda record: record.fetched_at)

    # --------------------------------------------------------------------------------------------- blobs

    async def blob(self, digest: Digest) -> BlobContent:
        """The blob, from its first byte on. The caller closes it. Raises `BlobUnknown`, `UpstreamError`."""
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
        """Fetched again, around the store where what is wrong there cannot be moved out of the way."""
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
        """Have the blob here, with nobody to send it to; False: it was here already.

        `progress` is told how many bytes are here and how many there will be (None: unknown). Raises like `blob`, and
        `StoreError` where the store cannot take it.
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
        """Returns once it has its name in the store. Raises `StoreError` where it will not have one."""
        filled_here, stored = await content.settled(), content.stored
        for _ in range(_PUBLISHING):
            if self._is_here(content.digest):
                return
            if filled_here and stored:
                raise StoreError(f"dropped again as soon as it was stored: {content.digest}")
            if filled_here:
                raise StoreError(f"{content.digest} could not be stored")
            # another process has filled it and makes it durable; should that process end first, this one goes on
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
        """The manifest, on the disk when this returns, its tag too (durable after `settled`): an answer from memory may
        be all that is left of it, or all that could be had of it. Raises like `manifest`, and `StoreError` where the
        store cannot take it.
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
        # what a freeze or the minimum age says is on the disk, and is nothing that upstream has said
        if isinstance(reference, str) and answer.kept is None:
            hot = self._shelf.tags.get((self.repo, reference))
            await self._shelf.write(self._put_tag, reference, answer, hot.record if hot and not hot.kept else None)
        return answer

    def _put_manifest(self, manifest: Manifest, grants: tuple[Digest, ...] | None) -> BlobInfo:
        """Blocking. Raises `StoreError`."""
        since = self._shelf.histories.clocks.later()
        info = self._shelf.store.put(manifest.digest, manifest.content)
        record = ManifestRecord(manifest.digest, manifest.media_type, len(manifest.content), since, grants)
        self._shelf.catalog.put_manifest(self.repo, record)
        return info

    def _put_tag(self, tag: str, answer: ManifestAnswer, known: TagRecord | None) -> None:
        """Blocking: if the disk has no record of the tag, or an older one than is `known`. Raises `StoreError`."""
        kept = self._shelf.histories.known_tag(self.repo, tag)
        if kept is None or (known and known.fetched_at > kept.fetched_at):
            fresh = TagRecord(tag, answer.digest, answer.media_type, answer.size, self._shelf.now())
            self._shelf.histories.put_tag(self.repo, kept, known or fresh, self._rule.age)

    def fetch_ahead(self, answer: ManifestAnswer, by: Fetching | None = None) -> None:
        """A client was given this: if it had to be fetched, and the route says so, begin with its blobs, before they
        are asked for; through `by`, where something stands before this repository. Returns at once.
        """
        # while the store takes nothing, each blob fetched ahead would be fetched twice
        if answer.outcome is Outcome.MISS and self._rule.prefetch and self._shelf.uncached_since is None:
            manifest = self._shelf.manifests.get((self.repo, answer.digest))
            if manifest and self._shelf.ahead:
                self._shelf.ahead.begin(by or self, manifest)

    async def settled(self) -> None:
        """What was fetched so far outlives a power cut when this returns. Raises `StoreError`."""
        await self._shelf.settled()

    def holds(self, digest: Digest) -> bool:
        """Whether its bytes are here, for whichever repository. Quick enough for the event loop."""
        return self._is_here(digest)

    def awaits(self, digest: Digest) -> bool:
        """Whether this process has it under way, for whichever repository of this registry."""
        return self._shelf.flights.under_way(digest, self._upstream.name)

    async def read(self, digest: Digest, limit: int) -> bytes:
        """A small blob whole. Raises like `fetch`, and `BlobDamaged` above `limit` bytes."""
        await self.fetch(digest, lambda received, size: None)
        return await asyncio.to_thread(self._shelf.store.read, digest, limit)

    async def indexes_naming(self, digest: Digest) -> list[Digest]:
        """The indexes of this repository that are here and name this manifest."""
        return await asyncio.to_thread(indexes_naming, self._shelf.store, self._shelf.catalog, self.repo, digest)

    async def stat_blob(self, digest: Digest) -> BlobStat:
        """What HEAD tells. Starts no fill: a client that only looks must not cost a download."""
        granted = await self._granted(digest)
        info = None
        if granted is not None:
            # what cannot be told is told as a miss, which costs nobody a download
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
        """The size in bytes that the blob has, -1 if unknown; None: this repository may not serve it.

        A manifest says it, or this process has hashed the blob. What the index remembers is the size of a file, which
        may have been cut; upstream's word counts for nothing.
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
        """As `Grants.size`; None, too, if it cannot be told: upstream is asked then, as for what was never granted."""
        try:
            return await self._shelf.grants.size(self.repo, digest)
        except StoreError as error:
            telemetry.log.warning("could not read a grant", repository=str(self.repo), reason=str(error))
            return None

    async def _blob_without_grant(self, digest: Digest) -> BlobContent:
        """Upstream must answer for this blob in this repository, by the fill itself where there is one to be made."""
        if self._is_here(digest):
            await self._ask(digest)
            return await self.blob(digest)
        content = await self._fly(digest, -1)
        try:
            if await self._granted_size(digest) is None:
                # the flight was begun for another repository, whose rights are not ours
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
        """Whether a manifest here embeds the blob, which upstream then need not have, and it is in the store now."""
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
        """Upstream has answered for this blob: that is the right to it. Its size is only good enough for a HEAD: held
        against later answers, one wrong one would keep the blob from ever being fetched.
        """
        await self._shelf.grants.give(self.repo, {digest: -1})
        await self._shelf.memo.put(self._key("size", digest), size, LIST_FOR)

    def _key(self, kind: str, digest: Digest) -> str:
        """Under which something is remembered of what this repository has."""
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
        """Upstream's word that this repository has the blob; raises `BlobUnknown` where it has not."""

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
        """False, too, where the disk does not tell."""
        with suppress(StoreError):
            return await self._shelf.is_sound(info)
        return False

    def _is_here(self, digest: Digest) -> bool:
        """False, too, if that cannot be told: upstream has it."""
        with suppress(StoreError):
            return has_blob(self._shelf.store, digest)
        return False

    # ------------------------------------------------------------------------------------ tags, referrers

    async def tags(self, last: str, count: int) -> Listing:
        """A page of upstream's tags; while it is down, of those that were pulled.

        Raises `UpstreamError`, `StoreError`.
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
        """Descriptors of manifests whose subject is `digest`; while upstream is down, of those that were pulled."""

        async def ask() -> list[dict[str, Any]]:
            found = await self._upstream.referrers(self.repo.name, digest)
            # one that is called what no manifest is could not be pulled from here
            return [one.to_json() for one in found if not one.media_type or is_manifest_type(one.media_type)]

        try:
            key = for_caller(self._key("referrers", digest))
            found = await self._shelf.memo.share(key, ask, LIST_FOR)
        except (UpstreamUnavailable, UpstreamThrottled):
            kept = await self._shelf.referring.to(self.repo, digest)
            if not kept:
                # an empty list would say that there are none, such as no signatures
                raise
            return Listing(tuple(kept), Outcome.STALE, self._upstream.name)
        return Listing(tuple(read_descriptor(item) for item in found), Outcome.NONE, self._upstream.name)

"""The blobs of a proxied repository.

    granted, in the store ──> sent from there
    granted, small parts on a lazy route ──> `lazy_content.py`: sent before the whole is verified
    granted, or not known ──> its flight (`fills/flights.py`), which asks upstream, if granted perhaps the bucket before
    not granted, in the store ──> upstream is asked whether this repository has it ──> granted, sent from the store

A blob is served, from the store or from its flight, only if this repository has a grant for it (`intake/grants.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from mirror.aio.bounded_threads import in_thread
from mirror.aio.memo import MISSING
from mirror.caller import caller_mark
from mirror.errors import (
    BlobDamaged,
    BlobUnknown,
    BlobUnreadable,
    StoreError,
    StoreFull,
    UpstreamInvalid,
    UpstreamNotFound,
)
from mirror.fills.flight import InParts
from mirror.fills.flights import Flights
from mirror.fills.lazy_content import LazyContent
from mirror.fills.lazy_pulls import LazyPulls
from mirror.fills.part_fetches import Asker
from mirror.fills.sources import BlobSource, BlobSources, FromUpstream, Pull
from mirror.intake.grants import Grants
from mirror.intake.intake import Intake
from mirror.intake.integrity import Integrity
from mirror.oci.digest import Digest
from mirror.oci.span import Span
from mirror.policy.fills.fill_ahead import LEAST_REST
from mirror.policy.fills.lazy_ranges import LazyParts, lazy_parts, places_of
from mirror.policy.fills.span_blocks import BLOCK
from mirror.policy.rules import LazyRule
from mirror.ports import BlobInfo, BlobObject, BlobObjects, BlobParts, Upstream
from mirror.repository.answers import (
    BlobContent,
    BlobStat,
    GrowingContent,
    Outcome,
    PartialContent,
    StoredContent,
    UncachedContent,
    UpstreamStream,
)
from mirror.repository.caches import Caches
from mirror.repository.questions import Questions
from mirror.repository.standing.lasting import Standing
from mirror.repository.standing.on_disk import OnDisk
from mirror.repository.stored import StoredRepository
from mirror.repository.tag_pages import LIST_FOR

#: Seconds between two checks whether another process has published a blob that it has filled, and number of checks.
_LOOK_AGAIN: Final = 0.1
_PUBLISHING: Final = 1200
#: Bytes of a part for another replica: what one of its clients may ask for, and what lies between.
_LARGEST_PART: Final = 64 << 20


class LazyAnswer(LazyContent):
    """Parts of a blob as an answer: `PartialContent`."""

    @property
    def outcome(self) -> Outcome:
        """How it came about, so far."""
        if self.bypasses:
            return Outcome.BYPASS
        return Outcome.HIT if self.was_here else Outcome.MISS


@dataclass(frozen=True, slots=True)
class LazyRoute:
    """How small parts of the blobs of a repository are fetched, and when the whole follows them."""

    pulls: LazyPulls
    rule: LazyRule


class PeersOf(Protocol):
    """Makes the sources of a blob at other replicas."""

    def __call__(self, digest: Digest, size: int | None, *, part: bool = False) -> Sequence[BlobSource]:
        """Given the blob's size in bytes if a manifest says it. `part`: small parts are asked for, out of turn."""


@dataclass(frozen=True, slots=True)
class Transfers:
    """How blobs that the store does not have come to this process: into the store by flights, or past it by streams to
    one client.

    `executor` runs the threads that receive a stream; `received` counts the bytes that upstream has sent in streams.
    `nearer` makes the source of a blob that is asked before its upstream; None if there is none. `peers` makes those
    that are asked after it.
    `objects` says which objects of the bucket have blobs, for clients that are sent there; None if no client is. They
    are asked in `threads` (None: in those of the event loop). `lazy`: None if every part waits for the whole.
    """

    flights: Flights
    executor: Executor
    received: Callable[[int], None]
    nearer: Callable[[Digest], BlobSource] | None = None
    peers: PeersOf | None = None
    objects: BlobObjects | None = None
    threads: Executor | None = None
    lazy: LazyRoute | None = None

    def sources(
        self, digest: Digest, pull: Pull, granted: int, *, part: bool = False, parts: BlobParts | None = None
    ) -> BlobSources:
        """Returns where a blob comes from: `pull` asks its upstream. A nearer source is asked only if a manifest of the
        repository names the blob, with its size (`granted` >= 0): otherwise an answer of upstream is the right to it,
        or that of another replica, which has asked upstream for the same repository. `parts`: it may come over several
        connections.
        """
        is_named = granted >= 0
        nearer = [self.nearer(digest)] if self.nearer is not None and is_named else []
        if self.peers is not None:
            nearer += self.peers(digest, granted if is_named else None, part=part)
        return BlobSources(*nearer, FromUpstream(pull, parts))


class ProxiedBlobs:
    """The blobs of one repository of one upstream. Cheap to make: it keeps no state of its own."""

    def __init__(
        self,
        stored: StoredRepository,
        upstream: Upstream,
        grants: Grants,
        transfers: Transfers,
        caches: Caches,
        questions: Questions,
        integrity: Integrity,
        intake: Intake,
    ) -> None:
        self.repo = stored.repo
        self._stored = stored
        self._store = stored.store
        self._upstream = upstream
        self._grants = grants
        self._transfers = transfers
        self._flights = transfers.flights
        self._caches = caches
        self._questions = questions
        self._integrity = integrity
        self._intake = intake

    # ------------------------------------------------------------------------------------------------ GET, HEAD

    async def blob(self, digest: Digest) -> BlobContent:
        """Returns the blob, from its first byte on. The caller closes it. Raises `BlobUnknown`, `UpstreamError`."""
        granted = await self._granted(digest)
        if granted is None:
            return await self._without_grant(digest)
        try:
            info, reader = self._store.open(digest)
        except BlobUnreadable:
            return await self._refetch(digest, granted)
        except (BlobUnknown, StoreError):
            return await self._join_flight(digest, granted)
        try:
            await self._integrity.check(info, granted)
        except (BlobDamaged, BlobUnreadable):
            reader.close()
            return await self._refetch(digest, granted)
        except StoreError as error:
            reader.close()
            return await self._bypass_store(digest, granted, error)
        except BaseException:
            reader.close()
            raise
        self._intake.touch(digest)
        return StoredContent(digest, info.size, reader, self._stream(digest, granted), self._integrity.recheck_later)

    async def stat_blob(self, digest: Digest) -> BlobStat:
        """Returns the answer to HEAD. Starts no fill: a client that only looks must not cause a download. Raises like
        `blob`.
        """
        granted = await self._granted(digest)
        info = None
        if granted is not None:
            # an unreadable blob is answered as a miss, which costs no download
            with suppress(BlobUnknown, StoreError):
                info = self._store.stat(digest)
        if info and (granted == info.size or await self._is_sound(info)):
            self._intake.touch(digest)
            return BlobStat(info.size, Outcome.HIT, self._upstream.name)
        if granted is not None and granted >= 0:
            return BlobStat(granted, Outcome.DESCRIBED, self._upstream.name)
        remembered = await self._questions.memo.get(self._key("size", digest))
        if granted is None or remembered is MISSING:
            return BlobStat(await self._ask(digest), Outcome.ASKED, self._upstream.name)
        return BlobStat(remembered, Outcome.DESCRIBED, self._upstream.name)

    def blob_stands(self, digest: Digest, answer: BlobStat) -> Standing | None:
        """See `Lasting`."""
        granted = self._grants.remembered(self.repo, digest)
        return OnDisk.of(digest, answer, granted, self._store.stat, self._caches.now, self._intake.touch)

    async def blob_object(self, digest: Digest) -> BlobObject | None:
        """See `InBucket`."""
        objects = self._transfers.objects
        granted = None if objects is None else await self._granted(digest)
        if objects is None or granted is None or granted < 0:
            return None
        found = await in_thread(self._transfers.threads, objects.source, digest)
        return found if found is not None and found.size in (-1, granted) else None

    async def _is_sound(self, info: BlobInfo) -> bool:
        """Like `Integrity.verify`, but False if the disk cannot be read."""
        with suppress(StoreError):
            return await self._integrity.verify(info)
        return False

    async def _refetch(self, digest: Digest, granted: int) -> BlobContent:
        """Sets a damaged blob aside and fetches it again; past the store if it cannot be set aside."""
        try:
            await self._integrity.set_aside(digest)
        except StoreError as refused:
            return await self._bypass_store(digest, granted, refused)
        return await self._join_flight(digest, granted)

    async def _bypass_store(self, digest: Digest, granted: int, error: StoreError) -> UncachedContent:
        self._intake.health.failed(error, digest)
        size = granted if granted >= 0 else await self._ask(digest)
        return UncachedContent(digest, size, self._stream(digest, granted), str(error))

    def _stream(self, digest: Digest, granted: int) -> UpstreamStream:
        transfers = self._transfers
        return UpstreamStream(
            digest,
            self._upstream.name,
            lambda: self._sources(digest, granted),
            transfers.executor,
            transfers.received,
        )

    def _sources(self, digest: Digest, granted: int) -> BlobSources:
        pull = partial(self._upstream.blob, self.repo.name, digest)
        return self._transfers.sources(digest, pull, granted)

    # -------------------------------------------------------------------------------------------------- parts

    async def blob_parts(self, digest: Digest, header: str, by: str) -> PartialContent | None:
        """See `GivesParts`. Only for a blob that a manifest of this repository names with its size."""
        granted = -1 if self._transfers.lazy is None else await self._grants.known_size(self.repo, digest)
        wanted = None if granted is None else lazy_parts(header, granted, BLOCK)
        if wanted is None or granted is None or not await self._may_be_lazy(digest):
            return None
        return await self._open_parts(digest, granted, wanted, by)

    async def part_for_peer(self, digest: Digest, part: Span, size: int, by: str) -> PartialContent | None:
        """Returns a part for another replica, which has the right to it, and whose size is that of a manifest; None if
        it must be sent in the ordinary way. Raises like `blob_parts`.
        """
        if self._transfers.lazy is None or part.length > _LARGEST_PART or not await self._may_be_lazy(digest):
            return None
        return await self._open_parts(digest, size, LazyParts((part,), places_of([part], size, BLOCK)), by)

    async def resume_parts(self, digest: Digest) -> None:
        """Lets the whole of a blob follow of which parts were sent before a restart, if it is time."""
        lazy, granted = self._transfers.lazy, await self._grants.known_size(self.repo, digest)
        if lazy is not None and granted is not None and granted >= 0 and await self._may_be_lazy(digest):
            lazy.pulls.resume(digest, self._upstream.name, granted, lazy.rule, self._asker(digest, granted))

    async def _may_be_lazy(self, digest: Digest) -> bool:
        try:
            self._store.stat(digest)
        except BlobUnknown:
            return not await self._questions.is_unknown(self._key("blob", digest))
        except StoreError:
            return False
        return False

    async def _open_parts(self, digest: Digest, size: int, wanted: LazyParts, by: str) -> PartialContent | None:
        lazy, upstream = self._transfers.lazy, self._upstream.name
        if lazy is None:
            return None
        asker = self._asker(digest, size)
        content = LazyAnswer(
            digest,
            size,
            upstream,
            wanted,
            asker,
            self._transfers.executor,
            self._transfers.received,
            self._intake.health.failed,
        )
        try:
            await content.open(lazy.pulls.open(digest, upstream, size, lazy.rule, asker), by)
        except (UpstreamInvalid, UpstreamNotFound):
            # the ordinary way finds out what is wrong
            await content.aclose()
            return None
        except BaseException:
            await content.aclose()
            raise
        return content

    def _asker(self, digest: Digest, size: int) -> Asker:
        async def whole() -> None:
            await self.fetch(digest, lambda received, size: None)

        def sources() -> BlobSources:
            parts = self._upstream.parts(self.repo.name, digest)
            return self._transfers.sources(digest, parts.pull, size, part=True, parts=parts)

        return Asker(self.repo, sources, whole)

    def _flight_sources(self, digest: Digest, granted: int) -> BlobSources:
        """The same, for a flight: a large blob may come over several connections."""
        # a lazy blob comes piece by piece, in one turn at the upstream, also if one connection is all
        is_lazy = self._transfers.lazy is not None and granted >= 0
        if granted < LEAST_REST and not is_lazy:
            return self._sources(digest, granted)
        parts = self._upstream.parts(self.repo.name, digest)
        if parts.most <= 1 and not is_lazy:
            return self._sources(digest, granted)
        return self._transfers.sources(digest, parts.pull, granted, parts=parts)

    # -------------------------------------------------------------------------------------------------- fills

    async def _join_flight(self, digest: Digest, granted: int) -> BlobContent:
        key = self._key("blob", digest)
        if await self._questions.is_unknown(key):
            raise BlobUnknown(f"{self.repo} has no blob {digest}")
        size = granted if granted >= 0 else None
        joined = self.is_fetching(digest)

        async def upstream_has(size: int | None) -> None:
            await self._grant(digest, size)

        try:
            flight = await self._flights.join(
                digest,
                self._flight_sources(digest, granted),
                upstream=self._upstream.name,
                size=size,
                on_answer=upstream_has if size is None else None,
                on_behalf=self.repo,
                in_parts=InParts.NO if self._transfers.lazy is None else InParts.LAZY,
            )
        except StoreError as error:
            return await self._bypass_store(digest, granted, error)
        except UpstreamNotFound as error:
            if granted >= 0 and await self._put_embedded(digest):
                return await self.blob(digest)
            await self._questions.note_unknown(key)
            raise BlobUnknown(f"{self.repo} has no blob {digest}") from error
        outcome = Outcome.HIT if flight.landed else Outcome.JOINED if joined else Outcome.MISS
        return GrowingContent(flight, self._stream(digest, granted), outcome)

    async def _put_embedded(self, digest: Digest) -> bool:
        """Stores the blob if a stored manifest of this repository embeds it: upstream need not have such a blob. True
        if it is in the store now.
        """
        with suppress(StoreError):
            content = await self._stored.embedded(digest)
            if content is not None:
                await self._intake.put_embedded(digest, content)
                return self._stored.has(digest)
        return False

    def waits_for(self, digest: Digest) -> str:
        """Returns the member from which this process gets the blob now; empty if there is none."""
        source = self._flights.source_of(digest, self._upstream.name)
        return source.member if source is not None else ""

    async def offset(self, digest: Digest) -> int | None:
        """Returns how many bytes of the blob could be sent now, whichever process fetches it; None if none does and it
        is not here. Raises `StoreError`.
        """
        with suppress(BlobUnknown):
            return self._store.stat(digest).size
        offset = await self._flights.offset(digest, self._upstream.name)
        lazy = self._transfers.lazy
        if offset is None and lazy is not None and await lazy.pulls.are_coming(digest, self._upstream.name):
            return 0
        return offset

    def is_fetching(self, digest: Digest) -> bool:
        """True if this process is fetching the blob, for any repository of this registry."""
        return self._flights.under_way(digest, self._upstream.name)

    async def fetch(self, digest: Digest, progress: Callable[[int, int | None], None]) -> bool:
        """Fetches the blob into the store. False if it was there already.

        `progress` is called with the number of bytes received so far and the blob's size (None: unknown). Raises like
        `blob`, and `StoreError` if the store cannot take it.
        """
        content = await self.blob(digest)
        try:
            _expect_cached(content)
            position = 0
            progress(position, content.size)
            while (limit := await content.wait_past(position)) > position:
                position = limit
                progress(position, content.size)
            if isinstance(content, GrowingContent):
                await self._published(content)
            return content.outcome is not Outcome.HIT
        finally:
            content.close()

    async def _published(self, content: GrowingContent) -> None:
        """Returns once the flight's blob is published in the store. Raises `StoreError` if it cannot be."""
        filled_here, stored = await content.wait_for_end(), content.stored
        for _ in range(_PUBLISHING):
            if self._stored.has(content.digest):
                return
            if filled_here and stored:
                raise StoreError(f"dropped again as soon as it was stored: {content.digest}")
            if filled_here:
                raise StoreError(f"{content.digest} could not be stored")
            # another process has filled the blob and publishes it; if that process dies first, this one fills it
            await asyncio.sleep(_LOOK_AGAIN)
            again = await self.blob(content.digest)
            try:
                _expect_cached(again)
                filled_here = isinstance(again, GrowingContent) and await again.wait_for_end()
                stored = isinstance(again, GrowingContent) and again.stored
            finally:
                again.close()
        raise StoreError(f"the process that has filled {content.digest} does not publish it")

    async def read(self, digest: Digest, limit: int) -> bytes:
        """Returns the whole content of a small blob. Raises like `fetch`, and `BlobDamaged` above `limit` bytes."""
        await self.fetch(digest, lambda received, size: None)
        return await self._stored.read(digest, limit)

    # ------------------------------------------------------------------------------------------------- grants

    async def _granted(self, digest: Digest) -> int | None:
        """Returns the blob's size in bytes (-1: unknown); None if this repository has no grant for it.

        The size comes from a manifest, or from hashing the blob in this process. Neither the file's size nor upstream's
        is used: the file may be truncated, and upstream's answer may be wrong.
        """
        granted = await self._grants.known_size(self.repo, digest)
        if granted is None or granted >= 0:
            return granted
        hashed = self._integrity.verified_size(digest)
        if hashed is None:
            return -1
        await self._grants.give(self.repo, {digest: hashed})
        return hashed

    async def _without_grant(self, digest: Digest) -> BlobContent:
        """Returns the blob after upstream has answered for it in this repository. A fill, if one is needed, is that
        question too.
        """
        if self._stored.has(digest):
            await self._ask(digest)
            return await self.blob(digest)
        content = await self._join_flight(digest, -1)
        try:
            if await self._grants.known_size(self.repo, digest) is None:
                # the flight was begun for another repository, which proves nothing for this one
                await self._ask(digest)
        except BaseException:
            content.close()
            raise
        return content

    async def _ask(self, digest: Digest) -> int | None:
        """Asks upstream by HEAD for the blob and grants it. Returns its size in bytes (None: unknown). Raises
        `BlobUnknown` if this repository does not have it, which is remembered for a while.
        """

        async def ask() -> int | None:
            try:
                size = await self._upstream.blob_size(self.repo.name, digest)
            except UpstreamNotFound as error:
                await self._questions.note_unknown(key)
                raise BlobUnknown(f"{self.repo} has no blob {digest}") from error
            await self._grant(digest, size)
            return size

        key = self._key("blob", digest)
        if await self._questions.is_unknown(key):
            raise BlobUnknown(f"{self.repo} has no blob {digest}")
        return await self._caches.once.run(("ask", self.repo, digest, caller_mark()), ask)

    async def _grant(self, digest: Digest, size: int | None) -> None:
        """Grants the blob after upstream has answered for it. Upstream's size is remembered only for answers to HEAD:
        if later answers were compared with it, one wrong size would keep the blob from ever being fetched.
        """
        await self._grants.give(self.repo, {digest: -1})
        await self._questions.memo.put(self._key("size", digest), size, LIST_FOR)

    def _key(self, kind: str, digest: Digest) -> str:
        return f"{kind} {self.repo}@{digest}"


def _expect_cached(content: BlobContent) -> None:
    """Raises `StoreFull` if the store cannot take the blob."""
    if isinstance(content, UncachedContent):
        raise StoreFull(f"the store cannot take {content.digest}: {content.why}")

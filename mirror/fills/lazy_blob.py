"""One blob, not in the store, of which small parts are asked for: their bytes are fetched alone, and out of turn.

    enter() ──> open: the spans beside the growing file ──> leave(), idle ──> closed ──> enter() …
      │
      ├── want()  the places of a request ──> one fetch each ──┬── whole blocks, claimed ── upstream, or a replica
      │                                                        └── ended, perhaps with an error
      └── read()  bytes at a position ──> here, in the prefix, or in the store: a reader
                    ├── a fetch of this process brings them ────> waits for it; its error is the error of its asker
                    ├── another process, or a fill, brings them ─> looks every few milliseconds
                    └── nobody does ────────────────────────────> begins a fetch

A fetch belongs to this process and not to the request that began it: a client that leaves ends none. Claims keep
threads and processes apart, so each block comes once for the registry. Bytes that are read here are **not verified**.

Whoever has a claim waits for nothing but a source's answer and its bytes. The turn at the upstream is taken before the
claim, because a fill of the blob keeps its own while it waits for the claim; before a pause, or a turn at another
address of the upstream, the claim is given back. So others can fetch the bytes meanwhile, and whoever has other rights
does. Bytes that somebody else has claimed and that stand still are not waited for: `read` raises `StoreError`, and the
caller goes past the store.

    turn ── claim ── asked ── received ── given back ──> turn, the rest of the place …
      ^                └── no turn, broken off, throttled ──> given back ── pause ──┐
      └─────────────────────────────────────────────────────────────────────────────┘
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

from mirror import telemetry
from mirror.aio.singleflight import cancel_and_wait
from mirror.aio.threads import run_uninterrupted
from mirror.caller import caller_mark
from mirror.errors import (
    AskAgain,
    BlobUnknown,
    MirrorError,
    StoreError,
    UpstreamInvalid,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from mirror.fills.looks import LOOK_LAST, Looks
from mirror.fills.sources import BlobSources, SourceLeft, count_received
from mirror.oci.digest import Digest
from mirror.oci.span import Span
from mirror.policy.fills.lazy_ranges import fetch_from
from mirror.policy.fills.span_blocks import BLOCK
from mirror.policy.send_limit import Tries, next_try
from mirror.ports import BlobReader, BlobStore, Body, Claim, Prefix, SaysStop, SaysThrottled, Spans

T = TypeVar("T")

#: Fetches of one request at the same time.
_AT_ONCE: Final = 4
#: Seconds between two looks while a fetch of this process brings nothing: something else may.
_LOOK_AGAIN: Final = 0.25
#: Seconds without a new block after which somebody else's fetch is not waited for.
_STUCK: Final = 10.0
#: Seconds for which an upstream that ignores ranges, and a blob of which parts were wrong, are not asked for parts.
AVOIDED: Final = 600.0
#: Fetches that one reader begins for a byte: others may fail by the rights of somebody else.
_MOST_BEGUN: Final = 8
#: Bytes around a position in which a new block is a sign that somebody else's fetch moves.
_AROUND: Final = 64 << 20


class NotInParts(UpstreamInvalid):
    """The blob cannot be had in parts: the ordinary way has to answer."""


class RangesIgnored(NotInParts):
    """Upstream sends more than the part that it was asked for."""


class PartsThrottled(NotInParts):
    """Upstream has refused the part because it wants fewer requests, and sends the whole; `seconds` is for how long it
    wants that.
    """

    def __init__(self, message: str, *, upstream: str, seconds: float) -> None:
        super().__init__(message, upstream=upstream)
        self.seconds = seconds


class SizeDisputed(NotInParts):
    """Upstream says another size than the manifest."""


class PartRoom(Protocol):
    """Room for parts in the store."""

    async def take(self, size: int) -> None:
        """Makes sure that `size` more bytes may be stored. Does not wait long. Raises `StoreFull`."""


@dataclass(frozen=True, slots=True)
class Asker:
    """For whom parts are fetched: by whose rights upstream is asked, and with whose credentials.

    `sources` makes the sources of one fetch, `whole` fetches the whole blob into the store; it raises `MirrorError`.
    """

    repo: object
    sources: Callable[[], BlobSources] = field(repr=False)
    whole: Callable[[], Awaitable[object]] = field(repr=False)
    caller: str = field(default_factory=caller_mark)
    context: Context = field(default_factory=copy_context, repr=False)

    def is_like(self, other: Asker) -> bool:
        """True if what upstream answers to one holds for the other."""
        return (self.repo, self.caller) == (other.repo, other.caller)


@dataclass(frozen=True, slots=True)
class PartTools:
    """What all lazy blobs of one process use.

    `executor` runs the threads that receive. `turns` limits the fetches of this process. `avoid` is called if parts of
    a blob cannot be had. `label` returns the configured upstream that a registry belongs to. A fetch of a blob of which
    bytes have come waits `patience` seconds, measured by `clock`, for an upstream that does not answer.
    """

    store: BlobStore
    executor: Executor
    room: PartRoom
    turns: asyncio.Semaphore
    avoid: Callable[[LazyBlob, NotInParts], None]
    label: Callable[[str], str] = str
    patience: float = 30.0
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random


@dataclass(frozen=True, slots=True)
class ReadableNow:
    """Bytes up to `stop` that can be read now. The caller closes the reader."""

    reader: BlobReader
    stop: int


@dataclass(frozen=True, slots=True)
class _Awaited:
    """Bytes that are not here. `comes`: somebody else brings them; `seen` differs once anything has come."""

    comes: bool
    seen: tuple[int, int]


class _Fetch:
    """The bytes of one place, on the way for `asker`."""

    def __init__(self, place: Span, asker: Asker) -> None:
        self.place = place
        self.asker = asker
        self.error: MirrorError | None = None
        #: True while it waits to ask again.
        self.pauses = False

    def __repr__(self) -> str:
        return f"<_Fetch {self.place.start}-{self.place.stop} {self.error or ''}>"

    def covers(self, position: int) -> bool:
        return self.place.start <= position < self.place.stop

    def is_awaited_by(self, asker: Asker) -> bool:
        """False if the asker should rather fetch the bytes: the pause may be one for other rights or credentials."""
        return not self.pauses or self.asker.is_like(asker)


class LazyBlob:
    """See the head of this file. One in each process for a digest and the registry that sends it."""

    def __init__(self, digest: Digest, upstream: str, size: int, tools: PartTools) -> None:
        """`size` is that of the whole blob in bytes, as a manifest says it; `upstream` the registry's name."""
        self.digest: Final = digest
        self.upstream: Final = upstream
        self.size: Final = size
        #: Requests that read parts now.
        self.users = 0
        #: When a part was asked for last, by the clock of the tools.
        self.asked_at = tools.clock()
        #: What has given bytes besides the upstream, by its name and address. There may be a fetch for each block, and
        #: to accuse a bucket costs a look at the whole: one fetch of each source is remembered.
        self._givers: dict[tuple[str, str], BlobSources] = {}
        self._tools = tools
        self._spans: Spans | None = None
        #: Those before them, which were dropped.
        self._left_open: list[Spans] = []
        self._opening = asyncio.Lock()
        self._fetches: list[_Fetch] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._woken = False
        #: What upstream says about the size, if that is not the manifest's.
        self._disputed = ""
        #: True once bytes have come: upstream is waited for then if it breaks off.
        self._answered = False
        #: When the prefix was looked at, how long it was, and its rate in bytes per second.
        self._prefix_seen: tuple[float, int] | None = None
        self._rate = 0.0

    def __repr__(self) -> str:
        return f"<LazyBlob {str(self.digest)[:19]}… {self.users} users, {len(self._fetches)} fetches>"

    @property
    def is_idle(self) -> bool:
        """True if nobody reads parts, and none is fetched."""
        return not self.users and not self._tasks

    @property
    def is_fetching(self) -> bool:
        """True if this process fetches parts now."""
        return bool(self._fetches)

    # ------------------------------------------------------------------------------------------------------- its files

    async def enter(self) -> None:
        """Opens the files. The caller must `leave`. Raises `NotInParts` if the blob is in the store meanwhile, or
        cannot have spans; `StoreError`.
        """
        self.users += 1
        self.asked_at = self._tools.clock()
        try:
            async with self._opening:
                await self._in_thread(self._open)
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """The counterpart of `enter`."""
        self.users -= 1
        self.asked_at = self._tools.clock()
        if not self.users and self._spans is not None:
            with suppress(StoreError):
                self._spans.use(used=False)

    def _open(self) -> None:
        if self._spans is not None and self._spans.in_place:
            self._spans.use(used=True)
            return
        self._let_go()
        store = self._tools.store
        self._refuse_avoided()
        there = store.spans(self.digest, self.upstream, None)
        if there is not None and there.size != self.size:
            # two manifests disagree: the digest of the whole decides, and nothing of the other is dropped for this one
            there.close()
            raise NotInParts(f"parts of {self.digest} are here for {there.size} bytes", upstream=self.upstream)
        spans = there or store.spans(self.digest, self.upstream, self.size)
        if spans is None:
            raise NotInParts(f"no parts of {self.digest} can be stored", upstream=self.upstream)
        self._spans = spans
        # again: another process may have found out, and dropped the spans before these were made
        self._refuse_avoided()
        # in this order: a commit drops the spans after the blob has its final name
        with suppress(BlobUnknown, StoreError):
            store.stat(self.digest)
            # what was sent of them is compared with the blob first, by the sweep
            if not spans.served():
                spans.drop()
            self._let_go()
            raise NotInParts(f"{self.digest} was published meanwhile", upstream=self.upstream)
        spans.use(used=True)

    def _refuse_avoided(self) -> None:
        """Raises `NotInParts` if any process of this store has found that parts of the blob must not be asked for."""
        if self._tools.store.avoids_parts(self.upstream, self.digest, AVOIDED):
            self._let_go()
            raise NotInParts(f"{self.digest} is not had in parts now", upstream=self.upstream)

    def close(self) -> None:
        """Closes the files of an idle blob. Repeatable; `enter` opens them again."""
        if self.is_idle:
            self._close()

    def _let_go(self) -> None:
        """Nobody begins to use these files any more. They are closed once nobody uses the blob: a thread may be looking
        at them, and the descriptors of closed files become those of others.
        """
        if self._spans is not None:
            self._left_open.append(self._spans)
        self._spans = None

    def _close(self) -> None:
        self._let_go()
        left_open, self._left_open = self._left_open, []
        for spans in left_open:
            spans.close()

    async def aclose(self) -> None:
        """Ends all fetches: whole blocks stay. Repeatable."""
        try:
            await cancel_and_wait(*self._tasks)
        finally:
            self._close()

    # --------------------------------------------------------------------------------------------------------- reading

    async def want(self, places: Iterable[Span], asker: Asker) -> bool:
        """Begins to fetch what is not here of these places (whole blocks). False if all of it is here."""
        missing = await self._in_thread(self._missing, tuple(places))
        if missing:
            self._begin(missing, asker)
        return bool(missing)

    async def read(self, position: int, stop: int, asker: Asker) -> ReadableNow:
        """Returns a reader of the bytes from `position` on, perhaps not up to `stop`, once there are any.

        Raises `UpstreamError` if they cannot be had, `NotInParts` if they cannot be had in parts, and `StoreError` if
        the store cannot take or give them, or whoever fetches them makes no progress.
        """
        looks, begun = Looks(self._tools.sleep, self._tools.clock, None), 0
        while True:
            # both before the look: what happens after it wakes this one, or is seen
            changed = self._changed
            awaited = [fetch for fetch in self._fetches if fetch.covers(position) and fetch.is_awaited_by(asker)]
            found = await self._in_thread(self._look, position, stop, unwanted=_close_reader)
            if isinstance(found, ReadableNow):
                return found
            if awaited:
                await self._wait_for_fetch(changed)
                failed = [fetch.error for fetch in awaited if fetch.error and fetch.asker.is_like(asker)]
                if failed and not any(fetch in self._fetches for fetch in awaited):
                    raise failed[0].with_traceback(None) from None
                looks.begin(None)
                continue
            if not found.comes:
                begun += 1
                if begun > _MOST_BEGUN:
                    raise StoreError(f"byte {position} of {self.digest} does not come")
                start = position // BLOCK * BLOCK
                self._begin([Span(start, min(-(-stop // BLOCK) * BLOCK, self.size))], asker)
                continue
            if not looks.moved(found.seen) and looks.still > _STUCK:
                raise StoreError(f"whoever fetches byte {position} of {self.digest} makes no progress")
            await looks.pause()

    async def _wait_for_fetch(self, changed: asyncio.Event) -> None:
        """Returns once something has come, or may have come otherwise."""
        waiting = {asyncio.ensure_future(changed.wait()), asyncio.ensure_future(self._tools.sleep(_LOOK_AGAIN))}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_and_wait(*waiting)

    def _look(self, position: int, stop: int) -> ReadableNow | _Awaited:
        """Blocking: what there is at this position. The map first, the prefix last: bytes go from one to the other."""
        spans = self._opened()
        taken: Sequence[Span] = ()
        here: Sequence[Span] = ()
        if spans.in_place:
            taken = spans.taken(Span(position, position + 1))
            here = spans.here(Span(position, stop))
        if here and here[0].start == position and (reader := spans.open(here[0])) is not None:
            return ReadableNow(reader, here[0].stop)
        prefix = self._prefix()
        if prefix is not None:
            if prefix.offset > position:
                return ReadableNow(prefix.reader, min(stop, prefix.offset))
            prefix.reader.close()
        if not spans.in_place or prefix is None:
            with suppress(BlobUnknown):
                info, stored = self._tools.store.open(self.digest)
                if info.size == self.size:
                    return ReadableNow(stored, stop)
                stored.close()
        if not spans.in_place:
            if self._disputed:
                raise NotInParts(self._disputed, upstream=self.upstream)
            self._refuse_avoided()
            # by a purge, or because nothing else made room: nothing is known against these bytes
            raise StoreError(f"{self.digest} was dropped while parts of it were sent")
        offset = 0 if prefix is None else prefix.offset
        comes = bool(taken) or fetch_from(position, offset, self._rate_of(prefix), BLOCK) > position
        around = Span(max(0, position - _AROUND), min(self.size, position + _AROUND))
        return _Awaited(comes, (offset, sum(run.length for run in spans.here(around))))

    def _missing(self, places: Sequence[Span]) -> list[Span]:
        """Blocking: the places of which some bytes are not here."""
        spans = self._opened()
        missing = []
        for place in places:
            here = spans.here(place)
            if not here or here[0] != place:
                missing.append(place)
        prefix = self._prefix() if missing else None
        if prefix is not None:
            prefix.reader.close()
            missing = [place for place in missing if place.stop > prefix.offset]
        return missing

    def here(self) -> int:
        """Blocking: how many bytes of the blob are here. Raises `StoreError`."""
        spans = self._opened()
        prefix = self._prefix()
        offset = 0
        if prefix is not None:
            prefix.reader.close()
            offset = prefix.offset
        return offset + sum(run.length for run in spans.here(Span(offset, self.size)))

    def sync(self) -> None:
        """Blocking: makes what is here survive a power cut. Raises `StoreError`."""
        self._opened().sync()

    def _prefix(self) -> Prefix | None:
        """The beginning of the growing file. Raises `NotInParts` if upstream has said another size for the blob."""
        prefix = self._tools.store.prefix(self.digest, self.upstream)
        if prefix is not None and prefix.size not in (None, self.size):
            prefix.reader.close()
            raise NotInParts(f"upstream says that {self.digest} has {prefix.size} bytes", upstream=self.upstream)
        return prefix

    def _rate_of(self, prefix: Prefix | None) -> float | None:
        """The bytes per second of the blob's fill since it was looked at last; None if it has no fill."""
        if prefix is None or not prefix.filled:
            self._prefix_seen = None
            return None
        now, before = self._tools.clock(), self._prefix_seen
        if before is None or now - before[0] > _STUCK:
            self._rate = 0.0
        elif now - before[0] < LOOK_LAST:
            return self._rate
        else:
            self._rate = (prefix.offset - before[1]) / (now - before[0])
        self._prefix_seen = now, prefix.offset
        return self._rate

    def _opened(self) -> Spans:
        if self._spans is None:
            raise StoreError(f"the parts of {self.digest} are not open")
        return self._spans

    async def note_served(self, line: dict[str, object]) -> None:
        """Remembers who is given unverified bytes. Raises `StoreError`."""
        await self._in_thread(lambda: self._opened().note_served(line))

    # -------------------------------------------------------------------------------------------------------- fetching

    def _begin(self, places: Iterable[Span], asker: Asker) -> None:
        fetches = [_Fetch(place, asker) for place in places]
        self._fetches += fetches
        # with the credentials of who asks
        context = asker.context.copy()
        task = asyncio.create_task(self._run(deque(fetches)), name=f"parts of {self.digest}", context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, fetches: deque[_Fetch]) -> None:
        """Carries out the fetches of one request, some at a time."""
        waiting = list(fetches)

        async def work() -> None:
            while fetches:
                await self._carry_out(fetches.popleft())

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(_AT_ONCE, len(fetches))):
                    group.create_task(work())
        finally:
            for fetch in waiting:
                self._end(fetch, StoreError("the mirror is stopping"))

    async def _carry_out(self, fetch: _Fetch) -> None:
        try:
            await self._tools.room.take(fetch.place.length)
            await self._bring(fetch)
        except MirrorError as error:
            if isinstance(error, NotInParts):
                self._tools.avoid(self, error)
            if isinstance(error, RangesIgnored):
                with suppress(StoreError):
                    await self._in_thread(self._tools.store.avoid_parts, self.upstream, None)
            if isinstance(error, SizeDisputed):
                self._disputed = str(error)
                with suppress(StoreError):
                    await self._in_thread(self._opened().drop)
            self._end(fetch, error)
        except Exception as error:
            telemetry.log.exception("fetch of parts crashed", digest=str(self.digest))
            self._end(fetch, StoreError(f"unexpected: {type(error).__name__}"))
        else:
            self._end(fetch, None)

    def _end(self, fetch: _Fetch, error: MirrorError | None) -> None:
        """Repeatable: the first end counts."""
        if fetch in self._fetches:
            fetch.error = error
            self._fetches.remove(fetch)
            self._wake()

    async def _bring(self, fetch: _Fetch) -> None:
        """Fetches what nobody else brings of a place. Raises `UpstreamError`, `StoreError`."""
        sources = fetch.asker.sources()
        tries: Tries | None = Tries(self._tools.clock())
        try:
            while tries is not None:
                await sources.take_turn()
                async with self._tools.turns:
                    wait, tries = await self._bring_some(fetch, sources, tries)
                if wait:
                    sources.release()
                    await self._pause(fetch, wait)
        finally:
            sources.release()

    async def _pause(self, fetch: _Fetch, seconds: float) -> None:
        fetch.pauses = True
        self._wake()
        try:
            await self._tools.sleep(seconds)
        finally:
            fetch.pauses = False

    async def _bring_some(self, fetch: _Fetch, sources: BlobSources, tries: Tries) -> tuple[float, Tries | None]:
        """Claims bytes of a place and asks for them once. Returns how long to wait before this is done again, and the
        tries so far; None: nothing is left to fetch.
        """
        claim = await self._in_thread(self._claim, fetch.place, unwanted=_release)
        if claim is None:
            return 0.0, None
        try:
            return await self._receive(claim, sources, tries)
        finally:
            claim.release()
            self._wake()

    async def _receive(self, claim: Claim, sources: BlobSources, tries: Tries) -> tuple[float, Tries]:
        """Receives one body. Returns how long to wait before the next one."""
        before, opened = claim.offset, False
        try:
            async with sources(claim.offset, claim.span.stop) as body:
                opened = True
                is_longer = self._check(body, claim, is_upstream=not sources.name)
                if sources.name:
                    self._givers.setdefault((sources.name, sources.current.member), sources)
                try:
                    with telemetry.span("part", mirror__upstream=self.upstream, mirror__offset=claim.offset):
                        await run_uninterrupted(self._tools.executor, claim.fill, body, self._waker(), stop=body.abort)
                finally:
                    if is_longer:
                        # its connection would carry the rest
                        body.abort()
            self._answered = True
        except SourceLeft:
            return 0.0, tries
        except AskAgain as error:
            return error.retry_after, tries
        except (UpstreamUnavailable, UpstreamThrottled) as error:
            self._answered = self._answered or claim.offset > before
            now = self._tools.clock()
            # what came of a block that is not whole comes again
            has_moved = claim.offset // BLOCK > before // BLOCK
            tries = tries.broken(now, progress=has_moved) if opened else tries.refused(error)
            wait = None
            if self._answered:
                wait = next_try(error, tries, now - tries.since, self._tools.patience, self._tools.jitter())
            if wait is None:
                raise
            telemetry.log.warning(
                "fetch of parts interrupted",
                digest=str(self.digest),
                offset=claim.offset,
                upstream=self.upstream,
                reason=str(error),
            )
            return wait, tries
        finally:
            self._count(sources.name, claim.offset - before)
        return 0.0, tries

    def _check(self, body: Body, claim: Claim, *, is_upstream: bool) -> bool:
        """True if the body goes on after the claim. Raises `NotInParts` if it is not to be used."""
        if body.size not in (None, self.size):
            body.abort()
            raise SizeDisputed(
                f"{self.digest} has {body.size} bytes upstream, and {self.size} in a manifest", upstream=self.upstream
            )
        ends = body.stop if isinstance(body, SaysStop) else None
        is_longer = ends is not None and ends > claim.span.stop
        if is_upstream and (body.start != claim.offset or is_longer):
            body.abort()
            if isinstance(body, SaysThrottled) and body.throttled is not None:
                raise PartsThrottled("upstream wants fewer requests", upstream=self.upstream, seconds=body.throttled)
            raise RangesIgnored("upstream sends more than the part that it was asked for", upstream=self.upstream)
        return is_longer

    def _claim(self, place: Span) -> Claim | None:
        """Blocking: claims the first bytes of the place that nobody else brings; None if there are none left."""
        while place.start < place.stop:
            claim = self._opened().claim(place)
            if claim is None:
                return None
            try:
                # after the claim: bytes that were in the spans a moment ago may be in the prefix now
                prefix = self._prefix()
                if prefix is not None:
                    prefix.reader.close()
                elif self._is_stored():
                    # published a moment ago: the spans are dropped after that
                    claim.release()
                    return None
                offset = 0 if prefix is None else prefix.offset
                first = fetch_from(claim.span.start, offset, self._rate_of(prefix), BLOCK)
            except BaseException:
                claim.release()
                raise
            if first <= claim.span.start:
                return claim
            claim.release()
            place = Span(first, place.stop)
        return None

    def _is_stored(self) -> bool:
        with suppress(BlobUnknown, StoreError):
            return self._tools.store.stat(self.digest).size == self.size
        return False

    def _count(self, source: str, received: int) -> None:
        if source:
            count_received(source, received)
            return
        label = self._tools.label(self.upstream)
        telemetry.UPSTREAM_BYTES.labels(label).inc(received)
        telemetry.LAZY_BYTES.labels(label).inc(received)

    def _waker(self) -> Callable[[int], None]:
        """What a receiving thread calls after each write: cheap, and at most one call on the event loop is pending."""
        loop = asyncio.get_running_loop()

        def grown(offset: int) -> None:
            if not self._woken:
                self._woken = True
                loop.call_soon_threadsafe(self._wake)

        return grown

    def _wake(self) -> None:
        self._woken = False
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def accuse(self, reason: str) -> None:
        """The whole was wrong: the sources that gave parts of it here are not asked for it again for some time."""
        givers, self._givers = self._givers, {}
        for sources in givers.values():
            await sources.accuse(reason)

    async def _in_thread(
        self, work: Callable[..., T], *arguments: object, unwanted: Callable[[T], None] | None = None
    ) -> T:
        return await run_uninterrupted(self._tools.executor, work, *arguments, unwanted=unwanted)


def _close_reader(found: ReadableNow | _Awaited) -> None:
    if isinstance(found, ReadableNow):
        found.reader.close()


def _release(claim: Claim | None) -> None:
    if claim is not None:
        claim.release()

"""Fetches of parts of one blob, out of turn, by one process.

    begin() ──> the places of a request, some at a time ──┬── whole blocks, claimed ── upstream, or a replica
                                                          └── ended, perhaps with an error

A fetch belongs to this process and not to the request that began it: a client that leaves ends none. Claims keep
threads and processes apart, so each block comes once for the registry.

Whoever has a claim waits for nothing but a source's answer and its bytes. The turn at the upstream is taken before the
claim, because a fill of the blob keeps its own while it waits for the claim; before a pause, or a turn at another
address of the upstream, the claim is given back. So others can fetch the bytes meanwhile, and whoever has other rights
does.

    turn ── claim ── asked ── received ── given back ──> turn, the rest of the place …
      ^                └── no turn, broken off, throttled ──> given back ── pause ──┐
      └─────────────────────────────────────────────────────────────────────────────┘
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Executor
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

from mirror import telemetry
from mirror.aio.singleflight import cancel_and_wait
from mirror.aio.threads import run_uninterrupted
from mirror.caller import caller_mark
from mirror.errors import AskAgain, MirrorError, StoreError, UpstreamThrottled, UpstreamUnavailable
from mirror.fills.part_files import NotInParts, PartFiles
from mirror.fills.sources import BlobSources, SourceLeft, count_received
from mirror.oci.digest import Digest
from mirror.oci.span import Span
from mirror.policy.fills.span_blocks import BLOCK
from mirror.policy.send_limit import Tries, next_try
from mirror.ports import BlobStore, Body, Claim, SaysStop, SaysThrottled

T = TypeVar("T")

#: Fetches of one request at the same time.
_AT_ONCE: Final = 4
#: Seconds between two looks while a fetch of this process brings nothing: something else may.
_LOOK_AGAIN: Final = 0.25


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

    `executor` runs the threads that receive. `turns` limits the fetches of this process. `avoid` is called with the
    upstream, the digest and the size if parts of a blob cannot be had. `label` returns the configured upstream that a
    registry belongs to. A fetch of a blob of which bytes have come waits `patience` seconds, measured by `clock`, for
    an upstream that does not answer.
    """

    store: BlobStore
    executor: Executor
    room: PartRoom
    turns: asyncio.Semaphore
    avoid: Callable[[str, Digest, int, NotInParts], None]
    label: Callable[[str], str] = str
    patience: float = 30.0
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random

    async def in_thread(
        self, work: Callable[..., T], *arguments: object, unwanted: Callable[[T], None] | None = None
    ) -> T:
        """The result of work that blocks; `unwanted` gets it if nobody waits for it any more."""
        return await run_uninterrupted(self.executor, work, *arguments, unwanted=unwanted)


class PartFetch:
    """The bytes of one place, on the way for `asker`."""

    def __init__(self, place: Span, asker: Asker) -> None:
        self.place = place
        self.asker = asker
        self.error: MirrorError | None = None
        #: True while it waits to ask again.
        self.pauses = False

    def __repr__(self) -> str:
        return f"<PartFetch {self.place.start}-{self.place.stop} {self.error or ''}>"

    def covers(self, position: int) -> bool:
        """True if it brings the byte at this position."""
        return self.place.start <= position < self.place.stop

    def is_awaited_by(self, asker: Asker) -> bool:
        """False if the asker should rather fetch the bytes: the pause may be one for other rights or credentials."""
        return not self.pauses or self.asker.is_like(asker)


class PartFetches:
    """See the head of this file."""

    def __init__(self, files: PartFiles, tools: PartTools) -> None:
        self._files = files
        self._tools = tools
        #: Those that have not ended.
        self.under_way: Final[list[PartFetch]] = []
        #: Set once something has come, or may have come otherwise; then there is another one.
        self.changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._woken = False
        #: True once bytes have come: upstream is waited for then if it breaks off.
        self._answered = False
        #: What has given bytes besides the upstream, by its name and address. There may be a fetch for each block, and
        #: to accuse a bucket costs a look at the whole: one fetch of each source is remembered.
        self._givers: dict[tuple[str, str], BlobSources] = {}

    def __repr__(self) -> str:
        return f"<PartFetches {len(self.under_way)} under way>"

    @property
    def is_idle(self) -> bool:
        """True if nothing is fetched."""
        return not self._tasks

    def begin(self, places: Iterable[Span], asker: Asker) -> None:
        """Begins to fetch these places (whole blocks). Returns at once."""
        fetches = [PartFetch(place, asker) for place in places]
        self.under_way.extend(fetches)
        # with the credentials of who asks
        context = asker.context.copy()
        task = asyncio.create_task(self._run(deque(fetches)), name=f"parts of {self._files.digest}", context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def wait(self, changed: asyncio.Event) -> None:
        """Returns once something has come since `changed` was the event, or may have come otherwise."""
        waiting = {asyncio.ensure_future(changed.wait()), asyncio.ensure_future(self._tools.sleep(_LOOK_AGAIN))}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_and_wait(*waiting)

    async def accuse(self, reason: str) -> None:
        """The whole was wrong: the sources that gave parts of it here are not asked for it again for some time."""
        givers, self._givers = self._givers, {}
        for sources in givers.values():
            await sources.accuse(reason)

    async def aclose(self) -> None:
        """Ends all fetches: whole blocks stay. Repeatable."""
        await cancel_and_wait(*self._tasks)

    # ------------------------------------------------------------------------------------------------------- one fetch

    async def _run(self, fetches: deque[PartFetch]) -> None:
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

    async def _carry_out(self, fetch: PartFetch) -> None:
        files, tools = self._files, self._tools
        try:
            await tools.room.take(fetch.place.length)
            await self._bring(fetch)
        except MirrorError as error:
            if isinstance(error, NotInParts):
                tools.avoid(files.upstream, files.digest, files.size, error)
            if isinstance(error, RangesIgnored):
                with suppress(StoreError):
                    await tools.in_thread(tools.store.avoid_parts, files.upstream, None)
            if isinstance(error, SizeDisputed):
                with suppress(StoreError):
                    await tools.in_thread(files.dispute, str(error))
            self._end(fetch, error)
        except Exception as error:
            telemetry.log.exception("fetch of parts crashed", digest=str(files.digest))
            self._end(fetch, StoreError(f"unexpected: {type(error).__name__}"))
        else:
            self._end(fetch, None)

    def _end(self, fetch: PartFetch, error: MirrorError | None) -> None:
        """Repeatable: the first end counts."""
        if fetch in self.under_way:
            fetch.error = error
            self.under_way.remove(fetch)
            self._wake()

    async def _bring(self, fetch: PartFetch) -> None:
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

    async def _pause(self, fetch: PartFetch, seconds: float) -> None:
        fetch.pauses = True
        self._wake()
        try:
            await self._tools.sleep(seconds)
        finally:
            fetch.pauses = False

    async def _bring_some(self, fetch: PartFetch, sources: BlobSources, tries: Tries) -> tuple[float, Tries | None]:
        """Claims bytes of a place and asks for them once. Returns how long to wait before this is done again, and the
        tries so far; None: nothing is left to fetch.
        """
        claim = await self._tools.in_thread(self._files.claim, fetch.place, unwanted=_release)
        if claim is None:
            return 0.0, None
        try:
            return await self._receive(claim, sources, tries)
        finally:
            claim.release()
            self._wake()

    async def _receive(self, claim: Claim, sources: BlobSources, tries: Tries) -> tuple[float, Tries]:
        """Receives one body. Returns how long to wait before the next one."""
        upstream, before, opened = self._files.upstream, claim.offset, False
        try:
            async with sources(claim.offset, claim.span.stop) as body:
                opened = True
                is_longer = self._check(body, claim, is_upstream=not sources.name)
                if sources.name:
                    self._givers.setdefault((sources.name, sources.current.member), sources)
                try:
                    with telemetry.span("part", mirror__upstream=upstream, mirror__offset=claim.offset):
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
                digest=str(self._files.digest),
                offset=claim.offset,
                upstream=upstream,
                reason=str(error),
            )
            return wait, tries
        finally:
            self._count(sources.name, claim.offset - before)
        return 0.0, tries

    def _check(self, body: Body, claim: Claim, *, is_upstream: bool) -> bool:
        """True if the body goes on after the claim. Raises `NotInParts` if it is not to be used."""
        digest, upstream, size = self._files.digest, self._files.upstream, self._files.size
        if body.size not in (None, size):
            body.abort()
            raise SizeDisputed(f"{digest} has {body.size} bytes upstream, and {size} in a manifest", upstream=upstream)
        ends = body.stop if isinstance(body, SaysStop) else None
        is_longer = ends is not None and ends > claim.span.stop
        if is_upstream and (body.start != claim.offset or is_longer):
            body.abort()
            if isinstance(body, SaysThrottled) and body.throttled is not None:
                raise PartsThrottled("upstream wants fewer requests", upstream=upstream, seconds=body.throttled)
            raise RangesIgnored("upstream sends more than the part that it was asked for", upstream=upstream)
        return is_longer

    def _count(self, source: str, received: int) -> None:
        if source:
            count_received(source, received)
            return
        label = self._tools.label(self._files.upstream)
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
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


def _release(claim: Claim | None) -> None:
    if claim is not None:
        claim.release()

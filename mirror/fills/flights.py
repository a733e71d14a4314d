"""One transfer per registry and digest, any number of followers, over all processes that share a store.

The life of a flight, in the process that looks at it:

    join() ──> STARTING ──┬─ in the store already ────────────────────────────────────────────> LANDED
                          ├─ lock taken: we are the filler ──> headers in ──> FILLING ── verified ─> LANDED ─> committed
                          └─ another process has the lock ───> FOLLOWING ─────────── verified ──> LANDED
                                   ^                               │
                                   └──── the filler died: its lock is free, go on at the file's size

    FAILED from any of them: before `known` every joiner gets the error as an ordinary exception, hence a clean HTTP
    error; after it the answer has begun, and `beyond` raises, hence a broken connection.

Nobody owns a flight. Its task belongs to `Flights`; a client that leaves takes nothing with it, the first one neither.

Registries do not share flights: what one sends may be slow, wrong or of another size, and must not reach clients of
another one before it is verified. A flight whose blob is published meanwhile, by another registry's flight or by an
import, leaves its upstream and takes the rest from the store. Its digest is checked all the same: what it had before
may have been wrong.

What may be sent is less than what is there: the last bytes are held back until the digest is verified, so a wrong blob
is never delivered whole. It is published (synced, renamed) after that; waiting for the disk would add nothing to what
the client gets.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, suppress
from typing import Final, Protocol, TypeVar

from mirror import telemetry
from mirror.aio.singleflight import end
from mirror.aio.threads import to_its_end
from mirror.caller import caller
from mirror.errors import (
    BlobDamaged,
    BlobUnknown,
    BlobUnreadable,
    DigestMismatch,
    MirrorError,
    StoreError,
    StoreFull,
    UpstreamCircuitOpen,
    UpstreamError,
    UpstreamInvalid,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from mirror.fills.outages import Outages
from mirror.graph.damage import hashes_to
from mirror.oci.digest import Digest
from mirror.policy.send_limit import Tries, may_send, next_try
from mirror.ports import BlobInfo, BlobReader, BlobStore, Body, Ingest

__all__ = ["Flight", "Flights", "Pull", "ReservedSpace", "Room"]

T = TypeVar("T")

#: A blob of one upstream repository from an offset on; entered once upstream's headers are in.
Pull = Callable[[int], AbstractAsyncContextManager[Body]]

#: Told once upstream has answered for a repository, with the size in bytes where it is known.
Vouch = Callable[[int | None], Awaitable[None]]

#: Followers in one process are told together: a wake-up per received buffer would cost more than the transfer.
_NOTICE_BYTES: Final = 4 << 20
_NOTICE_SECONDS: Final = 0.05

#: How often a process looks at what another one writes, in seconds: at once quick, slower while nothing moves.
_LOOK_FIRST: Final = 0.005
_LOOK_LAST: Final = 0.05

#: Seconds between two looks at whether a blob that is being filled has been published by somebody else.
_LOOK_FOR_PUBLISHED: Final = 0.25

#: Seconds without a byte after which another process's fill is not waited for any longer, beyond those for which it may
#: wait for upstream: more than all the time-outs of a living one together, its waits between tries included.
_STUCK: Final = 120.0

#: A disk may say «full» for reasons that eviction does not cure (a file-size limit): do not empty the cache for it.
_TRIES_WHEN_FULL: Final = 2


class ReservedSpace(Protocol):
    """Room that was set aside for a fill."""

    def release(self) -> None:
        """Repeatable."""


class Room(Protocol):
    """What a flight needs of the evictor."""

    async def reserve(self, size: int | None) -> ReservedSpace:
        """Set `size` bytes aside, evicting if needed. Raises `StoreFull`."""

    async def make_room(self, size: int) -> None:
        """The disk was full in mid-write: drop at least `size` bytes. Raises `StoreFull`."""


class Flight:
    """A blob on its way, as this process sees it."""

    def __init__(self, digest: Digest, upstream: str, size: int | None, on_behalf: object) -> None:
        self.digest = digest
        self.upstream = upstream
        #: Whose rights at upstream it uses, whose manifest it took the size from.
        self.on_behalf = on_behalf
        self.caller = caller()
        #: The whole blob in bytes; None while, or where, nobody says it.
        self.size = size
        #: Bytes from the start that may be sent to clients now.
        self.sendable = 0
        self.received = 0
        self.landed = False
        #: Whether this process fills it; another one may still be publishing what has landed here.
        self.filled_here = False
        #: Whether the blob was published in the store; it may have been dropped since.
        self.stored = False
        self.error: MirrorError | None = None
        self.followers = 0
        self.known: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        #: The fill is over in every respect: committed, or given up.
        self.over = asyncio.Event()
        self._reader: BlobReader | None = None
        self._pulse = asyncio.Event()
        self._told_at = 0.0
        self._told = 0
        self._telling = False
        self._ingest: Ingest | None = None

    def __repr__(self) -> str:
        whole = "?" if self.size is None else str(self.size)
        how = "landed" if self.landed else f"failed: {self.error}" if self.error else "flying"
        return (
            f"<Flight {str(self.digest)[:19]}… {self.received}/{whole} bytes, {self.followers} followers, "
            f"{self.upstream}, {how}>"
        )

    @property
    def reader(self) -> BlobReader:
        """The growing bytes, shared by all followers. Only once `known`."""
        if self._reader is None:
            raise StoreError(f"{self.digest} has no bytes yet")
        return self._reader

    async def beyond(self, position: int) -> int:
        """Wait until more than the first `position` bytes may be sent; returns how many may.

        Returns `position` or less once the blob has landed and has no more. Raises what ended the flight.
        """
        while self.sendable <= position:
            if self.error:
                raise self.error.with_traceback(None)
            if self.landed:
                break
            await self._pulse.wait()
        return self.sendable

    def follow(self) -> None:
        """A follower comes; it must `leave`."""
        self.followers += 1
        telemetry.FOLLOWERS.inc()

    def leave(self) -> None:
        """A follower goes. The last one out after the end closes the file."""
        self.followers -= 1
        telemetry.FOLLOWERS.dec()
        self._let_go()

    # ------------------------------------------------------------ by the task that carries the flight

    def _look(self, ingest: Ingest) -> None:
        """Take over what the ingest says now, and tell the followers."""
        # before looking: what the thread writes after the look must find that it has to ask for another one
        self._telling = False
        self.received = ingest.offset
        self.size = ingest.size if ingest.size is not None else self.size
        self.sendable = may_send(ingest.offset, self.size, verified=ingest.verified)
        self._tell()

    def _tell(self) -> None:
        self._told, self._told_at = self.received, time.monotonic()
        pulse, self._pulse = self._pulse, asyncio.Event()
        pulse.set()

    def _grew(self, loop: asyncio.AbstractEventLoop) -> None:
        """On the loop: bytes have come; tell now, or a little later together with more."""
        ingest = self._ingest
        if ingest is None or self.landed or self.error:
            self._telling = False
            return
        late = self._told_at + _NOTICE_SECONDS - time.monotonic()
        if late <= 0 or ingest.offset - self._told >= _NOTICE_BYTES:
            self._look(ingest)
        else:
            loop.call_later(late, self._grew, loop)

    def progress_from(self, loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
        """What the filling thread calls after each write: cheap, and at most one call on the loop is pending."""

        def progress() -> None:
            if not self._telling:
                self._telling = True
                loop.call_soon_threadsafe(self._grew, loop)

        return progress

    def _announce(self, opened: Callable[[], BlobReader]) -> None:
        if self._reader is None:
            self._reader = opened()
        if not self.known.done():
            self.known.set_result(None)

    def _land(self, size: int) -> None:
        self.size = self.received = self.sendable = size
        self.landed = True
        self._tell()

    def _fail(self, error: MirrorError) -> None:
        self.error = error
        if not self.known.done():
            self.known.set_exception(error)
            # joiners may all have left; then nobody asks, and that is fine
            self.known.exception()
        self._tell()

    def _end(self) -> None:
        self.over.set()
        self._let_go()

    def _let_go(self) -> None:
        if self.over.is_set() and not self.followers and self._reader:
            self._reader.close()


class _StoredBody:
    """The rest of a blob from the store, in place of what upstream would send. Fits `Body`."""

    def __init__(self, reader: BlobReader, start: int, size: int) -> None:
        self.start = start
        self.size: int | None = size
        self._reader = reader
        self._position = start
        self._aborted = False

    def readinto(self, buffer: memoryview) -> int:
        """Raises `StoreError`."""
        if self._aborted:
            raise StoreError("the copy was given up")
        piece = self._reader.pread(len(buffer), self._position)
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def abort(self) -> None:
        self._aborted = True


class Flights:
    """All flights of this process."""

    def __init__(
        self,
        store: BlobStore,
        room: Room,
        executor: Executor,
        *,
        landed: Callable[[BlobInfo], Awaitable[None]],
        label: Callable[[str], str] = str,
        patience: float = 30.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`executor` gives the threads that receive; a fill occupies one from its headers to its end.

        `landed` is told of each blob that this process has published. `label` gives the configured upstream that a
        registry falls under, for the metrics. `patience` is for how many seconds a fill waits for an upstream that does
        not answer; `clock` counts them.
        """
        self._store = store
        self._room = room
        self._executor = executor
        self._landed = landed
        self._label = label
        self._patience = patience
        self._sleep = sleep
        self._jitter = jitter
        self._clock = clock
        self._outages = Outages()
        self._flights: dict[tuple[str, Digest], Flight] = {}
        self._tasks: dict[asyncio.Task[None], Flight] = {}

    def active(self) -> Collection[Flight]:
        """Flights under way, to be shown."""
        return tuple(self._flights.values())

    def digests(self) -> Collection[Digest]:
        """What must not be evicted now."""
        return {digest for _, digest in self._flights}

    def under_way(self, digest: Digest, upstream: str) -> bool:
        """Whether this process has a flight of it from that registry."""
        return (upstream, digest) in self._flights

    async def join(
        self,
        digest: Digest,
        pull: Pull,
        *,
        upstream: str,
        size: int | None = None,
        vouch: Vouch | None = None,
        on_behalf: object = None,
    ) -> Flight:
        """Follow the flight of a digest from `upstream` (a registry as clients say it), begun if there is none; returns
        once its headers are known.

        `size` in bytes is what a manifest says, if one does. The caller must `leave` the flight. Raises what kept it
        from taking off: `UpstreamError`, `StoreFull`, `StoreError`. Where it was begun on behalf of another repository
        or caller and upstream did not give the blob to that one, it is tried again on behalf of this one.
        """
        while True:
            flight = self._flights.get((upstream, digest))
            if flight is None:
                flight = self._begin(digest, pull, upstream, size, vouch, on_behalf)
            flight.follow()
            try:
                await asyncio.shield(flight.known)
            except UpstreamError as error:
                flight.leave()
                if flight.on_behalf == on_behalf and flight.caller == caller():
                    # one exception object for all joiners must not collect the tracebacks of each
                    raise error.with_traceback(None) from None
                await flight.over.wait()
            except MirrorError as error:
                flight.leave()
                raise error.with_traceback(None) from None
            except BaseException:
                flight.leave()
                raise
            else:
                return flight

    def _begin(
        self, digest: Digest, pull: Pull, upstream: str, size: int | None, vouch: Vouch | None, on_behalf: object
    ) -> Flight:
        flight = self._flights[upstream, digest] = Flight(digest, upstream, size, on_behalf)
        task = asyncio.create_task(self._carry(flight, pull, vouch), name=f"flight {digest}")
        self._tasks[task] = flight
        task.add_done_callback(self._tasks.pop)
        return flight

    async def aclose(self) -> None:
        """Give up every flight; what has come stays as a partial, what has landed is published. Repeatable."""
        for task, flight in self._tasks.items():
            if not flight.landed:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _carry(self, flight: Flight, pull: Pull, vouch: Vouch | None) -> None:
        try:
            with telemetry.span("flight", mirror__upstream=flight.upstream, mirror__digest=str(flight.digest)) as span:
                await self._fly(flight, pull, vouch)
                span.note(mirror__bytes=flight.size, mirror__filled_here=int(flight.filled_here))
        except MirrorError as error:
            flight._fail(error)
        except asyncio.CancelledError:
            flight._fail(StoreError("the mirror is stopping"))
            raise
        except Exception as error:
            telemetry.log.exception("flight crashed", digest=str(flight.digest))
            flight._fail(StoreError(f"unexpected: {type(error).__name__}"))
        finally:
            if self._flights.get((flight.upstream, flight.digest)) is flight:
                del self._flights[flight.upstream, flight.digest]
            flight._end()

    async def _fly(self, flight: Flight, pull: Pull, vouch: Vouch | None) -> None:
        while True:
            if await self._is_here(flight):
                return
            ingest = await self._in_thread(
                self._store.ingest, flight.digest, flight.upstream, unwanted=lambda made: made.close()
            )
            try:
                if ingest.try_lock():
                    # between the look above and the lock another process may have published it
                    if await self._is_here(flight):
                        ingest.abort(keep=False)
                        return
                    await self._fill(flight, ingest, pull, vouch)
                    return
                if await self._watch(flight, ingest):
                    if not flight.landed:
                        await self._fill(flight, ingest, pull, vouch)
                    return
                if flight.known.done():
                    # others have been sent bytes of a file that was thrown away
                    raise StoreError(f"{flight.digest} began anew while it was being followed")
            finally:
                ingest.close()

    async def _is_here(self, flight: Flight) -> bool:
        """Land the flight if its blob is in the store by now; returns whether it is."""
        if flight.known.done():
            return False
        try:
            info, reader = await self._open_right(flight.digest, flight.size)
        except BlobUnknown:
            return False
        flight._announce(lambda: reader)
        flight._land(info.size)
        return True

    async def _open_right(self, digest: Digest, size: int | None) -> tuple[BlobInfo, BlobReader]:
        """The blob that is in the store. One of another size than `size` (None: nobody says it) is read before it is
        believed; a damaged one leaves the store. Raises `BlobUnknown`, `StoreError`.
        """
        while True:
            info, reader = self._store.open(digest)
            if info.size == size or await self._check(digest, reader):
                return info, reader

    async def _check(self, digest: Digest, reader: BlobReader) -> bool:
        return await self._in_thread(self._is_right, digest, reader, unwanted=lambda _right: reader.close())

    def _is_right(self, digest: Digest, reader: BlobReader) -> bool:
        """Blocking: what is not right leaves the store, and is closed."""
        try:
            right = hashes_to(reader, digest)
            if not right and self._store.set_aside(digest, reader):
                telemetry.log.error("damaged blob set aside", digest=str(digest), reason="found by a flight")
        except BaseException:
            reader.close()
            raise
        if not right:
            reader.close()
        return right

    # ---------------------------------------------------------------------------- another process fills

    async def _watch(self, flight: Flight, ingest: Ingest) -> bool:
        """Follow the file that another process fills. True: landed, or the lock is ours; False: the file is gone."""
        pause = _LOOK_FIRST
        moved_at = time.monotonic()
        while True:
            if await self._is_here(flight):
                # before the headers of this registry another one's bytes may have been verified
                return True
            before = ingest.offset
            ingest.refresh()
            if ingest.announced:
                if not flight.known.done():
                    flight.size = ingest.size
                    flight._announce(ingest.reader)
                flight._look(ingest)
            if ingest.verified and ingest.offset == ingest.size:
                flight._land(ingest.offset)
                return True
            if ingest.try_lock():
                telemetry.log.info("took over a fill", digest=str(flight.digest), offset=ingest.offset)
                return True
            if not ingest.in_place:
                ingest.refresh()
                if ingest.verified:
                    continue
                return False
            if ingest.offset != before:
                moved_at = time.monotonic()
            elif time.monotonic() - moved_at > _STUCK + self._patience:
                # a filler that gives up frees its lock; this one has stopped in its tracks, and holds it
                raise StoreError(f"the process that fills {flight.digest} does not move")
            # clients that have had nothing yet are not kept waiting a moment longer than upstream does
            quick = ingest.offset != before or not flight.sendable
            pause = _LOOK_FIRST if quick else min(pause * 1.5, _LOOK_LAST)
            await self._sleep(pause)

    # --------------------------------------------------------------------------------- this process fills

    async def _fill(self, flight: Flight, ingest: Ingest, pull: Pull, vouch: Vouch | None) -> None:
        began = time.monotonic()
        result = "failed"
        flight.filled_here = True
        telemetry.FLIGHTS.inc()
        try:
            await self._in_thread(ingest.resume)
            if await self._receive(flight, ingest, pull, vouch):
                # in the store already, and nothing of this upstream was sent to anybody
                ingest.abort(keep=False)
                flight.stored = True
                result = "stored"
                return
            await self._in_thread(ingest.verify)
            flight._ingest = None
            flight._land(ingest.offset)
            info = await self._in_thread(ingest.commit)
            flight.stored = True
            await self._landed(info)
            result = "stored"
        except BlobDamaged as error:
            # every byte may be wrong: none is kept, and the client's connection breaks before the last of them
            ingest.abort(keep=False)
            telemetry.UPSTREAM_ERRORS.labels(self._label(flight.upstream), DigestMismatch.__name__).inc()
            raise DigestMismatch(str(error), upstream=flight.upstream) from error
        except (UpstreamInvalid, BlobUnreadable):
            # a partial that cannot be read is no beginning either: the next fill takes a new file
            ingest.abort(keep=False)
            raise
        except StoreError as error:
            if not flight.landed:
                raise
            # the followers have had it whole and right; only the store goes without
            telemetry.log.error("could not publish a blob", digest=str(flight.digest), reason=str(error))
        finally:
            flight._ingest = None
            telemetry.FLIGHTS.dec()
            telemetry.FILLED.labels(self._label(flight.upstream), result).inc()
            telemetry.FILL_SECONDS.labels(self._label(flight.upstream)).observe(time.monotonic() - began)

    async def _receive(self, flight: Flight, ingest: Ingest, pull: Pull, vouch: Vouch | None) -> bool:
        """Until every byte is there, from upstream, or from the store if the blob is published meanwhile.

        True: the flight has landed in the store before upstream had answered; the ingest is not needed.
        """
        receiving = asyncio.create_task(self._receive_from_upstream(flight, ingest, pull, vouch))
        publishing = asyncio.create_task(self._wait_until_published(flight))
        try:
            await asyncio.wait({receiving, publishing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end(receiving, publishing)
        if publishing.cancelled():
            receiving.result()
            return False
        info, reader = publishing.result()
        if not flight.known.done():
            flight._announce(lambda: reader)
            flight._land(info.size)
            return True
        try:
            if receiving.cancelled() or receiving.exception() is not None:
                await self._take_from_store(flight, ingest, info, reader)
            return False
        finally:
            reader.close()

    async def _wait_until_published(self, flight: Flight) -> tuple[BlobInfo, BlobReader]:
        while True:
            await asyncio.sleep(_LOOK_FOR_PUBLISHED)
            # what cannot be opened now is no reason to leave an upstream that gives it
            with suppress(BlobUnknown, StoreError):
                self._store.stat(flight.digest)
                return await self._open_right(flight.digest, flight.size)

    async def _receive_from_upstream(self, flight: Flight, ingest: Ingest, pull: Pull, vouch: Vouch | None) -> None:
        """Until every byte is there, over as many upstream answers as it takes."""
        if ingest.size is not None and ingest.offset == ingest.size:
            # a filler died between its last byte and the commit; what it has left may be wrong
            try:
                await self._in_thread(ingest.verify)
            except BlobDamaged:
                if flight.known.done():
                    raise
                await self._in_thread(ingest.restart)
            else:
                flight._announce(ingest.reader)
                return
        tries, full = Tries(self._clock()), 0
        reservation: ReservedSpace | None = None
        try:
            while True:
                before, answered = ingest.offset, False
                try:
                    async with pull(ingest.offset) as body:
                        answered = True
                        self._outages.answered(flight.upstream, self._clock())
                        disputed = None not in (flight.size, body.size) and flight.size != body.size
                        size = self._agree(flight, body.size)
                        if reservation is None:
                            reservation = await self._room.reserve(None if size is None else size - ingest.offset)
                        if vouch:
                            # before followers learn the size: they take it as the sign that upstream has answered
                            await vouch(size)
                        ingest.expect(size)
                        flight._announce(ingest.reader)
                        flight._ingest = ingest
                        progress = flight.progress_from(asyncio.get_running_loop())
                        await self._take(flight, ingest, body, progress)
                        if disputed:
                            # it may have been cut: what comes on its connection next could be the rest of it
                            body.abort()
                    return
                except (UpstreamUnavailable, UpstreamThrottled) as error:
                    now = self._clock()
                    tries = tries.broken(now, progress=ingest.offset > before) if answered else tries.refused(error)
                    if ingest.offset > before:
                        self._outages.answered(flight.upstream, now)
                    wait = await self._wait_for(flight, error, tries, now)
                    if wait is None:
                        raise
                    if not isinstance(error, UpstreamCircuitOpen):
                        telemetry.log.warning(
                            "fill interrupted",
                            digest=str(flight.digest),
                            offset=ingest.offset,
                            size=flight.size,
                            upstream=flight.upstream,
                            reason=str(error),
                            failures=tries.breaks + tries.refusals,
                        )
                    await self._sleep(wait)
                except StoreFull:
                    if not flight.known.done() or full == _TRIES_WHEN_FULL:
                        raise
                    full += 1
                    # what was reserved went to someone else's files; without more room the followers go on uncached
                    await self._room.make_room(_NOTICE_BYTES if flight.size is None else flight.size - ingest.offset)
                finally:
                    received = max(0, ingest.offset - before)
                    telemetry.UPSTREAM_BYTES.labels(self._label(flight.upstream)).inc(received)
        finally:
            if reservation:
                reservation.release()

    async def _wait_for(self, flight: Flight, error: UpstreamError, tries: Tries, now: float) -> float | None:
        """Seconds until upstream is asked again; None: give up. A fill that has begun waits for as long as its own
        `patience`. One that has nothing yet fails at once, so that its clients have a clean error, unless upstream has
        only just gone away from this process or from another one: then it waits with those that have begun.
        """
        if _is_unreachable(error):
            self._outages.refused(flight.upstream, now)
        if flight.known.done():
            return next_try(error, tries, now - tries.since, self._patience, self._jitter())
        waited = self._outages.waited(flight.upstream, now)
        if waited >= self._patience or not _is_unreachable(error):
            return None
        if not self._outages.is_sudden(flight.upstream) and not await self._is_sending_others(flight):
            return None
        return next_try(error, tries, waited, self._patience, self._jitter())

    async def _is_sending_others(self, flight: Flight) -> bool:
        """Whether another process has begun to receive something from this flight's registry."""
        with suppress(StoreError):
            return await self._in_thread(self._store.is_filling, flight.upstream, flight.digest)
        return False

    async def _take_from_store(self, flight: Flight, ingest: Ingest, info: BlobInfo, reader: BlobReader) -> None:
        """The rest, from the blob that has been published meanwhile."""
        if flight.size not in (None, info.size):
            raise UpstreamInvalid(
                f"{flight.digest} has {flight.size} bytes upstream, and {info.size} in truth", upstream=flight.upstream
            )
        telemetry.log.info(
            "fill goes on from the store", digest=str(flight.digest), upstream=flight.upstream, offset=ingest.offset
        )
        ingest.expect(info.size)
        flight._ingest = ingest
        body = _StoredBody(reader, ingest.offset, info.size)
        progress = flight.progress_from(asyncio.get_running_loop())
        await self._in_thread(ingest.fill, body, progress, stop=body.abort)

    async def _take(self, flight: Flight, ingest: Ingest, body: Body, progress: Callable[[], None]) -> None:
        """One body to its end."""
        with telemetry.span("fill", mirror__upstream=flight.upstream, mirror__offset=ingest.offset):
            try:
                await self._in_thread(ingest.fill, body, progress, stop=body.abort)
            except UpstreamError as error:
                telemetry.UPSTREAM_ERRORS.labels(self._label(flight.upstream), type(error).__name__).inc()
                raise

    def _agree(self, flight: Flight, said: int | None) -> int | None:
        """The size of the whole. Until anything is promised to clients the answer that is to be sent says it, whatever
        a manifest says: its bytes are judged by the digest. Afterwards every further answer must say the same.
        """
        if flight.known.done() and said is not None and flight.size is not None and said != flight.size:
            raise UpstreamInvalid(
                f"{flight.digest} has {said} bytes upstream, where {flight.size} were expected",
                upstream=flight.upstream,
            )
        flight.size = said if said is not None else flight.size
        return flight.size

    async def _in_thread(
        self,
        work: Callable[..., T],
        *arguments: object,
        stop: Callable[[], None] | None = None,
        unwanted: Callable[[T], None] | None = None,
    ) -> T:
        """Run blocking work; when cancelled, stop it and wait for its end, because it uses files of ours. A result that
        nobody gets any more is `unwanted`.
        """
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._executor, work, *arguments)
        return await to_its_end(running, stop=stop, unwanted=unwanted)


def _is_unreachable(error: UpstreamError) -> bool:
    """Whether upstream could not be asked at all: of a dial that fails, the next one may do better in a moment."""
    return isinstance(error, UpstreamUnavailable) and not isinstance(error, UpstreamTimeout) and error.status is None

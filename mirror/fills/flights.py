"""Transfers of blobs: one for each registry and digest over all processes that share a store, with any number of
followers.

The life cycle of a flight, as one process sees it:

    join() ──> STARTING ──┬─ in the store already ────────────────────────────────────────────> LANDED
                          ├─ lock taken: we are the filler ──> headers in ──> FILLING ── verified ─> LANDED ─> committed
                          └─ another process has the lock ───> FOLLOWING ─────────── verified ──> LANDED
                                   ^                               │
                                   └──── the filler died: its lock is free, go on at the file's size

    FAILED from any state. Before `known` is set, `join` raises the error to every joiner, and each client gets a clean
    HTTP error. Afterwards the answer has begun: `beyond` raises, and the client's connection is broken.

The task of a flight belongs to `Flights`, not to a client. A client that leaves, even the one that began the flight,
does not end it.

Registries do not share flights. The bytes that one registry sends may be slow, wrong or of another length, and must not
reach clients of another registry before they are verified. If another registry's flight or an import publishes the blob
meanwhile, the flight leaves its upstream and copies the rest from the store. The digest of the whole is still checked,
because the bytes received before may be wrong.

Clients are not sent the last bytes until the digest is verified, so a wrong blob is never delivered whole. The blob is
published (synced, renamed) after that: clients need not wait for the disk.
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
from mirror.aio.singleflight import cancel_and_wait
from mirror.aio.threads import uninterrupted
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

T = TypeVar("T")

#: Opens a blob of one upstream repository from an offset on. Entering the context waits for upstream's headers.
Pull = Callable[[int], AbstractAsyncContextManager[Body]]

#: Called when upstream has answered for the blob in a repository, with its size in bytes (None: unknown).
Vouch = Callable[[int | None], Awaitable[None]]

#: Followers in one process are woken after so many bytes or seconds: a wake-up for each received buffer would cost more
#: than the transfer.
_NOTICE_BYTES: Final = 4 << 20
_NOTICE_SECONDS: Final = 0.05

#: Seconds between two looks at a file that another process fills: `_LOOK_FIRST` while it grows, otherwise longer, up to
#: `_LOOK_LAST`.
_LOOK_FIRST: Final = 0.005
_LOOK_LAST: Final = 0.05

#: Seconds between two checks whether another flight or an import has published a blob that is being filled.
_LOOK_FOR_PUBLISHED: Final = 0.25

#: Seconds without a new byte after which another process's fill counts as stuck, in addition to the seconds for which
#: it may wait for upstream. More than the sum of all time-outs and pauses between tries of a working fill.
_STUCK: Final = 120.0

#: How often a full disk is answered by eviction. The disk may report "full" for a reason that eviction does not cure (a
#: file-size limit), and the cache must not be emptied for it.
_TRIES_WHEN_FULL: Final = 2


class ReservedSpace(Protocol):
    """Disk space that is reserved for a fill."""

    def release(self) -> None:
        """Gives the space back. Repeatable."""


class Room(Protocol):
    """The part of the evictor that a flight uses."""

    async def reserve(self, size: int | None) -> ReservedSpace:
        """Reserves `size` bytes (None: unknown), evicting if needed. Raises `StoreFull`."""

    async def make_room(self, size: int) -> None:
        """Evicts at least `size` bytes after a write failed because the disk was full. Raises `StoreFull`."""


class Flight:
    """The transfer of one blob, as this process sees it."""

    def __init__(self, digest: Digest, upstream: str, size: int | None, on_behalf: object) -> None:
        self.digest = digest
        self.upstream = upstream
        #: The repository whose rights at upstream the flight uses and whose manifest gave the size.
        self.on_behalf = on_behalf
        self.caller = caller()
        #: Size of the whole blob in bytes; None while it is unknown.
        self.size = size
        #: Bytes from the start that may be sent to clients now.
        self.sendable = 0
        self.received = 0
        self.landed = False
        #: True if this process fills the file. If not, another process may still be publishing a blob that landed here.
        self.filled_here = False
        #: True if this process's fill ended with the blob in the store; the blob may have been dropped since.
        self.stored = False
        self.error: MirrorError | None = None
        self.followers = 0
        self.known: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        #: Set when the flight's task ends: the fill is committed or given up.
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
        """The reader of the growing file, shared by all followers. Raises `StoreError` before `known` is set."""
        if self._reader is None:
            raise StoreError(f"{self.digest} has no bytes yet")
        return self._reader

    async def beyond(self, position: int) -> int:
        """Waits until more than `position` bytes may be sent. Returns how many bytes from the start may be sent.

        Returns `position` or less if the blob has landed and has no more bytes. Raises the error of a failed flight.
        """
        while self.sendable <= position:
            if self.error:
                raise self.error.with_traceback(None)
            if self.landed:
                break
            await self._pulse.wait()
        return self.sendable

    def follow(self) -> None:
        """Adds a follower, who must `leave`."""
        self.followers += 1
        telemetry.FOLLOWERS.inc()

    def leave(self) -> None:
        """Removes a follower. If it is the last one and the flight is over, the file is closed."""
        self.followers -= 1
        telemetry.FOLLOWERS.dec()
        self._let_go()

    # ------------------------------------------------------------ called by the task that carries the flight

    def _look(self, ingest: Ingest) -> None:
        """Copies the present state of the ingest and wakes the followers."""
        # reset first: if the filling thread writes after this look, it must schedule another one
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
        """Wakes the followers, now or a little later with more bytes. Runs on the event loop after bytes have come."""
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
        """Returns the callback that the filling thread calls after each write.

        The callback is cheap and leaves at most one call pending on the event loop.
        """

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
            # mark the exception as retrieved: all joiners may have left
            self.known.exception()
        self._tell()

    def _end(self) -> None:
        self.over.set()
        self._let_go()

    def _let_go(self) -> None:
        if self.over.is_set() and not self.followers and self._reader:
            self._reader.close()


class _StoredBody:
    """The rest of a blob, read from the store instead of upstream. Implements `Body`."""

    def __init__(self, reader: BlobReader, start: int, size: int) -> None:
        self.start = start
        self.size: int | None = size
        self._reader = reader
        self._position = start
        self._aborted = False

    def readinto(self, buffer: memoryview) -> int:
        """Fills the buffer; returns the number of bytes, 0 at the end. Raises `StoreError`, also after `abort`."""
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
        """`executor` runs the threads that receive: each fill occupies one thread from upstream's headers to its end.

        `landed` is called with each blob that this process has published. `label` returns, for the metrics, the
        configured upstream that a registry belongs to. A fill waits `patience` seconds, measured by `clock`, for an
        upstream that does not answer.
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
        """Returns the flights under way, for display."""
        return tuple(self._flights.values())

    def digests(self) -> Collection[Digest]:
        """Returns the digests of all flights under way, which must not be evicted."""
        return {digest for _, digest in self._flights}

    def under_way(self, digest: Digest, upstream: str) -> bool:
        """True if this process has a flight of the digest from that registry."""
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
        """Returns the flight of a digest from `upstream` (the registry's name as clients write it) once upstream's
        headers, or the blob in the store, are there. Begins the flight if there is none.

        `size` is the size in bytes that a manifest gives (None: none does). The caller must `leave` the flight. Raises
        the error that kept the flight from starting: `UpstreamError`, `StoreFull`, `StoreError`. If an upstream error
        ends a flight that was begun on behalf of another repository or caller, a new flight is begun on behalf of this
        one.
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
                    # all joiners share the exception object: it must not collect their tracebacks
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
        """Cancels every flight: received bytes stay as partials, landed blobs are still published. Repeatable."""
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
                    # another process may have published the blob between the look above and the lock
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
                    # followers have been sent bytes of a file that was discarded
                    raise StoreError(f"{flight.digest} began anew while it was being followed")
            finally:
                ingest.close()

    async def _is_here(self, flight: Flight) -> bool:
        """Lands the flight if its blob is in the store. True if it is.

        Always False once `known` is set: the followers then read from another file.
        """
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
        """Returns the blob that is in the store, opened; the caller closes the reader. If it has another size than
        `size` (None: unknown), it is hashed first, and set aside if it is damaged. Raises `BlobUnknown`, `StoreError`.
        """
        while True:
            info, reader = self._store.open(digest)
            if info.size == size or await self._check(digest, reader):
                return info, reader

    async def _check(self, digest: Digest, reader: BlobReader) -> bool:
        return await self._in_thread(self._is_right, digest, reader, unwanted=lambda _right: reader.close())

    def _is_right(self, digest: Digest, reader: BlobReader) -> bool:
        """Blocking: True if the bytes hash to the digest. If not, the blob is set aside and the reader closed."""
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
        """Follows the file that another process fills. True if the flight has landed or this process has taken the
        lock; False if the file is gone. Raises `StoreError` if the file does not grow for too long.
        """
        pause = _LOOK_FIRST
        moved_at = time.monotonic()
        while True:
            if await self._is_here(flight):
                # another registry's flight may have published the blob before the headers of this one
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
                telemetry.log.info("fill taken over", digest=str(flight.digest), offset=ingest.offset)
                return True
            if not ingest.in_place:
                ingest.refresh()
                if ingest.verified:
                    continue
                return False
            if ingest.offset != before:
                moved_at = time.monotonic()
            elif time.monotonic() - moved_at > _STUCK + self._patience:
                # a process that gives up a fill releases the lock; this one hangs and still holds it
                raise StoreError(f"the process that fills {flight.digest} does not move")
            # look often until clients can be sent their first bytes, so that they wait no longer than for upstream
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
                # the blob is in the store, and no byte of this upstream was sent to a client
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
            # any byte may be wrong: the file is dropped, and the clients' connections break before the last bytes
            ingest.abort(keep=False)
            telemetry.UPSTREAM_ERRORS.labels(self._label(flight.upstream), DigestMismatch.__name__).inc()
            raise DigestMismatch(str(error), upstream=flight.upstream) from error
        except (UpstreamInvalid, BlobUnreadable):
            # a partial that cannot be read cannot be resumed either: the next fill begins a new file
            ingest.abort(keep=False)
            raise
        except StoreError as error:
            if not flight.landed:
                raise
            # the followers have the whole, verified blob; only the store lacks it
            telemetry.log.error("blob cannot be published", digest=str(flight.digest), reason=str(error))
        finally:
            flight._ingest = None
            telemetry.FLIGHTS.dec()
            telemetry.FILLED.labels(self._label(flight.upstream), result).inc()
            telemetry.FILL_SECONDS.labels(self._label(flight.upstream)).observe(time.monotonic() - began)

    async def _receive(self, flight: Flight, ingest: Ingest, pull: Pull, vouch: Vouch | None) -> bool:
        """Receives every byte from upstream, or the rest from the store if the blob is published meanwhile.

        True if the blob was published before upstream answered: the flight has landed and needs no ingest.
        """
        receiving = asyncio.create_task(self._receive_from_upstream(flight, ingest, pull, vouch))
        publishing = asyncio.create_task(self._wait_until_published(flight))
        try:
            await asyncio.wait({receiving, publishing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_and_wait(receiving, publishing)
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
            # a stored blob that cannot be opened is no reason to leave an upstream that sends it
            with suppress(BlobUnknown, StoreError):
                self._store.stat(flight.digest)
                return await self._open_right(flight.digest, flight.size)

    async def _receive_from_upstream(self, flight: Flight, ingest: Ingest, pull: Pull, vouch: Vouch | None) -> None:
        """Receives every byte, over as many upstream answers as needed."""
        if ingest.size is not None and ingest.offset == ingest.size:
            # another process died between the last byte and the commit; the file may be wrong
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
                            # before `expect`: followers take an announced size as proof that upstream has answered
                            await vouch(size)
                        ingest.expect(size)
                        flight._announce(ingest.reader)
                        flight._ingest = ingest
                        progress = flight.progress_from(asyncio.get_running_loop())
                        await self._take(flight, ingest, body, progress)
                        if disputed:
                            # the body may have been cut: its connection may still carry the rest, so do not reuse it
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
                    # other files took the reserved space; without more room the followers go on uncached
                    await self._room.make_room(_NOTICE_BYTES if flight.size is None else flight.size - ingest.offset)
                finally:
                    received = max(0, ingest.offset - before)
                    telemetry.UPSTREAM_BYTES.labels(self._label(flight.upstream)).inc(received)
        finally:
            if reservation:
                reservation.release()

    async def _wait_for(self, flight: Flight, error: UpstreamError, tries: Tries, now: float) -> float | None:
        """Returns the seconds until upstream is asked again; None: give up.

        A fill whose headers are known waits for `patience` seconds. One without headers gives up at once, so that its
        clients get a clean error, unless the outage is sudden or another process is receiving from this registry: then
        it waits until `patience` seconds of the outage have passed.
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
        """True if another process is receiving a blob from this flight's registry. False if the disk cannot tell."""
        with suppress(StoreError):
            return await self._in_thread(self._store.is_filling, flight.upstream, flight.digest)
        return False

    async def _take_from_store(self, flight: Flight, ingest: Ingest, info: BlobInfo, reader: BlobReader) -> None:
        """Copies the rest from the blob that was published meanwhile. Raises `UpstreamInvalid` if the sizes differ."""
        if flight.size not in (None, info.size):
            raise UpstreamInvalid(
                f"{flight.digest} has {flight.size} bytes upstream, and {info.size} in truth", upstream=flight.upstream
            )
        telemetry.log.info(
            "fill continues from store", digest=str(flight.digest), upstream=flight.upstream, offset=ingest.offset
        )
        ingest.expect(info.size)
        flight._ingest = ingest
        body = _StoredBody(reader, ingest.offset, info.size)
        progress = flight.progress_from(asyncio.get_running_loop())
        await self._in_thread(ingest.fill, body, progress, stop=body.abort)

    async def _take(self, flight: Flight, ingest: Ingest, body: Body, progress: Callable[[], None]) -> None:
        """Receives one body to its end. Raises `UpstreamError`, `StoreError`."""
        with telemetry.span("fill", mirror__upstream=flight.upstream, mirror__offset=ingest.offset):
            try:
                await self._in_thread(ingest.fill, body, progress, stop=body.abort)
            except UpstreamError as error:
                telemetry.UPSTREAM_ERRORS.labels(self._label(flight.upstream), type(error).__name__).inc()
                raise

    def _agree(self, flight: Flight, said: int | None) -> int | None:
        """Returns the size of the whole blob in bytes (None: unknown), given the size that upstream's answer says.

        Until clients have been given a size, upstream's answer overrides the manifest: the digest judges the bytes.
        Afterwards a different size raises `UpstreamInvalid`.
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
        """Runs blocking work in the executor and returns its result.

        If cancelled, calls `stop` and waits for the end of the work, because it uses this flight's files; its result is
        then passed to `unwanted`.
        """
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._executor, work, *arguments)
        return await uninterrupted(running, stop=stop, unwanted=unwanted)


def _is_unreachable(error: UpstreamError) -> bool:
    """True if upstream could not be reached at all: the next connection may succeed a moment later."""
    return isinstance(error, UpstreamUnavailable) and not isinstance(error, UpstreamTimeout) and error.status is None

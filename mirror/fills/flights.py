"""Transfers of blobs: one for each registry and digest over all processes that share a store, with any number of
followers.

The life cycle of a flight, as one process sees it:

    join() ──> STARTING ──┬─ in the store already ────────────────────────────────────────────> LANDED
                          ├─ lock taken: we are the filler ──> headers in ──> FILLING ── verified ─> LANDED ─> committed
                          └─ another process has the lock ───> FOLLOWING ─────────── verified ──> LANDED
                                   ^                               │
                                   └──── the filler died: its lock is free, go on at the file's size

    FAILED from any state. Before `announced`, `join` raises the error to every joiner, and each client gets a clean
    HTTP error. Afterwards the answer has begun: `wait_past` raises, and the client's connection is broken.

The task of a flight belongs to `Flights`, not to a client. A client that leaves, even the one that began the flight,
does not end it.

Registries do not share flights. The bytes that one registry sends may be slow, wrong or of another length, and must not
reach clients of another registry before they are verified. If another registry's flight or an import publishes the blob
meanwhile, the flight leaves its upstream and copies the rest from the store. The digest of the whole is still checked,
because the bytes received before may be wrong.

Clients are not sent the last bytes until the digest is verified, so a wrong blob is never delivered whole. The blob is
published (synced, renamed) after that: clients need not wait for the disk. If a source that is not the last one (a
bucket) gave wrong bytes, a successor begins at once, without it; only followers that were sent nothing go over to it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import Final

from mirror import telemetry
from mirror.aio.closing import close_all
from mirror.aio.singleflight import cancel_and_wait
from mirror.aio.threads import run_uninterrupted, uninterrupted
from mirror.caller import caller_mark
from mirror.errors import BlobUnknown, MirrorError, StoreError, UpstreamError
from mirror.fills.filler import Filler, open_verified
from mirror.fills.flight import Flight, InParts
from mirror.fills.looks import LOOK_FIRST, LOOK_LAST
from mirror.fills.sources import BlobSource, BlobSources, OnAnswer, Pull
from mirror.oci.digest import Digest
from mirror.policy.send_limit import may_send
from mirror.ports import BlobStore, Ingest

#: Seconds between two looks at a file that another process fills, and for how many seconds, until the first bytes of a
#: blob whose download has just begun are here: a near upstream takes less than `LOOK_FIRST` for them.
_LOOK_NEW: Final = 0.001
_NEW: Final = 0.05

#: Seconds without a new byte after which another process's fill counts as stuck, in addition to the seconds for which
#: it may wait for upstream. More than the sum of all time-outs and pauses between tries of a working fill.
_STUCK: Final = 120.0


class Flights:
    """All flights of this process."""

    def __init__(self, filler: Filler) -> None:
        """`filler` carries out those whose files this process has the lock of."""
        self._filler = filler
        self._flights: dict[tuple[str, Digest], Flight] = {}
        self._tasks: dict[asyncio.Task[None], Flight] = {}

    def __repr__(self) -> str:
        return f"<Flights {len(self._flights)} under way>"

    def active(self) -> Collection[Flight]:
        """Returns the flights under way, for display."""
        return tuple(self._flights.values())

    def digests(self) -> Collection[Digest]:
        """Returns the digests of all flights under way, which must not be evicted."""
        return {digest for _, digest in self._flights}

    def under_way(self, digest: Digest, upstream: str) -> bool:
        """True if this process has a flight of the digest from that registry."""
        return (upstream, digest) in self._flights

    def source_of(self, digest: Digest, upstream: str) -> BlobSource | None:
        """Returns the nearer source that this process's flight of the digest has opened, or opens; None if there is no
        such flight, or it is the registry's upstream.
        """
        flight = self._flights.get((upstream, digest))
        source = flight.sources.current if flight else None
        return source if source is not None and source.name else None

    async def offset(self, digest: Digest, upstream: str) -> int | None:
        """Returns how many bytes may be sent of a blob that this process or another one fetches; None if none does.
        Raises `StoreError`.
        """
        flight = self._flights.get((upstream, digest))
        if flight is not None:
            return flight.sendable
        grown = await run_uninterrupted(self._filler.executor, self._filler.store.filling, digest, upstream)
        return None if grown is None else may_send(grown.offset, grown.size, verified=grown.verified)

    async def join(
        self,
        digest: Digest,
        pull: Pull,
        *,
        upstream: str,
        size: int | None = None,
        on_answer: OnAnswer | None = None,
        on_behalf: object = None,
        store: BlobStore | None = None,
        in_parts: InParts = InParts.NO,
    ) -> Flight:
        """Returns the flight of a digest from `upstream` (the registry's name as clients write it) once upstream's
        headers, or the blob in the store, are there. Begins the flight if there is none.

        `pull` may be `BlobSources`. `size` is the size in bytes that a manifest gives (None: none does). `store` is
        where the blob is looked for and put, the same for all flights of a registry; None: the filler's. `in_parts`
        says whether bytes of it may come out of turn. The caller must `leave` the flight. Raises the error that kept
        the flight from starting: `UpstreamError`, `StoreFull`, `StoreError`. If an upstream error ends a flight that
        was begun on behalf of another repository or caller, a new flight is begun on behalf of this one.
        """
        while True:
            flight = self._flights.get((upstream, digest))
            if flight is None:
                sources = BlobSources.of(pull)
                flight = Flight(
                    digest, upstream, size, on_behalf, sources, self._filler.store if store is None else store
                )
                flight.in_parts = InParts.AHEAD if in_parts is InParts.NO and sources.parts else in_parts
                self._start(flight, on_answer)
            flight.follow()
            try:
                await asyncio.shield(flight.announced)
            except UpstreamError as error:
                flight.leave()
                if flight.on_behalf == on_behalf and flight.caller == caller_mark():
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

    def _start(self, flight: Flight, on_answer: OnAnswer | None) -> None:
        self._flights[flight.upstream, flight.digest] = flight
        task = asyncio.create_task(self._run(flight, on_answer), name=f"flight {flight.digest}")
        self._tasks[task] = flight
        task.add_done_callback(lambda ended: self._ended(ended, flight))

    def _ended(self, task: asyncio.Task[None], flight: Flight) -> None:
        del self._tasks[task]
        if not flight.over.is_set():
            # a task that is cancelled before it begins runs nothing that tells its joiners
            self._end(flight, StoreError("the mirror is stopping"))

    async def aclose(self) -> None:
        """Cancels every flight: received bytes stay as partials, landed blobs are still published. Repeatable."""
        ended = [task for task, flight in self._tasks.items() if not flight.landed]
        landed = [task for task, flight in self._tasks.items() if flight.landed]
        await close_all(
            lambda: cancel_and_wait(*ended),
            lambda: uninterrupted(asyncio.gather(*landed, return_exceptions=True)),
        )

    async def _run(self, flight: Flight, on_answer: OnAnswer | None) -> None:
        try:
            with telemetry.span("flight", mirror__upstream=flight.upstream, mirror__digest=str(flight.digest)) as span:
                await self._fill_or_follow(flight, on_answer)
                span.note(mirror__bytes=flight.size, mirror__filled_here=int(flight.filled_here))
        except MirrorError as error:
            if flight.again is not None:
                self._begin_again(flight, flight.again, on_answer)
            flight.fail(error)
        except asyncio.CancelledError:
            flight.fail(StoreError("the mirror is stopping"))
            raise
        except Exception as error:
            telemetry.log.exception("flight crashed", digest=str(flight.digest))
            flight.fail(StoreError(f"unexpected: {type(error).__name__}"))
        finally:
            self._end(flight)

    def _end(self, flight: Flight, error: MirrorError | None = None) -> None:
        if error is not None:
            flight.fail(error)
        if self._flights.get((flight.upstream, flight.digest)) is flight:
            del self._flights[flight.upstream, flight.digest]
        flight.end()

    def _begin_again(self, failed: Flight, sources: BlobSources, on_answer: OnAnswer | None) -> None:
        """Begins the flight that takes the place of one whose bytes were wrong: what its followers have was sent from
        these bytes, so most of them must ask again.
        """
        again = Flight(failed.digest, failed.upstream, failed.size, failed.on_behalf, sources, failed.store)
        again.caller = failed.caller
        failed.successor = again
        self._start(again, on_answer)

    async def _fill_or_follow(self, flight: Flight, on_answer: OnAnswer | None) -> None:
        while True:
            if await self._land_from_store(flight):
                return
            ingest = await run_uninterrupted(
                self._filler.executor,
                flight.store.ingest,
                flight.digest,
                flight.upstream,
                unwanted=lambda made: made.close(),
            )
            try:
                if ingest.try_lock():
                    # another process may have published the blob between the look above and the lock
                    if await self._land_from_store(flight):
                        ingest.abort(keep=False)
                        return
                    await self._filler.fill(flight, ingest, on_answer)
                    return
                if await self._follow(flight, ingest):
                    if not flight.landed:
                        await self._filler.fill(flight, ingest, on_answer)
                    return
                if flight.announced.done():
                    # followers have been sent bytes of a file that was discarded
                    raise StoreError(f"{flight.digest} was begun again while it was being followed")
            finally:
                ingest.close()

    async def _land_from_store(self, flight: Flight) -> bool:
        """Lands the flight if its blob is in the store. True if it is.

        Always False once the flight is announced: the followers then read from another file.
        """
        if flight.announced.done():
            return False
        try:
            info, reader = await open_verified(flight.store, self._filler.executor, flight.digest, flight.size)
        except BlobUnknown:
            return False
        flight.announce(lambda: reader)
        flight.land(info.size)
        return True

    async def _follow(self, flight: Flight, ingest: Ingest) -> bool:
        """Follows the file that another process fills. True if the flight has landed or this process has taken the
        lock; False if the file is gone. Raises `StoreError` if the file does not grow for too long.
        """
        pause = LOOK_FIRST
        began = moved_at = time.monotonic()
        while True:
            if await self._land_from_store(flight):
                # another registry's flight may have published the blob before the headers of this one
                return True
            before = ingest.offset
            ingest.refresh()
            if ingest.announced:
                if not flight.announced.done():
                    flight.size = ingest.size
                    flight.announce(ingest.reader)
                flight.copy_state(ingest)
            if ingest.verified and ingest.offset == ingest.size:
                flight.land(ingest.offset)
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
            elif time.monotonic() - moved_at > _STUCK + self._filler.patience:
                # a process that gives up a fill releases the lock; this one hangs and still holds it
                raise StoreError(f"the process that fills {flight.digest} makes no progress")
            # look often until clients can be sent their first bytes, so that they wait no longer than for upstream
            if not flight.sendable and time.monotonic() - began < _NEW:
                pause = _LOOK_NEW
            elif ingest.offset != before or not flight.sendable:
                pause = LOOK_FIRST
            else:
                pause = min(pause * 1.5, LOOK_LAST)
            await self._filler.sleep(pause)

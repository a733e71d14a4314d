"""Fills a growing blob on behalf of a flight, while this process has the lock of its file.

    bytes that are here ── hashed again ──> upstream, from there on ──┬──> verified ──> landed ──> published
                                              ^                       │
                                              └── broken off, down: ──┘      published by another flight or an import:
                                                  waits, asks again          the rest is copied from the store

"Upstream" is whatever the flight's sources are (`sources.py`); `fill_download.py` asks them, and waits for them.

The digest of the whole is checked in every case, because bytes received before may be wrong. The followers have the
whole blob once it is verified: they need not wait for the disk, which syncs and renames it after that.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextlib import suppress
from typing import Final, TypeVar

from mirror import telemetry
from mirror.aio.singleflight import cancel_and_wait
from mirror.aio.threads import run_uninterrupted
from mirror.errors import BlobDamaged, BlobUnknown, BlobUnreadable, DigestMismatch, StoreError, UpstreamInvalid
from mirror.fills.fill_download import FillDownload, FillTools, count_error
from mirror.fills.flight import Flight, InParts
from mirror.fills.further_connections import ConnectionMemory
from mirror.fills.out_of_turn import OutOfTurn
from mirror.fills.outages import Outages
from mirror.fills.room import Room
from mirror.fills.sources import OnAnswer
from mirror.graph.damage import hashes_to
from mirror.oci.digest import Digest
from mirror.ports import BlobInfo, BlobReader, BlobStore, Ingest

T = TypeVar("T")

#: Seconds between two checks whether another flight or an import has published a blob that is being filled.
_LOOK_FOR_PUBLISHED: Final = 0.25


class Filler:
    """The fills of one process."""

    def __init__(
        self,
        store: BlobStore,
        room: Room,
        executor: Executor,
        *,
        published: Callable[[BlobInfo, Flight], Awaitable[None]],
        label: Callable[[str], str] = str,
        found_wrong: Callable[[Digest, str, str], Awaitable[None]] | None = None,
        patience: float = 30.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`store` is the store of flights that name no other. `executor` runs the threads that receive: each fill
        occupies one thread from upstream's headers to its end.

        `published` is called with each blob that this process has published, and the flight that brought it. `label`
        returns, for the metrics, the configured upstream that a registry belongs to. `found_wrong` is called with the
        digest of each blob of a lazy route that was wrong, its registry, and what was wrong with it. A fill waits
        `patience` seconds, measured by `clock`, for an upstream that does not answer.
        """
        self.store = store
        self.executor = executor
        self.patience = patience
        self.sleep = sleep
        self._room = room
        self._published = published
        self._label = label
        self._found_wrong = found_wrong
        self._jitter = jitter
        self._clock = clock
        self._outages = Outages()
        #: How many connections were best for the blobs of each upstream.
        self.connections = ConnectionMemory(clock)

    async def fill(self, flight: Flight, ingest: Ingest, on_answer: OnAnswer | None) -> None:
        """Fills the ingest, whose lock this process has, and publishes the blob. Raises what ended the fill.

        If the bytes were wrong and the flight's sources allow another try, they are in `flight.again` then.
        """
        began = time.monotonic()
        result = "failed"
        flight.filled_here = True
        telemetry.FLIGHTS.inc()
        out_of_turn = None if flight.in_parts is InParts.NO else self._begin_out_of_turn(flight)
        try:
            await self._run(ingest.resume)
            if await self._download_or_copy(flight, ingest, on_answer, out_of_turn):
                # the blob is in the store, and no byte of this upstream was sent to a client
                ingest.abort(keep=False)
                flight.stored = True
                result = "stored"
                if out_of_turn:
                    await out_of_turn.settle(flight.reader)
                return
            await self._run(ingest.verify)
            flight.stop_watching()
            flight.land(ingest.offset)
            info = await self._run(ingest.commit)
            flight.stored = True
            await self._published(info, flight)
            if out_of_turn:
                await out_of_turn.settle(flight.reader)
            result = "stored"
        except BlobDamaged as error:
            # any byte may be wrong: the file is dropped, and the clients' connections break before the last bytes
            ingest.abort(keep=False)
            await self._report(flight, out_of_turn)
            if out_of_turn and out_of_turn.is_lazy and self._found_wrong is not None:
                await self._found_wrong(flight.digest, flight.upstream, str(error))
            if out_of_turn and out_of_turn.used:
                # bytes of several sources were put together: none is accused, and they are asked once more
                flight.again = flight.sources.again()
            else:
                flight.again = await flight.sources.accuse(str(error))
            count_error(flight, self._label(flight.upstream), DigestMismatch.__name__)
            raise DigestMismatch(str(error), upstream=flight.source or flight.upstream) from error
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
            if out_of_turn:
                out_of_turn.close()
            flight.stop_watching()
            telemetry.FLIGHTS.dec()
            telemetry.FILLED.labels(self._label(flight.upstream), result).inc()
            telemetry.FILL_SECONDS.labels(self._label(flight.upstream)).observe(time.monotonic() - began)

    async def _report(self, flight: Flight, out_of_turn: OutOfTurn | None) -> None:
        """The blob is wrong: drops its spans, and reports who was sent some of them. There may be some even if this
        fill looked for none (`out_of_turn` is None): its route was a lazy one before.
        """
        if out_of_turn:
            await out_of_turn.report()
        else:
            looked = self._begin_out_of_turn(flight)
            await looked.report()
            looked.close()

    def _begin_out_of_turn(self, flight: Flight) -> OutOfTurn:
        label = self._label(flight.upstream)
        return OutOfTurn(
            flight, self.executor, label=label, memory=self.connections, sleep=self.sleep, clock=self._clock
        )

    async def _download_or_copy(
        self, flight: Flight, ingest: Ingest, on_answer: OnAnswer | None, out_of_turn: OutOfTurn | None
    ) -> bool:
        """Receives every byte from upstream, or the rest from the store if the blob is published meanwhile.

        True if the blob was published before upstream answered: the flight has landed and needs no ingest.
        """
        receiving = asyncio.create_task(self._receive(flight, ingest, on_answer, out_of_turn))
        publishing = asyncio.create_task(self._wait_until_published(flight))
        try:
            await asyncio.wait({receiving, publishing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_and_wait(receiving, publishing)
        if publishing.cancelled():
            receiving.result()
            return False
        info, reader = publishing.result()
        if not flight.announced.done():
            flight.announce(lambda: reader)
            flight.land(info.size)
            return True
        try:
            if receiving.cancelled() or receiving.exception() is not None:
                await self._copy_from_store(flight, ingest, info, reader)
            return False
        finally:
            reader.close()

    async def _wait_until_published(self, flight: Flight) -> tuple[BlobInfo, BlobReader]:
        while True:
            await asyncio.sleep(_LOOK_FOR_PUBLISHED)
            # a stored blob that cannot be opened is no reason to leave an upstream that sends it
            with suppress(BlobUnknown, StoreError):
                flight.store.stat(flight.digest)
                return await open_verified(flight.store, self.executor, flight.digest, flight.size)

    async def _receive(
        self, flight: Flight, ingest: Ingest, on_answer: OnAnswer | None, out_of_turn: OutOfTurn | None
    ) -> None:
        """Receives every byte that is not here."""
        if not await self._verify_whole_partial(flight, ingest, out_of_turn):
            tools = FillTools(
                self.executor,
                self._room,
                self._label(flight.upstream),
                self._outages,
                patience=self.patience,
                sleep=self.sleep,
                jitter=self._jitter,
                clock=self._clock,
            )
            await FillDownload(flight, ingest, on_answer, out_of_turn, tools).run()

    async def _verify_whole_partial(self, flight: Flight, ingest: Ingest, out_of_turn: OutOfTurn | None) -> bool:
        """True if the partial has every byte, and they are right: another process has died between the last byte and
        the commit. Wrong bytes are dropped.
        """
        if ingest.size is None or ingest.offset != ingest.size:
            return False
        try:
            await self._run(ingest.verify)
        except BlobDamaged:
            if flight.announced.done():
                raise
            await self._report(flight, out_of_turn)
            await self._run(ingest.restart)
            return False
        flight.announce(ingest.reader)
        return True

    async def _copy_from_store(self, flight: Flight, ingest: Ingest, info: BlobInfo, reader: BlobReader) -> None:
        """Copies the rest from the blob that was published meanwhile. Raises `UpstreamInvalid` if the sizes differ."""
        if flight.size not in (None, info.size):
            raise UpstreamInvalid(
                f"{flight.digest} has {info.size} bytes, but upstream says {flight.size}", upstream=flight.upstream
            )
        telemetry.log.info(
            "fill continues from store", digest=str(flight.digest), upstream=flight.upstream, offset=ingest.offset
        )
        ingest.expect(info.size)
        body = _StoredBody(reader, ingest.offset, info.size)
        await self._run(ingest.fill, body, flight.watch(ingest), stop=body.abort)

    async def _run(self, work: Callable[..., T], *arguments: object, stop: Callable[[], None] | None = None) -> T:
        return await run_uninterrupted(self.executor, work, *arguments, stop=stop)


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


async def open_verified(
    store: BlobStore, executor: Executor, digest: Digest, size: int | None
) -> tuple[BlobInfo, BlobReader]:
    """Returns the blob that is in the store, opened; the caller closes the reader. If it has another size than `size`
    (None: unknown), it is hashed first, and set aside if it is damaged. Raises `BlobUnknown`, `StoreError`.
    """
    while True:
        info, reader = store.open(digest)
        if info.size == size or await _hash(store, executor, digest, reader):
            return info, reader


async def _hash(store: BlobStore, executor: Executor, digest: Digest, reader: BlobReader) -> bool:
    return await run_uninterrupted(executor, _verify, store, digest, reader, unwanted=lambda _: reader.close())


def _verify(store: BlobStore, digest: Digest, reader: BlobReader) -> bool:
    """Blocking: True if the bytes hash to the digest. If not, the blob is set aside and the reader closed."""
    try:
        sound = hashes_to(reader, digest)
        if not sound and store.set_aside(digest, reader):
            telemetry.log.error("damaged blob set aside", digest=str(digest), reason="found by a flight")
    except BaseException:
        reader.close()
        raise
    if not sound:
        reader.close()
    return sound

"""Flights of one process over a store, and an upstream for them whose bodies stop at a gate."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from mirror.errors import StoreFull, UpstreamUnavailable
from mirror.fills.filler import Filler
from mirror.fills.flight import Flight
from mirror.fills.flights import Flights
from mirror.fills.room import ReservedSpace
from mirror.oci.digest import Digest
from mirror.ports import BlobInfo, BlobStore, Body

CONTENT = bytes(range(256)) * 4096
DIGEST = Digest.of(CONTENT)
SIZE = len(CONTENT)
HALF = SIZE // 2


class GatedBody:
    """A body whose reader waits at a gate in the middle, and may meet trouble behind it."""

    def __init__(self, upstream: GatedUpstream, start: int, stop: int | None = None) -> None:
        self.start = start
        self.size: int | None = upstream.says
        self._upstream = upstream
        self._position = start
        self._stop = len(upstream.content) if stop is None else min(stop, len(upstream.content))
        self._aborted = threading.Event()

    def readinto(self, buffer: memoryview) -> int:
        """Up to the gate, then behind it."""
        upstream = self._upstream
        if self._position >= upstream.gate_at:
            while not upstream.gate.wait(0.01):
                if self._aborted.is_set():
                    raise UpstreamUnavailable("given up", upstream="test")
            if upstream.troubles:
                raise upstream.troubles.pop(0)
        stop = min(upstream.gate_at, self._stop) if self._position < upstream.gate_at else self._stop
        piece = upstream.content[self._position : min(stop, self._position + len(buffer), self._position + 50_000)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def abort(self) -> None:
        """Wakes the reader."""
        self._aborted.set()
        self._upstream.aborted += 1


class GatedUpstream:
    """Gives one blob; counts who asked and from where."""

    def __init__(self, content: bytes = CONTENT, *, gate_at: int = HALF, is_open: bool = False) -> None:
        self.content = content
        self.gate_at = gate_at
        self.gate = threading.Event()
        if is_open:
            self.gate.set()
        self.says: int | None = len(content)
        self.starts: list[int] = []
        self.stops: list[int | None] = []
        self.troubles: list[Exception] = []
        self.refusals: list[Exception] = []
        self.aborted = 0

    @asynccontextmanager
    async def pull(self, start: int, stop: int | None = None) -> AsyncIterator[Body]:
        """As `Pull`."""
        self.starts.append(start)
        self.stops.append(stop)
        if self.refusals:
            raise self.refusals.pop(0)
        yield GatedBody(self, start, stop)


class EndlessRoom:
    """A store that has room, unless told otherwise."""

    def __init__(self) -> None:
        self.reserved: list[int | None] = []
        self.open = 0
        self.made: list[int] = []
        self.full = False

    async def reserve(self, size: int | None) -> ReservedSpace:
        """As `Room`."""
        if self.full:
            raise StoreFull("pins leave no room")
        self.reserved.append(size)
        self.open += 1
        room = self

        class Held:
            def release(self) -> None:
                room.open -= 1

        return Held()

    async def make_room(self, size: int) -> None:
        """As `Room`."""
        self.made.append(size)
        if self.full:
            raise StoreFull("pins leave no room")


class Hangar:
    """Flights of one process over a store."""

    def __init__(self, store: BlobStore, executor: ThreadPoolExecutor, patience: float = 30.0) -> None:
        self.room = EndlessRoom()
        self.landed: list[BlobInfo] = []
        self.slept: list[float] = []

        async def note(info: BlobInfo, flight: Flight) -> None:
            self.landed.append(info)

        async def nap(seconds: float) -> None:
            self.slept.append(seconds)
            await asyncio.sleep(0)

        self.wrong: list[tuple[Digest, str]] = []

        async def is_wrong(digest: Digest, registry: str, reason: str) -> None:
            self.wrong.append((digest, registry))

        self.flights = Flights(
            Filler(
                store,
                self.room,
                executor,
                published=note,
                found_wrong=is_wrong,
                patience=patience,
                sleep=nap,
                jitter=lambda: 0.5,
            )
        )

    async def join(
        self, upstream: GatedUpstream, size: int | None = None, digest: Digest = DIGEST, registry: str = "test"
    ) -> Flight:
        """A follower of that upstream's blob."""
        return await self.flights.join(digest, upstream.pull, upstream=registry, size=size)


async def reached(condition: Callable[[], bool]) -> None:
    """Wait for something that other tasks and threads bring about."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # threads and other processes set no event
            await asyncio.sleep(0.001)

"""Steps of long work run in threads, their end included: they may wait for a bucket."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Iterator

from mirror.collection.blob_pass import BlobPass
from mirror.collection.collection_report import CollectionReport
from mirror.collection.pace import Pace, run_paced
from mirror.policy.hosted.collection import ClockReading
from mirror.policy.hosted_records import QueuedBlob
from tests.support.memory_hosting import MemoryHostedBlobs
from tests.support.memory_store import MemoryStore


class Lease:
    """A lease that lasts until the test ends it."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()

    def release(self) -> None:
        """See `mirror.ports.Lease`."""


async def test_what_steps_do_at_the_end_is_not_done_on_the_loop() -> None:
    threads = []
    lease = Lease()

    def steps() -> Generator[None]:
        try:
            yield
            yield
        finally:
            threads.append(threading.get_ident())

    async def lose(_: float) -> None:
        lease.lost.set()

    assert not await run_paced(steps(), lease, lose)  # type: ignore[arg-type]
    assert len(threads) == 1
    assert threading.get_ident() not in threads


async def test_the_search_for_what_waits_ends_with_the_lease() -> None:
    """Among blobs of which none waits, in a bucket that has no end."""
    looked: list[int] = []
    lease = Lease()

    class Endless(MemoryHostedBlobs):
        def queued_pages(self) -> Iterator[list[QueuedBlob]]:
            while True:
                looked.append(1)
                yield []

    async def lose(_: float) -> None:
        if len(looked) == 3:
            lease.lost.set()

    def now() -> ClockReading:
        return ClockReading(1000.0, 1000.0)

    blobs = BlobPass(Endless(MemoryStore()), 10.0, now, CollectionReport(1000.0), Pace())
    assert not await run_paced(blobs.candidates(), lease, lose)  # type: ignore[arg-type]
    assert len(looked) == 3

"""Looks at journals that many pulls await at the same time."""

from __future__ import annotations

import asyncio
import threading

import pytest

from mirror.aio.bounded_threads import BoundedThreads
from mirror.errors import BucketUnavailable
from mirror.hosting.journal_looks import JournalLooks
from mirror.ports import Look

NAME = "journals/names/corp/app"


class Journals:
    """Journals whose looks wait until the test lets them go on; nothing else can be said of them."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.refused = threading.Semaphore(0)
        self.going_on = threading.Semaphore(0)
        self.looks = 0
        self.counts = True
        self.is_down = False

    def look(self, name: str, age: float, *, patient: bool) -> bool:
        if self.is_down:
            self.refused.release()
            raise BucketUnavailable("the bucket does not answer")
        self.looks += 1
        counts = self.counts
        self.begun.release()
        self.going_on.acquire()
        return counts

    def young(self, name: str, age: float) -> bool | None:
        return None

    def believed(self, name: str) -> None:
        """Everything is."""

    def not_answered(self) -> None:
        self.is_down = True


@pytest.fixture
def journals() -> Journals:
    """Nothing was looked at."""
    return Journals()


def busy() -> BucketUnavailable:
    return BucketUnavailable("too many wait")


async def test_a_crowd_takes_one_thread(journals: Journals) -> None:
    """However few threads there are, nobody is answered from what was so before."""
    threads = BoundedThreads("looks", 1, 0, busy)
    looks = JournalLooks(journals, threads, 0.0)
    asking = [asyncio.create_task(looks.look(NAME)) for _ in range(300)]
    await asyncio.to_thread(journals.begun.acquire)
    journals.going_on.release()
    assert set(await asyncio.gather(*asking)) == {Look.COUNTS}
    assert journals.looks == 1
    threads.shutdown()


async def test_who_asks_later_gets_a_look_that_began_later(journals: Journals) -> None:
    """A look that has begun may have been answered before another replica's change."""
    threads = BoundedThreads("looks", 2, 0, busy)
    looks = JournalLooks(journals, threads, 0.0)
    first = asyncio.create_task(looks.look(NAME))
    await asyncio.to_thread(journals.begun.acquire)
    journals.counts = False
    later = [asyncio.create_task(looks.look(NAME)) for _ in range(3)]
    await asyncio.sleep(0)
    journals.going_on.release()
    assert await first is Look.COUNTS
    await asyncio.to_thread(journals.begun.acquire)
    journals.going_on.release()
    assert set(await asyncio.gather(*later)) == {Look.CHANGING}
    assert journals.looks == 2
    threads.shutdown()


async def test_nobody_waits_behind_a_look_that_takes_too_long(journals: Journals) -> None:
    """The next pull asks again, and learns at once that the bucket is down."""
    threads = BoundedThreads("looks", 2, 0, busy)
    looks = JournalLooks(journals, threads, 0.0, patience=0.0)
    assert await looks.look(NAME) is Look.OLD
    await asyncio.to_thread(journals.begun.acquire)
    assert journals.is_down
    assert await looks.look(NAME) is Look.OLD
    assert await asyncio.to_thread(journals.refused.acquire, timeout=60.0)
    journals.going_on.release()
    threads.shutdown()

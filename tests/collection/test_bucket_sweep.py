"""When the bucket is swept, how quickly, and how a sweep goes on that was interrupted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path

import pytest

from mirror.collection.bucket_sweep import BucketSweeper
from mirror.collection.grace_clock import GraceClock
from mirror.collection.sweep_report import SweepReport
from mirror.errors import BucketUnavailable
from mirror.ports import Leftovers, SweptPage
from mirror.store.local.blobs import LocalStore
from mirror.store.local.json_records import JsonRecords
from mirror.store.local.layout import Layout
from mirror.store.local.locks import FileLocks

GRACE = 100.0
EVERY = 600.0


class _Sweep:
    """Four pages of ten objects; the page whose number is in `fails` fails."""

    def __init__(self) -> None:
        self.fails: set[int] = set()
        #: Behind which key each sweep began.
        self.begun: list[str] = []

    def pages(self, after: str) -> Generator[SweptPage]:
        self.begun.append(after)
        for number in range(int(after or 0) + 1, 5):
            if number in self.fails:
                self.fails.remove(number)
                raise BucketUnavailable("down")
            yield SweptPage(str(number), objects=10, bytes=1000, deleted=1, deleted_bytes=100, lost=number == 4)

    def leftovers(self) -> Leftovers:
        return Leftovers(3, 2)


class _Site:
    def __init__(self, root: Path) -> None:
        layout = LocalStore(Layout(root)).layout
        self.sweep = _Sweep()
        self.records = JsonRecords(layout, "collection")
        self.locks = FileLocks(layout, secret="a test")
        self.time = 1000.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds

    def sweeper(self, sleep: Callable[[float], Awaitable[None]] | None = None) -> BucketSweeper:
        clock = GraceClock(lambda: self.time, lambda: self.time, GRACE)
        return BucketSweeper(self.sweep, self.locks, self.records, clock, rate=5, sleep=sleep or self.sleep)


@pytest.fixture
def site(tmp_path: Path) -> _Site:
    """Never swept."""
    return _Site(tmp_path)


async def test_a_sweep_is_reported(site: _Site) -> None:
    """To every process; and it takes its time."""
    report = await site.sweeper().run()
    assert report
    assert (report.objects, report.bytes, report.deleted, report.lost) == (40, 4000, 4, 1)
    assert (report.uploads_aborted, report.probes_deleted, report.done) == (3, 2, 1.0)
    assert report.begun_at == 1000.0
    assert report.ended_at == 1008.0
    assert site.slept == [2.0] * 4
    assert site.sweep.begun == [""]
    assert site.sweeper().last() == report


async def test_113_a_sweep_goes_on_after_a_failure(site: _Site) -> None:
    """Row 113: in another process, behind the last page that was done."""
    site.sweep.fails = {3}
    with pytest.raises(BucketUnavailable):
        await site.sweeper().run()
    interrupted = site.sweeper().last()
    assert interrupted
    assert (interrupted.ended_at, interrupted.after, interrupted.objects) == (None, "2", 20)
    report = await site.sweeper().run()
    assert report
    assert site.sweep.begun == ["", "2"]
    assert (report.objects, report.begun_at) == (40, 1000.0)
    assert report.ended_at
    assert await site.sweeper().run()
    assert site.sweep.begun[-1] == ""


async def test_one_process_sweeps(site: _Site) -> None:
    """The others leave it alone."""
    lease = await site.locks.try_hold("sweep")
    assert lease
    assert await site.sweeper().run() is None
    lease.release()
    assert await site.sweeper().run()


async def test_a_sweep_is_due_some_time_after_the_last_one(site: _Site) -> None:
    """The next look comes within a minute, and one that failed is tried again."""
    site.sweep.fails = {2}

    async def sleep(seconds: float) -> None:
        await site.sleep(seconds)
        if site.time > 1000.0 + 3 * EVERY:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await site.sweeper(sleep).run_when_due(EVERY)
    assert max(site.slept) == 60.0
    assert site.sweep.begun == ["", "1", "", ""]


@pytest.mark.parametrize(
    ("after", "done"), [("", 0.0), ("hosted/sha256/80/80ab", 0.5), ("hosted/sha512/00/00ab", 1.0), ("odd", 0.0)]
)
def test_how_far_a_sweep_has_come(after: str, done: float) -> None:
    """Digests are spread evenly."""
    assert SweepReport(1.0, after=after).done == done

"""When the collector runs, what it leaves behind, and when a round ends early."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path

import pytest

from mirror.collection.collection_report import CollectionReport
from mirror.collection.collector import GarbageCollector
from mirror.collection.grace_clock import GraceClock
from mirror.collection.marks import Marks
from mirror.collection.when_due import seconds_left
from mirror.errors import StoreError
from mirror.oci.digest import Digest
from mirror.ports import Records
from mirror.store.local.blobs import LocalStore
from mirror.store.local.json_records import JsonRecords
from mirror.store.local.layout import Layout
from mirror.store.local.locks import FileLocks
from tests.support.clock import Clock
from tests.support.collecting import APP, GRACE, CollectedWorld


class _Lease:
    """A lock that another process takes after some steps."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        self.released = False

    def fence(self, records: Records) -> Records:
        return records

    def release(self) -> None:
        self.released = True

    def __enter__(self) -> _Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class _Leases:
    def __init__(self, lease: _Lease) -> None:
        self.lease = lease

    def hold(self, name: str) -> _Lease:
        raise NotImplementedError

    async def try_hold(self, name: str) -> _Lease:
        return self.lease

    async def is_held(self, name: str) -> bool:
        return False


class _Enough(Exception):
    """The test has seen enough."""


class _Site:
    def __init__(self, root: Path) -> None:
        self.world = CollectedWorld()
        self.layout = Layout(root)
        LocalStore(self.layout)
        self.rounds = JsonRecords(self.layout, "collection")
        self.reports: list[CollectionReport] = []

    def collector(
        self,
        locks: object = None,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        check: Callable[[], None] = lambda: None,
    ) -> GarbageCollector:
        world = self.world
        return GarbageCollector(
            world.parts,
            world.rules,
            locks or FileLocks(self.layout, secret="a test"),  # type: ignore[arg-type]  # a lease that can be lost
            self.rounds,
            world.grace_clock,
            ended=self.reports.append,
            sleep=sleep,
            check=check,
        )


@pytest.fixture
def site(tmp_path: Path) -> _Site:
    """Hosted content in memory, and locks and reports on the disk."""
    return _Site(tmp_path)


async def test_a_round_is_reported(site: _Site) -> None:
    """To every process, and to whoever asked."""
    site.world.push_image(APP, b"one")
    report = await site.collector().run()
    assert report is not None
    assert (report.complete, report.repositories, report.manifests) == (True, 1, 1)
    assert site.reports == [report]
    assert site.collector().last() == report


async def test_two_processes_take_turns(site: _Site) -> None:
    """The second one has nothing to do."""
    locks = FileLocks(site.layout, secret="a test")
    lease = await locks.try_hold("collect")
    assert lease is not None
    assert await site.collector().run() is None
    lease.release()
    assert await site.collector().run() is not None


async def test_a_lost_lease_ends_the_round(site: _Site) -> None:
    """What was done stays; the rest is for the process that has the lease now."""
    site.world.push_image(APP, b"one")
    lease = _Lease()
    lease.lost.set()
    report = await site.collector(_Leases(lease)).run()
    assert report is not None
    assert not report.complete
    assert lease.released
    assert site.reports == [report]


async def test_a_cancelled_round_releases_the_lock(site: _Site) -> None:
    """As when the server stops."""
    site.world.push_image(APP, b"one")
    task = asyncio.create_task(site.collector().run())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await site.collector().run() is not None


async def test_it_runs_when_it_is_due(site: _Site) -> None:
    """After the time of the setting since the end of the last round, whichever process did it."""
    world, waits = site.world, []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        world.passes(seconds)
        if len(waits) > 200:
            raise _Enough

    with pytest.raises(_Enough):
        await site.collector(sleep=sleep).run_when_due(600.0)
    begun = [report.begun_at for report in site.reports]
    assert len(begun) > 5
    assert all(599 <= later - earlier <= 661 for earlier, later in pairwise(begun))


@pytest.mark.parametrize(("every", "pause"), [(600.0, 60.0), (60.0, 60.0), (10.0, 10.0), (0.01, 1.0)])
@pytest.mark.parametrize("why", ["another is at it", "it fails"])
async def test_it_looks_again_as_often_as_rounds_are_due(site: _Site, every: float, pause: float, why: str) -> None:
    """Where another process is at it, which may die, and after an error: within a minute, and no busy loop."""
    site.world.push_image(APP, b"one")
    waits = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        raise _Enough

    def broken() -> None:
        raise StoreError("no bucket")

    locks = FileLocks(site.layout, secret="a test")
    lease = await locks.try_hold("collect") if why == "another is at it" else None
    collector = site.collector(locks, sleep=sleep) if lease else site.collector(locks, sleep=sleep, check=broken)
    with pytest.raises(_Enough):
        await collector.run_when_due(every)
    assert waits == [pause]


@pytest.mark.parametrize("step", [0.0, -1e-9, -0.5, -1.0])
def test_a_clock_that_is_corrected_makes_no_round_due(step: float) -> None:
    """The round that has just ended seems to lie in the future by as much as the correction."""
    wall, steady = Clock(), Clock(0.0)
    clock = GraceClock(wall, steady, GRACE)
    ended_at = clock.read().later
    wall.time += step
    assert seconds_left(clock, ended_at, 600.0) == 600.0
    steady.time += 60.0
    wall.time += 60.0
    assert seconds_left(clock, ended_at, 600.0) == pytest.approx(540.0 - step)


async def test_a_round_of_the_future_is_no_reason_to_wait(site: _Site) -> None:
    """A wrong clock has dated it."""
    future = CollectionReport(site.world.clock() + 1e9, ended_at=site.world.clock() + 1e9)
    site.rounds.put("last", future.to_json())

    async def stop(seconds: float) -> None:
        if site.reports:
            raise _Enough

    with pytest.raises(_Enough):
        await site.collector(sleep=stop).run_when_due(600.0)
    assert len(site.reports) == 1


def test_marks_are_found_again() -> None:
    """Those that were added, and no others."""
    marks = Marks()
    digests = [Digest.of(b"%d" % number) for number in range(2000)]
    for digest in digests[:1000]:
        marks.add(digest)
    assert all(digest in marks for digest in digests[:1000])
    assert not any(digest in marks for digest in digests[1000:])
    marks.add(digests[1000])
    assert digests[1000] in marks


@pytest.mark.parametrize("jump", [-1e8, -GRACE, GRACE, 1e8])
def test_the_clock_is_believed_again_after_the_grace_time(jump: float) -> None:
    """Until then, ages are judged by the earlier time, and moments recorded by the later."""
    wall, steady = Clock(1_000_000.0), Clock(0.0)
    clock = GraceClock(wall, steady, GRACE)
    assert clock.read().earlier == clock.read().later == wall()
    wall.time += jump
    for _ in range(2):
        reading = clock.read()
        assert (reading.earlier, reading.later) == (min(wall(), wall() - jump), max(wall(), wall() - jump))
        wall.time += GRACE - 1
        steady.time += GRACE - 1
    assert clock.read().earlier == clock.read().later == wall()


def test_small_corrections_are_followed() -> None:
    """They are no jumps."""
    wall, steady = Clock(1_000_000.0), Clock(0.0)
    clock = GraceClock(wall, steady, GRACE)
    for _ in range(5):
        wall.time += 0.5
        assert clock.read().earlier == clock.read().later == wall()

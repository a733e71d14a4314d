"""Leases in a bucket: who has them, who takes them over, and what a holder notices that was frozen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from mirror.errors import BucketUnavailable, LeaseLost
from mirror.leases.bucket_leases import BucketLease, BucketLeases, LeaseBoard, LeaseTimes, key_of
from mirror.leases.work_locks import WorkLocks
from mirror.ports import ABSENT, Locks, Records
from mirror.store.local.blobs import LocalStore
from mirror.store.local.json_records import JsonRecords
from mirror.store.local.layout import Layout
from mirror.store.local.locks import FileLocks
from tests.support.clock import Clock
from tests.support.locks_suite import LocksSuite
from tests.support.memory_bucket import MemoryBucket

_QUICK = LeaseTimes(ask_again=0.01)


class _Replica:
    """A replica with a clock of its own. Its leases are renewed when the test says so."""

    def __init__(self, bucket: MemoryBucket, name: str) -> None:
        self.clock = Clock(1000.0)
        self._due = asyncio.Event()
        self._renewed = self._asleep = 0
        self.leases = BucketLeases(bucket, name, clock=self.clock, now=lambda: 5000.0, sleep=self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self._renewed += 1
        self._asleep += 1
        try:
            await self._due.wait()
        finally:
            self._asleep -= 1
        self._due.clear()

    async def renew(self) -> None:
        """Let the leases be renewed, and wait until they are, or are lost."""
        # a lease that was taken just now waits for its renewal a moment later
        await self._until(lambda: self._asleep > 0)
        before = self._renewed
        self._due.set()
        await self._until(lambda: self._renewed > before)

    async def _until(self, happened: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            # a renewal may also end without any sign
            while not happened() and any(not lease.lost.is_noted for lease in self.held):  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    @property
    def held(self) -> list[BucketLease]:
        return list(self.leases._held.values())

    async def take(self) -> BucketLease:
        """Take the lease, which must be free."""
        lease = await self.leases.try_hold("sweep")
        assert lease is not None
        return lease


@pytest.fixture
def bucket() -> MemoryBucket:
    return MemoryBucket()


@pytest.fixture
async def replica(bucket: MemoryBucket) -> AsyncIterator[Callable[[str], _Replica]]:
    """Makes replicas, and ends them."""
    made: list[_Replica] = []

    def make(name: str) -> _Replica:
        made.append(_Replica(bucket, name))
        return made[-1]

    yield make
    bucket.down = False
    for one in made:
        await one.leases.aclose()


class TestBucketLeases(LocksSuite):
    """One bucket, several replicas."""

    @pytest.fixture
    async def process(self, bucket: MemoryBucket) -> AsyncIterator[Callable[[], Locks]]:
        made: list[BucketLeases] = []

        def make() -> BucketLeases:
            made.append(BucketLeases(bucket, f"replica {len(made)}", times=_QUICK))
            return made[-1]

        yield make
        for one in made:
            await one.aclose()


class TestWorkLocks(LocksSuite):
    """Locks of a machine with leases of a cluster: processes of several machines."""

    @pytest.fixture
    async def process(self, bucket: MemoryBucket, tmp_path: Path) -> AsyncIterator[Callable[[], Locks]]:
        made: list[BucketLeases] = []
        layouts = [LocalStore(Layout(tmp_path / str(number))).layout for number in range(3)]

        def make() -> WorkLocks:
            made.append(BucketLeases(bucket, f"replica {len(made)}", times=_QUICK))
            return WorkLocks(FileLocks(layouts[len(made) % 3]), made[-1], lambda name: True)

        yield make
        for one in made:
            await one.aclose()


async def test_the_lease_of_a_dead_replica_is_taken_after_twenty_seconds(
    replica: Callable[[str], _Replica], bucket: MemoryBucket
) -> None:
    """Counted by the clock of whoever takes it, from its first look on."""
    first, second = replica("first"), replica("second")
    second.clock.time = 2e9  # the clocks have nothing to do with each other
    await first.take()
    assert await second.leases.try_hold("sweep") is None
    second.clock.time += 19.9
    assert await second.leases.try_hold("sweep") is None
    assert await second.leases.is_held("sweep")
    second.clock.time += 0.1
    assert not await second.leases.is_held("sweep")
    with capture_logs() as logs:
        await second.take()
    assert [(each["event"], each["lease"], each["holder"]) for each in logs] == [("lease taken over", "sweep", "first")]
    shown = LeaseBoard(bucket, {"sweep": "a sweep", "other": "nobody's"}).states()
    assert [(state.name, state.holder, state.since) for state in shown] == [("a sweep", "second", 5000.0)]


async def test_a_lease_that_is_renewed_stays(replica: Callable[[str], _Replica]) -> None:
    """However often others look, and however quick their clocks are."""
    first, second = replica("first"), replica("second")
    lease = await first.take()
    for _ in range(5):
        assert await second.leases.try_hold("sweep") is None
        second.clock.time += 1e6
        await first.renew()
    assert not lease.lost.is_set()
    assert await second.leases.try_hold("sweep") is None


async def test_a_holder_that_was_frozen_knows_at_its_first_look(replica: Callable[[str], _Replica]) -> None:
    """Before it has asked anybody; whoever waits for it learns it at the next renewal."""
    first = replica("first")
    lease = await first.take()
    first.clock.time += 15.0
    assert not lease.lost.is_set()
    first.clock.time += 0.1
    assert lease.lost.is_set()
    with capture_logs() as logs:
        await first.renew()
        await lease.lost.wait()
    assert [each["event"] for each in logs] == ["lease lost"]


async def test_a_holder_notices_that_another_has_taken_its_lease(replica: Callable[[str], _Replica]) -> None:
    """And changes nothing of the other's lease, also when it releases its own."""
    first, second = replica("first"), replica("second")
    lease = await first.take()
    assert await second.leases.try_hold("sweep") is None
    second.clock.time += 20.0
    taken = await second.take()
    assert not lease.lost.is_set()
    with capture_logs():
        await first.renew()
    assert lease.lost.is_set()
    lease.release()
    await first.leases.aclose()
    await second.renew()
    assert not taken.lost.is_set()


async def test_a_bucket_that_is_down_costs_the_lease_after_fifteen_seconds(
    replica: Callable[[str], _Replica], bucket: MemoryBucket
) -> None:
    """Not at the first renewal that fails."""
    first = replica("first")
    lease = await first.take()
    bucket.down = True
    first.clock.time += 14.0
    await first.renew()
    assert not lease.lost.is_set()
    bucket.down = False
    await first.renew()
    first.clock.time += 14.0
    assert not lease.lost.is_set()
    bucket.down = True
    first.clock.time += 2.0
    assert lease.lost.is_set()


@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
async def test_whoever_waits_for_the_loss_learns_it_after_any_error(
    replica: Callable[[str], _Replica], monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """A renewal that fails with an error that nobody expects is not the last look at the time."""
    first = replica("first")
    lease = await first.take()
    waiting = asyncio.create_task(lease.lost.wait())

    def renew() -> bool:
        raise error

    monkeypatch.setattr(lease, "renew", renew)
    with capture_logs() as lines:
        await first.renew()
    assert [line["event"] for line in lines] == ["renewal of a lease crashed"]
    assert not waiting.done()
    first.clock.time += 16.0
    await first.renew()
    await waiting


async def test_a_renewal_whose_answer_was_lost_is_found(
    replica: Callable[[str], _Replica], bucket: MemoryBucket
) -> None:
    """The holder goes on with the version that it has written itself."""
    first = replica("first")
    lease = await first.take()
    bucket.fail("write", done=True)
    await first.renew()
    await first.renew()
    await first.renew()
    assert not lease.lost.is_set()


async def test_a_released_lease_is_free_at_once(replica: Callable[[str], _Replica], bucket: MemoryBucket) -> None:
    """Without twenty seconds; nobody is named as its holder any more."""
    first, second = replica("first"), replica("second")
    lease = await first.take()
    lease.release()
    await first.leases.aclose()
    assert LeaseBoard(bucket, {"sweep": ""}).states() == []
    await second.take()


async def test_a_damaged_lease_is_taken_when_nobody_renews_it(
    replica: Callable[[str], _Replica], bucket: MemoryBucket
) -> None:
    """It may be somebody's."""
    bucket.write(key_of("sweep"), b"{")
    first = replica("first")
    assert await first.leases.try_hold("sweep") is None
    first.clock.time += 20.0
    await first.take()


async def test_a_lease_that_cannot_be_asked_for_leaves_the_own_lock_free(
    replica: Callable[[str], _Replica], bucket: MemoryBucket, tmp_path: Path
) -> None:
    """And what is not shared needs no bucket."""
    own = FileLocks(LocalStore(Layout(tmp_path)).layout)
    locks = WorkLocks(own, replica("first").leases, lambda name: name == "sweep")
    bucket.down = True
    with pytest.raises(BucketUnavailable):
        await locks.try_hold("sweep")
    assert not await own.is_held("sweep")
    calls = bucket.calls.total()
    lease = await locks.try_hold("house")
    assert lease is not None
    assert await locks.is_held("house")
    async with locks.hold("other"):
        pass
    assert bucket.calls.total() == calls


# ------------------------------------------------------------------------------------------------------ fenced records


@pytest.fixture
def records(tmp_path: Path) -> JsonRecords:
    return JsonRecords(LocalStore(Layout(tmp_path)).layout, "sweeps")


class _Pair:
    """Two replicas, the second of which has taken the lease from the first one."""

    def __init__(self, records: Records, first: _Replica, second: _Replica) -> None:
        self.records = records
        self.first, self.second = first, second

    async def take(self) -> tuple[Records, Callable[[], Any]]:
        """The first replica's records, and what takes the lease over and returns the second's."""
        lease = await self.first.take()

        async def over() -> Records:
            assert await self.second.leases.try_hold("sweep") is None
            self.second.clock.time += 20.0
            return (await self.second.take()).fence(self.records)

        return lease.fence(self.records), over


@pytest.fixture
def pair(records: JsonRecords, replica: Callable[[str], _Replica]) -> _Pair:
    return _Pair(records, replica("first"), replica("second"))


async def test_a_late_write_after_the_next_holder_s_does_nothing(pair: _Pair) -> None:
    """It raises `LeaseLost`, also for a deletion, and for a key that was not written before."""
    early, over = await pair.take()
    await asyncio.to_thread(early.put, "a", {"step": 1})
    late = await over()
    await asyncio.to_thread(late.put, "a", {"step": 2})
    for work in (
        lambda: early.put("a", {"step": 9}),
        lambda: early.put("b", {"step": 9}),
        lambda: early.drop("a"),
        lambda: early.put("a", {"step": 9}, expect=ABSENT),
    ):
        with pytest.raises(LeaseLost):
            await asyncio.to_thread(work)
    assert [(each["key"], each["step"]) for each in pair.records.all()] == [("a", 2)]


async def test_a_late_write_before_the_next_holder_s_is_replaced(pair: _Pair) -> None:
    """The next holder goes on with what it has read when it began."""
    early, over = await pair.take()
    await asyncio.to_thread(early.put, "a", {"step": 1})
    late = await over()
    assert (await asyncio.to_thread(late.get, "a") or {})["step"] == 1
    # its process had sent this before it was frozen
    await asyncio.to_thread(early.put, "a", {"step": 9})
    await asyncio.to_thread(late.put, "a", {"step": 2})
    assert (await asyncio.to_thread(pair.records.get, "a") or {})["step"] == 2
    with pytest.raises(LeaseLost):
        await asyncio.to_thread(early.put, "a", {"step": 10})
    assert await asyncio.to_thread(late.drop, "a")
    assert not await asyncio.to_thread(late.drop, "a")
    assert pair.records.get("a") is None


def test_times_that_are_in_no_order_are_refused() -> None:
    """A lease that is taken before its holder counts it as lost would be two replicas'."""
    with pytest.raises(ValueError, match="lost before it is taken"):
        LeaseTimes(lost_after=20.0, taken_after=20.0)

"""A replica whose clock is wrong does no work for all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from mirror.errors import BucketUnavailable
from mirror.leases.bucket_clock import BucketClock
from mirror.leases.bucket_leases import BucketLeases
from tests.support.clock import Clock
from tests.support.collecting import CollectedWorld
from tests.support.memory_bucket import MemoryBucket


@pytest.fixture
def wall() -> Clock:
    """The clock of the replica."""
    return Clock(1_000_000.0)


@pytest.fixture
def steady() -> Clock:
    """A clock that nobody can set."""
    return Clock(50.0)


@pytest.fixture
def bucket() -> MemoryBucket:
    """Its clock is right, and cuts off parts of a second."""
    return MemoryBucket(now=lambda: 1_000_000.0)


@pytest.mark.parametrize(("ahead", "offset"), [(0.0, 0.0), (0.9, 0.0), (30.9, 29.9), (-30.0, -30.0), (3601.0, 3600.0)])
def test_clocks_are_compared(bucket: MemoryBucket, wall: Clock, ahead: float, offset: float) -> None:
    """Up to the second that the store does not give."""
    wall.time += ahead
    clock = BucketClock(bucket, "replica", now=wall)
    assert clock.offset is None
    assert clock.compare() == pytest.approx(offset)
    assert clock.offset == pytest.approx(offset)


@pytest.mark.parametrize(("ahead", "says"), [(3600.0, "3599 seconds ahead of"), (-3600.0, "3600 seconds behind")])
async def test_124_a_replica_whose_clock_is_wrong_takes_no_lease(
    bucket: MemoryBucket, wall: Clock, steady: Clock, ahead: float, says: str
) -> None:
    """It says why, and takes one when its clock is right."""
    clock = BucketClock(bucket, "replica", now=wall, steady=steady)
    leases = BucketLeases(bucket, "replica", now=wall, check=clock.check)
    wall.time += ahead
    with capture_logs() as logs, pytest.raises(BucketUnavailable, match=says):
        await leases.try_hold("collect")
    assert [each["event"] for each in logs] == ["clock differs from that of the bucket"]
    wall.time -= ahead
    assert await leases.try_hold("collect") is not None
    await leases.aclose()


def test_124_a_clock_that_is_set_is_compared_again(bucket: MemoryBucket, wall: Clock, steady: Clock) -> None:
    """A comparison that was right counts for some minutes, as long as the clock runs with one that cannot be set."""
    clock = BucketClock(bucket, "replica", now=wall, steady=steady)
    clock.check()
    before = bucket.calls.total()
    for each in (wall, steady):
        each.time += 20.0
    clock.check()
    assert bucket.calls.total() == before
    wall.time += 3600.0
    with capture_logs(), pytest.raises(BucketUnavailable):
        clock.check()
    wall.time -= 3600.0
    clock.check()
    before = bucket.calls.total()
    steady.time += 300.0
    wall.time += 300.0
    with capture_logs(), pytest.raises(BucketUnavailable):
        # the bucket's clock stands still in this test
        clock.check()
    assert bucket.calls.total() > before


def test_what_cannot_be_compared_is_not_right(bucket: MemoryBucket, wall: Clock) -> None:
    """A bucket that does not answer gives no lease anyway."""
    bucket.down = True
    with pytest.raises(BucketUnavailable):
        BucketClock(bucket, "replica", now=wall).check()


@pytest.mark.parametrize(("ahead", "refused"), [(299.0, False), (302.0, True), (-299.0, False), (-301.0, True)])
def test_124_nothing_is_dated_by_a_clock_that_is_minutes_off(
    bucket: MemoryBucket, wall: Clock, ahead: float, *, refused: bool
) -> None:
    """Pushes and deletions fail; until the clocks were compared, nothing is known to be wrong."""
    clock = BucketClock(bucket, "replica", now=wall)
    world = CollectedWorld()
    parts = replace(world.parts, check_clock=clock.check_moments)
    wall.time += ahead
    parts.now()
    clock.compare()
    if refused:
        with pytest.raises(BucketUnavailable, match="dated wrongly"):
            parts.now()
    else:
        parts.now()

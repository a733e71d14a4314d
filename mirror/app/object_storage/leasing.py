"""Opens the leases of a cluster that has a bucket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from mirror.clock import steady_time
from mirror.config import Config
from mirror.errors import StoreError
from mirror.leases.bucket_clock import BucketClock
from mirror.leases.bucket_leases import BucketLeases, LeaseBoard, LeaseTimes
from mirror.leases.work_locks import WorkLocks
from mirror.ports import Bucket, Locks
from mirror.prefetch.sync_rules import sync_lock
from mirror.replication.replication_rules import replication_lock
from mirror.rounds import run_rounds

#: Seconds between two comparisons of the clocks.
_COMPARE_EVERY: Final = 60.0
#: The lock under which a replica adopts the events of one that is gone.
ADOPTION: Final = "adoption"
#: The locks of the work that one replica does for all, besides those of rules, and what people call that work.
_SHARED: Final = {
    "collect": "collection",
    "sweep": "sweep of the bucket",
    "retention": "retention",
    "bucketcache": "eviction from the bucket",
    "replication": "replication",
    ADOPTION: "adoption of events",
}


@dataclass(frozen=True, slots=True)
class Leasing:
    """The leases of this process. `locks` are for all work, also for that which each replica does for
    itself; `name` is that of this replica.
    """

    name: str
    leases: BucketLeases
    locks: Locks
    clock: BucketClock
    board: LeaseBoard

    async def keep_clock(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Compares the clocks every minute, until cancelled, so that operators see how far they are apart."""

        async def compare() -> None:
            with suppress(StoreError):
                await asyncio.to_thread(self.clock.compare)

        await run_rounds(compare, _COMPARE_EVERY, crashed="comparison of clocks crashed", once=True, sleep=sleep)


@dataclass(frozen=True, slots=True)
class LeaseClocks:
    """By which clocks, and how often: what tests change."""

    times: LeaseTimes | None = None
    steady: Callable[[], float] = steady_time


def open_leasing(
    config: Config, bucket: Bucket, locks: Locks, *, now: Callable[[], float], clocks: LeaseClocks | None = None
) -> Leasing:
    """The leases of the cluster, in its bucket; `locks` are those of this machine. `now` is in epoch seconds. The
    caller closes the leases.
    """
    clocks = clocks or LeaseClocks()
    clock = BucketClock(bucket, config.cluster.address, now=now)
    leases = BucketLeases(
        bucket, config.cluster.address, times=clocks.times, clock=clocks.steady, now=now, check=clock.check
    )
    work = shared_work(config)
    return Leasing(
        config.cluster.address, leases, WorkLocks(locks, leases, work.__contains__), clock, LeaseBoard(bucket, work)
    )


def shared_work(config: Config) -> Mapping[str, str]:
    """The work that one replica does for all others: its locks, and what people call it."""
    syncs = {sync_lock(rule.title): f"sync rule {rule.title}" for rule in config.sync if not rule.every_replica}
    rules = {replication_lock(rule.name): f"replication rule {rule.name}" for rule in config.replication}
    return {**_SHARED, **syncs, **rules}

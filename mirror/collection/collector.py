"""Collects on a schedule or on demand, one process at a time.

due, or asked ── try_hold("collect") ──┬─ another process has it ──> nothing to do
                                       └─ held ── steps, with pauses ──> report stored, lease released
                                                    └─ lost, StoreError ──> ends early; the next round begins anew
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from mirror import telemetry
from mirror.aio.threads import uninterrupted
from mirror.collection.bucket_sweep import last_sweep
from mirror.collection.collection_report import CollectionReport
from mirror.collection.collection_round import collection_round
from mirror.collection.grace_clock import GraceClock
from mirror.collection.pace import run_paced
from mirror.collection.sweep_report import SweepReport
from mirror.collection.when_due import run_when_due, seconds_left
from mirror.errors import StoreError
from mirror.hosting.parts import HostedParts
from mirror.policy.hosted.collection import CollectionRules
from mirror.ports import Lease, Locks, Records

#: The lock of the process that collects.
_LOCK: Final = "collect"
_KEY: Final = "last"


class GarbageCollector:
    """The garbage collection of hosted content, as one process does it."""

    def __init__(
        self,
        parts: HostedParts,
        rules: CollectionRules,
        locks: Locks,
        rounds: Records,
        clock: GraceClock,
        *,
        ended: Callable[[CollectionReport], None] = lambda report: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        threads: int = 0,
        check: Callable[[], None] = lambda: None,
        prepare: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`rounds` has the report of the last round. `ended` is called with each report of this process. `threads` wait
        for a store which is far away (0: it is near), and `check` raises `StoreError` if it is perhaps not ours.
        `prepare` is awaited before each round if others write there, too; it raises `StoreError`.
        """
        self._parts = parts
        self._rules = rules
        self._locks = locks
        self._rounds = rounds
        self._clock = clock
        self._ended = ended
        self._sleep = sleep
        self._threads = threads
        self._check = check
        self._prepare = prepare

    def __repr__(self) -> str:
        return f"<GarbageCollector {sorted(self._rules.registries)}>"

    async def run(self) -> CollectionReport | None:
        """Does one round. Returns None if another process is at it. Raises `StoreError`, `IndexUnavailable`."""
        lease = await self._locks.try_hold(_LOCK)
        if lease is None:
            return None
        with lease:
            return await self._round(lease)

    async def _round(self, lease: Lease) -> CollectionReport:
        if self._prepare is not None:
            await self._prepare()
        report = CollectionReport(self._clock.read().later)
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="collection") if self._threads else None
        steps = collection_round(self._parts, self._rules, self._clock.read, report, pool=pool, check=self._check)
        try:
            await run_paced(steps, lease, self._sleep)
        finally:
            if pool is not None:
                pool.shutdown(wait=False)
            await self._end(report, lease.fence(self._rounds))
        return report

    async def _end(self, report: CollectionReport, rounds: Records) -> None:
        report.ended_at = self._clock.read().later
        try:
            await uninterrupted(asyncio.to_thread(rounds.put, _KEY, report.to_json()))
        except StoreError as error:
            telemetry.log.warning("collection not recorded", reason=str(error))
        telemetry.COLLECTED.inc(report.blobs)
        telemetry.COLLECTED_BYTES.inc(report.bytes)
        telemetry.COLLECTED_LINKS.inc(report.links)
        show_collection(report)
        telemetry.log.info(
            "collection ended",
            complete=report.complete,
            blobs=report.blobs,
            bytes=report.bytes,
            links=report.links,
            waiting=report.waiting_blobs,
            unread=report.unread_count,
        )
        self._ended(report)

    def last(self) -> CollectionReport | None:
        """Blocking: returns the report of the last round of any process; None without one. Raises `StoreError`."""
        return last_round(self._rounds)

    def last_sweep(self) -> SweepReport | None:
        """Blocking: returns the report of the last sweep of the bucket, whose record is beside that of the rounds; None
        without one. Raises `StoreError`.
        """
        return last_sweep(self._rounds)

    async def run_when_due(self, every: float) -> None:
        """Does a round `every` seconds after the end of the last one. Runs until cancelled."""
        await run_when_due(
            lambda: self._wait(every),
            self.run,
            every=every,
            failed="collection failed",
            crashed="collection crashed",
            sleep=self._sleep,
        )

    def _wait(self, every: float) -> float:
        last = self.last()
        if last is None or last.more:
            return 0.0
        show_collection(last)
        return seconds_left(self._clock, last.ended_at or last.begun_at, every)


def last_round(rounds: Records) -> CollectionReport | None:
    """Blocking: returns the report of the last round; None if there was none. Raises `StoreError`."""
    return CollectionReport.from_json(rounds.get(_KEY))


def show_collection(report: CollectionReport) -> None:
    """Sets the metrics of the last round."""
    telemetry.COLLECTION_WAITING.set(report.waiting_blobs)
    telemetry.COLLECTION_WAITING_BYTES.set(report.waiting_bytes)
    telemetry.COLLECTION_UNREAD.set(report.unread_count)
    if report.complete:
        telemetry.COLLECTION_COMPLETE.set(report.ended_at or report.begun_at)

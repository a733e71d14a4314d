"""Sweeps the bucket on a schedule or on demand, one process at a time, slowly.

    due, or asked ── try_hold("sweep") ──┬─ another process has it ──> nothing to do
                                         └─ held ── page ── record ── pause ── page … ──> leftovers ──> ended
                                                      └─ lost, StoreError, a restart ──> the next one goes on there

The record says behind which key the sweep goes on. It is written after each page, so a page may be looked at twice,
which changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from mirror import telemetry
from mirror.aio.threads import uninterrupted
from mirror.collection.grace_clock import GraceClock
from mirror.collection.sweep_report import SweepReport
from mirror.collection.when_due import run_when_due, seconds_left
from mirror.ports import BucketSweep, Lease, Locks, Records, SweptPage

#: The lock of the process that sweeps.
_LOCK: Final = "sweep"
_KEY: Final = "sweep"


class BucketSweeper:
    """The sweep of the bucket, as one process does it."""

    def __init__(
        self,
        sweep: BucketSweep,
        locks: Locks,
        sweeps: Records,
        clock: GraceClock,
        *,
        rate: float,
        check: Callable[[], None] = lambda: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`sweeps` has the report of the last sweep. `rate` is how many objects are looked at in a second, at most.
        `check` raises `StoreError` if the bucket is perhaps not ours any more.
        """
        self._sweep = sweep
        self._locks = locks
        self._sweeps = sweeps
        self._clock = clock
        self._rate = rate
        self._check = check
        self._sleep = sleep

    def __repr__(self) -> str:
        return f"<BucketSweeper of {self._sweep!r}>"

    async def run(self) -> SweepReport | None:
        """Does a sweep, or goes on with the one that was interrupted. Returns None if another process is at it. Raises
        `StoreError`, `IndexUnavailable`.
        """
        lease = await self._locks.try_hold(_LOCK)
        if lease is None:
            return None
        with lease:
            return await self._run(lease)

    async def _run(self, lease: Lease) -> SweepReport:
        sweeps = lease.fence(self._sweeps)
        last = await asyncio.to_thread(last_sweep, sweeps)
        report = last if last and last.ended_at is None else SweepReport(self._clock.read().later)
        if report.after:
            telemetry.log.info("sweep goes on", after=report.after)
        pages = self._sweep.pages(report.after)
        try:
            while not lease.lost.is_set():
                page = await uninterrupted(asyncio.to_thread(self._next, pages))
                if page is None:
                    await uninterrupted(asyncio.to_thread(self._end, report, sweeps))
                    break
                await uninterrupted(asyncio.to_thread(self._note, report, page, sweeps))
                await self._sleep(page.objects / self._rate)
        finally:
            pages.close()
        return report

    def _next(self, pages: Iterator[SweptPage]) -> SweptPage | None:
        self._check()
        return next(pages, None)

    def _note(self, report: SweepReport, page: SweptPage, sweeps: Records) -> None:
        report.add(page)
        telemetry.SWEPT_OBJECTS.inc(page.objects)
        telemetry.SWEEP_DELETED.inc(page.deleted)
        telemetry.SWEEP_LOST.inc(page.lost)
        sweeps.put(_KEY, report.to_json())

    def _end(self, report: SweepReport, sweeps: Records) -> None:
        leftovers = self._sweep.leftovers()
        report.end(self._clock.read().later, leftovers)
        sweeps.put(_KEY, report.to_json())
        show_sweep(report)
        telemetry.log.info(
            "sweep ended",
            objects=report.objects,
            bytes=report.bytes,
            deleted=report.deleted,
            queued=report.queued,
            lost=report.lost,
        )

    def last(self) -> SweepReport | None:
        """Blocking: returns the report of the last sweep of any process, also of one that goes on; None without one.
        Raises `StoreError`.
        """
        return last_sweep(self._sweeps)

    async def run_when_due(self, every: float) -> None:
        """Does a sweep `every` seconds after the end of the last one. Runs until cancelled."""
        await run_when_due(
            lambda: self._wait(every),
            self.run,
            every=every,
            failed="sweep failed",
            crashed="sweep crashed",
            sleep=self._sleep,
        )

    def _wait(self, every: float) -> float:
        last = self.last()
        if last is None or last.ended_at is None:
            return 0.0
        show_sweep(last)
        return seconds_left(self._clock, last.ended_at, every)


def last_sweep(sweeps: Records) -> SweepReport | None:
    """Blocking: returns the report of the last sweep; None if there was none. Raises `StoreError`."""
    return SweepReport.from_json(sweeps.get(_KEY))


def show_sweep(report: SweepReport) -> None:
    """Sets the metrics of a sweep that has ended."""
    telemetry.BUCKET_HOSTED_OBJECTS.set(report.objects)
    telemetry.BUCKET_HOSTED_BYTES.set(report.bytes)
    telemetry.SWEEP_COMPLETE.set(report.ended_at or report.begun_at)

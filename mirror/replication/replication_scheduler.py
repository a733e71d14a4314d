"""Starts the replication rules that have something to do.

    no lock ── try_hold("replication") ──> looks, every few seconds ── for each rule:
                                              ├─ due by its schedule, or not yet compared since the start ──> full run
                                              ├─ a repository has another change counter ──> run over the changed ones
                                              └─ failed lately, or running ──> left until the next look

One process of a store, the one that holds the lock `replication`, looks every few seconds: which rules are due for a
full comparison (at its start, and by their schedule), and which repositories have changed since they were compared, by
their change counters. If it dies, another takes over, and begins with a full comparison. So a push needs no mark that
could be lost, and costs nothing.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from mirror import telemetry
from mirror.aio.singleflight import cancel_and_wait
from mirror.errors import IndexUnavailable, MirrorError, StoreError
from mirror.ports import Lease
from mirror.prefetch.progress import ProgressMeter
from mirror.replication.replications import Replications
from mirror.replication.rule_run import RuleRun, RunReport, RunWanted

#: Seconds between two looks; and after an error of the disk.
_LOOK_EVERY: Final = 5.0
_AFTER_ERROR: Final = 60.0
#: Seconds until a rule that failed runs again: the first value, doubled by each further failure, up to the second.
_FIRST_RETRY: Final = 10.0
_LONGEST_RETRY: Final = 300.0
#: How many rules run at once.
_AT_ONCE: Final = 4


class ReplicationScheduler:
    """The schedule, as one process sees it."""

    def __init__(
        self,
        replications: Replications,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`jitter` gives a fraction from 0 to 1, by which waits differ between sites."""
        self.replications = replications
        self._sleep = sleep
        self._jitter = jitter
        self._running: dict[str, asyncio.Task[None]] = {}
        self._compared: set[str] = set()
        self._failures: dict[str, int] = {}
        self._not_before: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<ReplicationScheduler of {len(self.replications.runs)} rules, running {sorted(self._running)}>"

    async def run(self) -> None:
        """Run the rules until cancelled, while this process has the lock `replication`. When cancelled, runs are
        interrupted.
        """
        lock = None
        try:
            while self.replications.runs:
                pause = _LOOK_EVERY
                try:
                    if lock is None:
                        lock = await self.replications.locks.try_hold("replication")
                        if lock is not None:
                            rules = len(self.replications.runs)
                            telemetry.log.info("replication scheduler started", rules=rules, worker=os.getpid())
                            await asyncio.to_thread(self._show_successes)
                    if lock is not None:
                        await self.tick()
                except (StoreError, IndexUnavailable) as error:
                    telemetry.log.warning("replication scheduler failed", reason=str(error))
                    pause = _AFTER_ERROR
                except Exception:
                    # any error is survived: without this task nothing would ever be replicated again
                    telemetry.log.exception("replication scheduler crashed")
                    pause = _AFTER_ERROR
                await self._sleep(pause * (1 + self._jitter() / 2))
        finally:
            await cancel_and_wait(*self._running.values())
            if lock is not None:
                lock.release()

    async def tick(self) -> None:
        """Start the rules that have something to do; returns without waiting for their ends. Raises `StoreError`."""
        for name, run in self.replications.runs.items():
            if len(self._running) >= _AT_ONCE:
                return
            if name in self._running or run.rule.sealed:
                continue
            if self.replications.now() < self._not_before.get(name, 0.0):
                continue
            wanted = await asyncio.to_thread(self._wanted, run)
            if wanted is not None:
                await self._start(run, wanted)

    def _show_successes(self) -> None:
        """Blocking: lets the metrics show what earlier processes did."""
        for run in self.replications.runs.values():
            if (succeeded := self.replications.records.get(run.rule).succeeded) is not None:
                telemetry.REPLICATION_SUCCESS.labels(run.rule.name).set(succeeded)

    async def idle(self) -> None:
        """Wait until no run that `tick` started is running."""
        while self._running:
            await asyncio.wait(set(self._running.values()))

    def _wanted(self, run: RuleRun) -> RunWanted | None:
        """Blocking: what a rule has to do; None if nothing."""
        rule = run.rule
        record = self.replications.records.get_or_create(rule)
        is_first = rule.on_push and rule.name not in self._compared
        if is_first or self.replications.now() >= self.replications.due(rule, record):
            return RunWanted()
        if not rule.on_push:
            return None
        changed = run.changed()
        return RunWanted(changed, full=False) if changed else None

    async def _start(self, run: RuleRun, wanted: RunWanted) -> None:
        lock = await self.replications.locks.try_hold(run.rule.lock)
        if lock is None:
            return  # it runs already: by hand, or as a job
        task = asyncio.create_task(self._run(run, wanted))
        self._running[run.rule.name] = task
        # a callback, not the task itself: a task that is cancelled before it begins runs no `finally`
        task.add_done_callback(partial(self._ended, run.rule.name, lock))

    def _ended(self, name: str, lock: Lease, _task: asyncio.Task[None]) -> None:
        lock.release()
        del self._running[name]

    async def _run(self, run: RuleRun, wanted: RunWanted) -> None:
        name = run.rule.name
        by = "schedule" if wanted.full else "push"
        try:
            report = await self.replications.run_locked(run, ProgressMeter(), wanted, by=by)
        except MirrorError as error:
            telemetry.log.error("replication record cannot be written", rule=name, reason=str(error))
            self._not_before[name] = self.replications.now() + _AFTER_ERROR
            return
        except Exception:
            telemetry.log.exception("replication crashed", rule=name)
            self._not_before[name] = self.replications.now() + _AFTER_ERROR
            return
        if wanted.full:
            # one that ended early is done again: what it has not compared may have changed
            (self._compared.add if report.error is None else self._compared.discard)(name)
        self._note(name, report)

    def _note(self, name: str, report: RunReport) -> None:
        """Let a rule that failed wait."""
        if report.ok:
            self._failures.pop(name, None)
            return
        failures = self._failures[name] = self._failures.get(name, 0) + 1
        wait = min(_LONGEST_RETRY, _FIRST_RETRY * 2.0 ** min(failures - 1, 10))
        wait = max(wait, report.retry_after) * (1 + self._jitter() / 2)
        self._not_before[name] = self.replications.now() + wait

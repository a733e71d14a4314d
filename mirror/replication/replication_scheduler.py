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
from typing import Final

from mirror import telemetry
from mirror.errors import LeaseLost, MirrorError
from mirror.ports import Lease
from mirror.prefetch.progress import ProgressMeter
from mirror.prefetch.rule_scheduler import AFTER_ERROR, RuleScheduler
from mirror.replication.replications import Replications
from mirror.replication.rule_run import RuleRun, RunReport, RunWanted

#: Seconds until a rule that failed runs again: the first value, doubled by each further failure, up to the second.
_FIRST_RETRY: Final = 10.0
_LONGEST_RETRY: Final = 300.0
#: How many rules run at once.
_AT_ONCE: Final = 4


class ReplicationScheduler(RuleScheduler):
    """Runs the rules that are due for a comparison, or whose repositories have changed."""

    def __init__(
        self,
        replications: Replications,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
        ready: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`jitter` gives a fraction from 0 to 1, by which waits differ between sites. `ready` returns once it is known
        what is here; None if that is always known.
        """
        super().__init__(
            replications.locks,
            "replication",
            sleep,
            failed="replication scheduler failed",
            crashed="replication scheduler crashed",
        )
        self.replications = replications
        self._jitter = jitter
        self._ready = ready
        self._compared: set[str] = set()
        self._failures: dict[str, int] = {}
        self._not_before: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<ReplicationScheduler of {len(self.replications.runs)} rules, running {sorted(self._running)}>"

    @property
    def _has_rules(self) -> bool:
        return bool(self.replications.runs)

    async def run(self) -> None:
        """See `RuleScheduler`."""
        if self._ready is not None and self._has_rules:
            await self._ready()
        await super().run()

    async def _began(self) -> None:
        # what an earlier holder of the lock has compared, and what it wrote late, is compared again
        self._compared.clear()
        telemetry.log.info("replication scheduler started", rules=len(self.replications.runs), worker=os.getpid())
        await asyncio.to_thread(self._show_successes)

    def _spread(self, seconds: float) -> float:
        return seconds * (1 + self._jitter() / 2)

    async def tick(self) -> None:
        """See `RuleScheduler`."""
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
        self._run_task(run.rule.name, lock, self._run(run, wanted, lock))

    async def _run(self, run: RuleRun, wanted: RunWanted, lock: Lease) -> None:
        name = run.rule.name
        by = "schedule" if wanted.full else "push"
        try:
            report = await self.replications.run_locked(run, ProgressMeter(), wanted, lock, by=by)
        except LeaseLost as lost:
            telemetry.log.warning("replication left to another replica", rule=name, reason=str(lost))
            return
        except MirrorError as error:
            telemetry.log.error("replication record cannot be written", rule=name, reason=str(error))
            self._not_before[name] = self.replications.now() + AFTER_ERROR
            return
        except Exception:
            telemetry.log.exception("replication crashed", rule=name)
            self._not_before[name] = self.replications.now() + AFTER_ERROR
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
        self._not_before[name] = self.replications.now() + self._spread(max(wait, report.retry_after))

"""All replication rules: runs them, and shows the last and the next run of each.

    waiting ── changed, or due for a full comparison ──> running ──┬─> ok ──> waiting
       ^                                                           ├─> failed: again after a growing wait
       └───────────────────────────────────────────────────────────┴─> interrupted (its process ended): again soon

A run holds a lock of its rule, so that two runs of one rule never overlap, whoever begins them. The last run of each
rule is recorded on disk. Runs that look for changes and find nothing are not recorded.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from mirror import telemetry
from mirror.errors import AlreadyRunning
from mirror.policy.schedule import next_run
from mirror.ports import Lease, Locks, Records
from mirror.prefetch.jobs import Ended
from mirror.prefetch.progress import ProgressMeter
from mirror.prefetch.sync_rules import RuleRecord, RuleRecords, find_rule, is_running, run_noting
from mirror.replication.replication_rules import ReplicationRule, ReplicationRuleJson
from mirror.replication.rule_run import RuleRun, RunReport, RunWanted
from mirror.values.timestamps import moment


class Replications:
    """All replication rules, as one process sees them."""

    def __init__(
        self,
        runs: Iterable[RuleRun],
        records: Records,
        *,
        locks: Locks,
        seed: str = "",
        now: Callable[[], float] = time.time,
        ended: Callable[[str, str, RunReport], None] = lambda rule, by, report: None,
    ) -> None:
        """`locks` are shared by all processes on one store. `seed` spreads rules that are due at the same time. `ended`
        is called with the rule, who began it and the report of each run that changed something, or failed.
        """
        self.runs: Final = {run.rule.name: run for run in runs}
        self.records: Final = RuleRecords(records, now)
        self.locks: Final = locks
        self.now: Final = now
        self._seed = seed
        self._ended = ended

    def __repr__(self) -> str:
        return f"<Replications of {len(self.runs)} rules>"

    def named(self, name: str) -> RuleRun:
        """The rule of this name. Raises `RuleUnknown`."""
        return find_rule(self.runs, name, "replication")

    async def status(self) -> list[ReplicationRuleJson]:
        """Every rule with its last result and the time of its next full comparison, as JSON. Raises `StoreError`."""
        return [await self._status(run.rule) for run in self.runs.values()]

    async def _status(self, rule: ReplicationRule) -> ReplicationRuleJson:
        record = await asyncio.to_thread(self.records.get, rule)
        running = await is_running(rule, record, self.locks)
        return {
            "name": rule.name,
            "repositories": rule.match,
            "to": rule.to,
            "tags": list(rule.tags.tags),
            "on": "push" if rule.on_push else "schedule",
            "schedule": str(rule.plan),
            "deletes": rule.tags.deletes.value,
            "overwrite": rule.tags.overwrite,
            "state": "sealed" if rule.sealed else record.state(running=running),
            "progress": record.progress if running else None,
            "started": moment(record.start),
            "ended": moment(record.end),
            "started_by": record.by,
            "result": record.result,
            "consecutive_failures": record.failures,
            "last_success": moment(record.succeeded),
            "next_run": None if running or rule.sealed else moment(max(self.due(rule, record), self.now())),
        }

    async def busy(self, name: str) -> bool:
        """True if the rule is running, in any process. Raises `RuleUnknown`, `StoreError`."""
        rule = self.named(name).rule
        return await is_running(rule, await asyncio.to_thread(self.records.get, rule), self.locks)

    def due(self, rule: ReplicationRule, record: RuleRecord) -> float:
        """When the next full comparison is due, in epoch seconds; a time in the past means at once."""
        # a rule that looks for changes all the time is retried by its scheduler
        last = replace(record.last, failures=0) if rule.on_push else record.last
        return next_run(rule.plan, last, self.now(), rule.jitter(self._seed))

    async def run_rule(self, name: str, meter: ProgressMeter, wanted: RunWanted, *, by: str) -> RunReport:
        """Run the rule now, whether it is due or not. Raises `RuleUnknown`, `AlreadyRunning`, `StoreError`."""
        run = self.named(name)
        lock = await self.locks.try_hold(run.rule.lock)
        if lock is None:
            raise AlreadyRunning(f"{name} is running already")
        with lock:
            return await self.run_locked(run, meter, wanted, lock, by=by)

    async def job(self, arguments: Mapping[str, Any], meter: ProgressMeter) -> Ended:
        """The work of jobs of the kind `replicate`: a full comparison by the rule that the argument `rule` names."""
        report = await self.run_rule(str(arguments["rule"]), meter, RunWanted(), by="job")
        first = {} if report.ok or report.error else {"first_failure": report.failures[0]}
        return Ended(report.ok, {**report.to_json(), **first})

    async def run_locked(
        self, run: RuleRun, meter: ProgressMeter, wanted: RunWanted, lock: Lease, *, by: str
    ) -> RunReport:
        """Run a rule, whose lock the caller has, and keep its record up to date. Raises `StoreError`; `LeaseLost` if
        another replica may run it by now.
        """
        rule, records = run.rule, self.records.under(lock)
        if rule.sealed:
            return RunReport(error=f"{rule.to} is sealed: it is never contacted")
        if wanted.dry_run:
            return await run.run(wanted, meter, lock)
        before = await asyncio.to_thread(records.get, rule)
        record = replace(before, start=self.now(), end=None, by=by, worker=os.getpid(), progress=None)
        if wanted.full:
            await asyncio.to_thread(records.put, rule, record)
            telemetry.log.info("replication started", rule=rule.name, by=by)
        report = await run_noting(
            run.run(wanted, meter, lock),
            lambda: records.note_progress(rule, record, meter),
            meter,
            lambda: records.put(rule, replace(record, end=self.now(), result={"error": "cancelled"})),
        )
        await asyncio.to_thread(self._finish, rule, before, record, report, wanted, records)
        return report

    def _finish(
        self,
        rule: ReplicationRule,
        before: RuleRecord,
        record: RuleRecord,
        report: RunReport,
        wanted: RunWanted,
        records: RuleRecords,
    ) -> None:
        """Blocking: record, log and count how a run ended."""
        now, result = self.now(), "ok" if report.ok else "failed"
        telemetry.REPLICATION_RUNS.labels(rule.name, result).inc()
        if wanted.full and report.error is None:
            telemetry.REPLICATION_CONFLICTS.labels(rule.name).set(len(report.conflicts))
        if report.ok:
            telemetry.REPLICATION_SUCCESS.labels(rule.name).set(now)
        if report.changed or not report.ok or report.held_back or wanted.full:
            log = telemetry.log.info if report.ok and not report.held_back else telemetry.log.warning
            counts = {name: value for name, value in report.to_json().items() if not isinstance(value, list) and value}
            first = {"first_failure": report.failures[0]} if report.failures else {}
            seconds = round(now - (record.start or now), 1)
            log("replication ended", rule=rule.name, result=result, by=record.by, seconds=seconds, **counts, **first)
        if report.changed or not report.ok:
            self._ended(rule.name, record.by or "", report)
        failures = 0 if report.ok else before.failures + 1
        succeeded = now if report.ok else before.succeeded
        if wanted.full:
            ended = replace(record, end=now)
        elif report.changed or not report.ok:
            # the next full comparison is due by the last one, not by this look at changes
            ended = replace(before, by=record.by)
        else:
            records.put(rule, replace(before, ok=True, failures=0, succeeded=succeeded))
            return
        result_of = report.to_json()
        records.put(
            rule, replace(ended, ok=report.ok, failures=failures, succeeded=succeeded, result=result_of, progress=None)
        )

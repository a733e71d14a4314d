"""Runs a sync rule, and shows the last and the next run of each.

    waiting ── due, rule's lock and lease taken ──> running ──┬─> ok       waits for the next time
       ^                                                      ├─> failed   tried again sooner
       └──────────────────────────────────────────────────────┴─> interrupted (its process ended): again soon

A run holds a lock of its rule, so that a manual run and a scheduled one (`scheduler.py`) never overlap. The last run of
each rule is recorded on disk, so that a restart neither forgets nor repeats it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from mirror import telemetry
from mirror.errors import AlreadyRunning, LeaseLost
from mirror.oci.reference import Repo
from mirror.policy.schedule import next_run, period_end
from mirror.ports import Lease, Locks, Records
from mirror.prefetch.jobs import Ended
from mirror.prefetch.progress import ProgressMeter
from mirror.prefetch.run_leases import Leases, RunLeases
from mirror.prefetch.sync_rules import (
    RuleRecord,
    RuleRecords,
    SyncRule,
    SyncRuleJson,
    find_rule,
    is_running,
    run_noting,
)
from mirror.prefetch.sync_run import first_failure, run_sync
from mirror.repository.protocol import Readable
from mirror.values.timestamps import moment


class Sync:
    """All sync rules, as one process sees them."""

    def __init__(
        self,
        rules: Iterable[SyncRule],
        source_for: Callable[[Repo], Readable],
        records: Records,
        *,
        locks: Locks,
        leases: Leases | None = None,
        seed: str = "",
        now: Callable[[], float] = time.time,
        shared: Records | None = None,
    ) -> None:
        """`locks` are shared by all processes on one store. `seed` spreads rules that are due at the same time; it must
        be the same after a restart. `shared` are the records of all replicas, for the rules that one of them runs for
        all; None if each replica has records of its own.
        """
        self.rules: Final = {rule.name: rule for rule in rules}
        self._records = RuleRecords(records, now)
        self._shared = RuleRecords(shared, now) if shared is not None else None
        self.leases: Final = RunLeases(leases)
        self.locks: Final = locks
        self.now: Final = now
        self._source_for = source_for
        self._seed = seed

    def __repr__(self) -> str:
        return f"<Sync {len(self.rules)} rules>"

    def rule(self, name: str) -> SyncRule:
        """The rule of this name. Raises `RuleUnknown`."""
        return find_rule(self.rules, name, "sync")

    def records_of(self, rule: SyncRule) -> RuleRecords:
        """Where the last run of a rule is recorded."""
        return self._records if self._shared is None or rule.every_replica else self._shared

    def is_shared(self, rule: SyncRule) -> bool:
        """Whether a rule's runs are recorded for all replicas, which another one may change."""
        return self._shared is not None and not rule.every_replica

    async def status(self) -> list[SyncRuleJson]:
        """Every rule with its last result and the time of its next run, as JSON. Raises `StoreError`."""
        return [await self._status(rule) for rule in self.rules.values()]

    async def _status(self, rule: SyncRule) -> SyncRuleJson:
        record = await asyncio.to_thread(self.records_of(rule).get, rule)
        running = await is_running(rule, record, self.locks)
        return {
            "name": rule.name,
            "repository": str(rule.repo),
            "tags": str(rule.tags),
            "schedule": str(rule.plan),
            "platforms": [str(platform) for platform in rule.platforms],
            "referrers": rule.referrers,
            "every_replica": rule.every_replica,
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
        rule = self.rule(name)
        return await is_running(rule, await asyncio.to_thread(self.records_of(rule).get, rule), self.locks)

    def due(self, rule: SyncRule, record: RuleRecord) -> float:
        """When the rule is due next, in epoch seconds; a time in the past means at once."""
        return next_run(rule.plan, record.last, self.now(), rule.jitter(self._seed))

    # ------------------------------------------------------------------------------------------------------ a run

    async def run_rule(self, name: str, meter: ProgressMeter, *, by: str) -> Ended:
        """Run the rule now, whether it is due or not. Raises `RuleUnknown`, `AlreadyRunning`, `StoreError`."""
        rule = self.rule(name)
        lock = await self.locks.try_hold(rule.lock)
        if lock is None:
            raise AlreadyRunning(f"{name} is being synced already")
        with lock:
            return await self.run_locked(rule, meter, lock, by=by)

    async def job(self, arguments: Mapping[str, Any], meter: ProgressMeter) -> Ended:
        """The work of jobs of the kind `sync`: `run_rule` for the rule that the argument `rule` names."""
        ended = await self.run_rule(str(arguments["rule"]), meter, by="job")
        first = first_failure(ended.result)
        return Ended(ended.ok, {**ended.result, **({} if first is None else {"first_failure": first})})

    async def run_locked(self, rule: SyncRule, meter: ProgressMeter, lock: Lease, *, by: str) -> Ended:
        """Run the rule, whose lock the caller has, and keep its record up to date. Raises `StoreError`; `LeaseLost` if
        another replica may run it by now.
        """
        records = self.records_of(rule).under(lock)
        record = await asyncio.to_thread(records.get, rule)
        record = replace(record, start=self.now(), end=None, by=by, worker=os.getpid(), progress=None)
        await asyncio.to_thread(records.put, rule, record)
        telemetry.log.info("sync started", rule=rule.name, by=by)
        renewed = time.monotonic()

        async def note() -> None:
            nonlocal renewed
            if lock.lost.is_set():
                raise LeaseLost(rule.lock)
            await records.note_progress(rule, record, meter)
            renewed = await self.leases.renew(rule, renewed)

        work = run_sync(self._source_for, rule, meter)
        ended = await run_noting(work, note, meter, lambda: self._finish(rule, record, None, records))
        await asyncio.to_thread(self._finish, rule, record, ended, records)
        done_for = period_end(rule.plan, record.start or 0.0) - self.now() if ended.ok else 0.0
        await self.leases.settle(rule, done_for)
        return ended

    def _finish(self, rule: SyncRule, record: RuleRecord, ended: Ended | None, records: RuleRecords) -> None:
        """Blocking: record, log and count how the run ended; `ended` is None if it was cancelled on purpose."""
        now = self.now()
        record = replace(record, end=now, ok=False, result={"error": "cancelled"})
        result = "cancelled"
        if ended is not None:
            result = "ok" if ended.ok else "failed"
            failures = 0 if ended.ok else record.failures + 1
            record = replace(record, ok=ended.ok, result=dict(ended.result), failures=failures)
        if record.ok:
            record = replace(record, succeeded=now)
            telemetry.SYNC_SUCCESS.labels(rule.name).set(now)
        telemetry.SYNC_RUNS.labels(rule.name, result).inc()
        log = telemetry.log.warning if result == "failed" else telemetry.log.info
        fields = {name: value for name, value in (record.result or {}).items() if name not in ("failures", "stale")}
        if failed := (record.result or {}).get("failures"):
            fields["failures"], fields["first_failure"] = len(failed), failed[0]
        log("sync ended", rule=rule.name, result=result, seconds=round(now - (record.start or now), 1), **fields)
        records.put(rule, record)

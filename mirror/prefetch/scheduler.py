"""Starts the sync rules that are due.

Replicas with disks of their own agree on each run by a lease (`run_leases.py`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from mirror import telemetry
from mirror.errors import LeaseLost, MirrorError
from mirror.ports import Lease
from mirror.prefetch.progress import ProgressMeter
from mirror.prefetch.rule_scheduler import AFTER_ERROR, RuleScheduler
from mirror.prefetch.sync import Sync
from mirror.prefetch.sync_rules import SyncRule

#: The longest wait, in seconds, until a lease that another replica has is requested again.
_ASK_AGAIN: Final = 60.0
#: The longest pause, in seconds, between two looks at a record that other replicas write, too.
_LOOK_AGAIN: Final = 60.0
#: How many rules run at once.
_AT_ONCE: Final = 2


class SyncScheduler(RuleScheduler):
    """Runs the rules that are due."""

    def __init__(self, sync: Sync, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        super().__init__(sync.locks, "sync", sleep, failed="sync scheduler failed", crashed="sync scheduler crashed")
        self.sync = sync
        self._not_before: dict[str, float] = {}
        #: When the record of a rule that other replicas run as well is read again.
        self._looks_at: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<SyncScheduler of {len(self.sync.rules)} rules, running {sorted(self._running)}>"

    @property
    def _has_rules(self) -> bool:
        return bool(self.sync.rules)

    async def _began(self) -> None:
        telemetry.log.info("sync scheduler started", rules=len(self.sync.rules), worker=os.getpid())
        for rule in self.sync.rules.values():
            succeeded = (await asyncio.to_thread(self.sync.records_of(rule).get, rule)).succeeded
            if succeeded is not None:
                telemetry.SYNC_SUCCESS.labels(rule.name).set(succeeded)

    async def tick(self) -> None:
        """See `RuleScheduler`."""
        for rule in self.sync.rules.values():
            if len(self._running) >= _AT_ONCE:
                return
            if not rule.sealed and rule.name not in self._running and await asyncio.to_thread(self._may_be_due, rule):
                await self._start(rule)

    def _may_be_due(self, rule: SyncRule) -> bool:
        """Blocking: like `_is_due`; the records of other replicas are not read all the time."""
        now = self.sync.now()
        if not self.sync.is_shared(rule) or not now < self._looks_at.get(rule.name, 0.0) <= now + _LOOK_AGAIN:
            return self._is_due(rule)
        return False

    def _is_due(self, rule: SyncRule) -> bool:
        due = self.sync.due(rule, self.sync.records_of(rule).get_or_create(rule))
        now = self.sync.now()
        self._looks_at[rule.name] = min(max(due, now), now + _LOOK_AGAIN)
        return now >= max(due, self._not_before.get(rule.name, due))

    async def _start(self, rule: SyncRule) -> None:
        lock = await self.sync.locks.try_hold(rule.lock)
        if lock is None:
            return  # it runs already: by hand, or as a job
        try:
            # another run may have ended after the first check and before the lock was taken
            begins = await asyncio.to_thread(self._is_due, rule) and await self._is_ours(rule)
        except BaseException:
            lock.release()
            raise
        if not begins:
            lock.release()
            return
        self._run_task(rule.name, lock, self._run(rule, lock))

    async def _run(self, rule: SyncRule, lock: Lease) -> None:
        try:
            await self.sync.run_locked(rule, ProgressMeter(), lock, by="schedule")
        except LeaseLost as lost:
            telemetry.log.warning("sync left to another replica", rule=rule.name, reason=str(lost))
        except MirrorError as error:
            telemetry.log.error("sync record cannot be written", rule=rule.name, reason=str(error))
            self._not_before[rule.name] = self.sync.now() + AFTER_ERROR
        except Exception:
            telemetry.log.exception("sync crashed", rule=rule.name)

    async def _is_ours(self, rule: SyncRule) -> bool:
        """True if no other replica does this run or has done it."""
        lease = await self.sync.leases.other(rule)
        if lease is None:
            return True
        if lease.done:
            await asyncio.to_thread(self._skip, rule)
        else:
            self._not_before[rule.name] = self.sync.now() + min(lease.seconds, _ASK_AGAIN)
        return False

    def _skip(self, rule: SyncRule) -> None:
        """Record that another replica has done this run. The rule is due here again at its next regular time, in case
        the other replica is gone by then.
        """
        telemetry.log.info("sync done by another replica", rule=rule.name)
        now, records = self.sync.now(), self.sync.records_of(rule)
        done = replace(records.get(rule), start=now, end=now, ok=True, failures=0, by="another replica", result={})
        records.put(rule, done)

"""Starts the sync rules that are due.

One process of a store, the one that holds the lock `sync`, looks for rules that are due; if it dies another takes over.
Replicas with disks of their own agree on each run by a lease (`run_leases.py`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Final

from mirror import telemetry
from mirror.aio.singleflight import cancel_and_wait
from mirror.errors import IndexUnavailable, MirrorError, StoreError
from mirror.ports import Lease
from mirror.prefetch.progress import ProgressMeter
from mirror.prefetch.sync import Sync
from mirror.prefetch.sync_rules import SyncRule

#: Seconds between two looks for rules that are due, and between two attempts to take over from a process that died;
#: and the same after an error.
_LOOK_EVERY: Final = 5.0
_AFTER_ERROR: Final = 60.0
#: The longest wait, in seconds, until a lease that another replica has is requested again.
_ASK_AGAIN: Final = 60.0
#: How many rules run at once.
_AT_ONCE: Final = 2


class SyncScheduler:
    """The schedule, as one process sees it."""

    def __init__(self, sync: Sync, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self.sync = sync
        self._sleep = sleep
        self._running: dict[str, asyncio.Task[None]] = {}
        self._not_before: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<SyncScheduler of {len(self.sync.rules)} rules, running {sorted(self._running)}>"

    async def run(self) -> None:
        """Run the rules that are due until cancelled, while this process has the lock `sync`. When cancelled, running
        syncs are interrupted.
        """
        lock = None
        try:
            while self.sync.rules:
                pause = _LOOK_EVERY
                try:
                    if lock is None:
                        lock = await self._try_lock()
                    if lock is not None:
                        await self.tick()
                except (StoreError, IndexUnavailable) as error:
                    telemetry.log.warning("sync scheduler failed", reason=str(error))
                    pause = _AFTER_ERROR
                except Exception:
                    # any error is survived: without this task nothing would ever be synced again
                    telemetry.log.exception("sync scheduler crashed")
                    pause = _AFTER_ERROR
                await self._sleep(pause)
        finally:
            await cancel_and_wait(*self._running.values())
            if lock is not None:
                lock.release()

    async def _try_lock(self) -> Lease | None:
        """Become the process that looks for due rules, if there is none. Raises `StoreError`."""
        lock = await self.sync.locks.try_hold("sync")
        if lock is not None:
            telemetry.log.info("sync scheduler started", rules=len(self.sync.rules), worker=os.getpid())
            for rule in self.sync.rules.values():
                succeeded = (await asyncio.to_thread(self.sync.records.get, rule)).succeeded
                if succeeded is not None:
                    telemetry.SYNC_SUCCESS.labels(rule.name).set(succeeded)
        return lock

    async def tick(self) -> None:
        """Start the rules that are due now; returns without waiting for their ends. Raises `StoreError`."""
        for rule in self.sync.rules.values():
            if len(self._running) >= _AT_ONCE:
                return
            if not rule.sealed and rule.name not in self._running and await asyncio.to_thread(self._is_due, rule):
                await self._start(rule)

    async def idle(self) -> None:
        """Wait until no sync that `tick` started is running."""
        while self._running:
            await asyncio.wait(set(self._running.values()))

    def _is_due(self, rule: SyncRule) -> bool:
        due = self.sync.due(rule, self.sync.records.get_or_create(rule))
        return self.sync.now() >= max(due, self._not_before.get(rule.name, due))

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
        task = asyncio.create_task(self._run(rule))
        self._running[rule.name] = task
        # a callback, not the task itself: a task that is cancelled before it begins runs no `finally`
        task.add_done_callback(partial(self._ended, rule.name, lock))

    def _ended(self, name: str, lock: Lease, _task: asyncio.Task[None]) -> None:
        lock.release()
        del self._running[name]

    async def _run(self, rule: SyncRule) -> None:
        try:
            await self.sync.run_locked(rule, ProgressMeter(), by="schedule")
        except MirrorError as error:
            telemetry.log.error("sync record cannot be written", rule=rule.name, reason=str(error))
            self._not_before[rule.name] = self.sync.now() + _AFTER_ERROR
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
        now, records = self.sync.now(), self.sync.records
        done = replace(records.get(rule), start=now, end=now, ok=True, failures=0, by="another replica", result={})
        records.put(rule, done)

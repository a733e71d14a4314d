"""Starts rules that have something to do.

    no lock ── try_hold ──> looks, every few seconds ── a rule has something to do, and its lock is free ──> its run

One process of a store, the one that holds the scheduler's lock, looks every few seconds; if it dies, another takes
over. Each run is a task that holds the lock of its rule.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final

from mirror.aio.singleflight import cancel_and_wait
from mirror.ports import Lease, Locks
from mirror.rounds import KeptLock, run_rounds

#: Seconds between two looks for rules that have something to do, and between two attempts to take over from a process
#: that died; and the same after an error.
_LOOK_EVERY: Final = 5.0
AFTER_ERROR: Final = 60.0


class RuleScheduler(ABC):
    """A schedule, as one process sees it."""

    def __init__(
        self, locks: Locks, lock: str, sleep: Callable[[float], Awaitable[None]], *, failed: str, crashed: str
    ) -> None:
        """`lock` is the name of the scheduler's lock. `failed` is the event for the log if the store, or the index,
        cannot be used, `crashed` that of any other error.
        """
        self._locks = locks
        self._lock = lock
        self._sleep = sleep
        self._failed = failed
        self._crashed = crashed
        self._running: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Run the rules until cancelled, while this process has the scheduler's lock. When cancelled, runs are
        interrupted.
        """
        if not self._has_rules:
            return

        async def look() -> float:
            # if it was lost, runs go on: each has a lock of its own, and finds out whether that was lost
            if await lock.taken() is not None:
                await self.tick()
            return self._spread(_LOOK_EVERY)

        with KeptLock(self._try_lock) as lock:
            try:
                await run_rounds(
                    look,
                    _LOOK_EVERY,
                    failed=self._failed,
                    crashed=self._crashed,
                    after_error=lambda: self._spread(AFTER_ERROR),
                    sleep=self._sleep,
                )
            finally:
                await cancel_and_wait(*self._running.values())

    async def _try_lock(self) -> Lease | None:
        """Become the process that looks, if there is none. Raises `StoreError`, `IndexUnavailable`."""
        lock = await self._locks.try_hold(self._lock)
        if lock is not None:
            try:
                await self._began()
            except BaseException:
                lock.release()
                raise
        return lock

    @property
    @abstractmethod
    def _has_rules(self) -> bool: ...

    @abstractmethod
    async def tick(self) -> None:
        """Start the rules that have something to do; returns without waiting for their ends. Raises `StoreError`."""

    @abstractmethod
    async def _began(self) -> None:
        """This process looks from now on."""

    def _spread(self, seconds: float) -> float:
        """How long to wait in place of so many seconds."""
        return seconds

    def _run_task(self, name: str, lock: Lease, work: Coroutine[Any, Any, None]) -> None:
        """Begin the run of a rule, whose lock is released at its end."""
        task = asyncio.create_task(work)
        self._running[name] = task
        # a callback, not the task itself: a task that is cancelled before it begins runs no `finally`
        task.add_done_callback(partial(self._ended, name, lock))

    def _ended(self, name: str, lock: Lease, _task: asyncio.Task[None]) -> None:
        lock.release()
        del self._running[name]

    async def idle(self) -> None:
        """Wait until no run that `tick` started is running."""
        while self._running:
            await asyncio.wait(set(self._running.values()))

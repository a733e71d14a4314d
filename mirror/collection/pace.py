"""Cuts long work into short steps, and does these with pauses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator
from typing import Final

from mirror.aio.threads import uninterrupted
from mirror.ports import Lease

#: What one thing costs, roughly in tens of microseconds on a disk that is not cached well.
NAME: Final = 1
RECORD: Final = 4
MANIFEST: Final = 30
CHANGE: Final = 100

#: What one step may cost: some milliseconds.
_STEP: Final = 200
#: After a step, a round pauses so many times as long as the step took, and at most so many seconds.
_PAUSES: Final = 3.0
_LONGEST_PAUSE: Final = 0.5


class Pace:
    """Counts what work costs. A generator that works in steps yields whenever `spent` returns true."""

    def __init__(self, step: int = _STEP) -> None:
        self._step = step
        self._spent = 0

    def __repr__(self) -> str:
        return f"<Pace {self._spent}/{self._step}>"

    def spent(self, cost: int) -> bool:
        """Counts the cost. True if the step is long enough, and a new one begins."""
        self._spent += cost
        if self._spent < self._step:
            return False
        self._spent = 0
        return True


async def run_paced(steps: Generator[None], lease: Lease, sleep: Callable[[float], Awaitable[None]]) -> bool:
    """Runs a generator that works in short steps, each of them in a thread, while the lease lasts. The generator is
    closed on return. False if it has not come to its end. Raises what the steps raise.
    """
    end = object()
    try:
        while not lease.lost.is_set():
            began = time.monotonic()
            # to its end, even if cancelled: a generator cannot be closed while it runs
            if await uninterrupted(asyncio.to_thread(next, steps, end)) is end:
                return True
            await sleep(min((time.monotonic() - began) * _PAUSES, _LONGEST_PAUSE))
        return False
    finally:
        # its last steps may block, too
        await uninterrupted(asyncio.to_thread(steps.close))

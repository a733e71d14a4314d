"""How a worker is: whether its event loop is held up, and what it takes of the machine."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from mirror import telemetry

__all__ = ["keep_pulse", "lag"]

#: Seconds between two looks at the event loop.
_BEAT: Final = 0.1
#: Looks at the loop between two looks at the process.
_BEATS: Final = 50


def lag(slept: float) -> float:
    """Seconds by which a timer of `_BEAT` rang late, after it took `slept` seconds."""
    return max(0.0, slept - _BEAT)


async def keep_pulse(
    *,
    beat: Callable[[], None] = lambda: None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Until cancelled; `beat` is called each time the loop turns.

    What a worker takes is looked at on the loop: it costs less than to leave it.
    """
    telemetry.WORKER_STARTS.inc()
    telemetry.WORKERS.inc()
    spent = 0.0
    try:
        while True:
            spent = _look(spent)
            for _ in range(_BEATS):
                beat()
                began = clock()
                await sleep(_BEAT)
                telemetry.LOOP_LAG.observe(lag(clock() - began))
    finally:
        telemetry.WORKERS.dec()


def _look(spent: float) -> float:
    """`spent` and the answer are CPU seconds of this process."""
    now = time.process_time()
    telemetry.CPU_SECONDS.inc(max(0.0, now - spent))
    telemetry.DESCRIPTORS_LIMIT.set(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    # without /proc there is no such number, and that is all
    with suppress(OSError, ValueError, IndexError):
        telemetry.DESCRIPTORS.set(len(os.listdir("/proc/self/fd")) - 1)
        with open("/proc/self/statm") as file:
            telemetry.RESIDENT_BYTES.set(int(file.read().split()[1]) * resource.getpagesize())
    return now

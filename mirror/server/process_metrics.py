"""Metrics of a worker process: the lag of its event loop, and the resources it uses."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from mirror import telemetry
from mirror.rounds import run_rounds

#: Seconds between two measurements of the event loop's lag.
_BEAT: Final = 0.1
#: Measurements of the event loop between two measurements of the process.
_BEATS: Final = 50


def lag(slept: float) -> float:
    """Seconds by which a timer of `_BEAT` seconds fired late, if it took `slept` seconds."""
    return max(0.0, slept - _BEAT)


async def beat_regularly(
    *,
    beat: Callable[[], None] = lambda: None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Measure the event loop and the process until cancelled; `beat` is called each time the loop turns.

    The process is measured on the event loop itself: that costs less than a switch to a thread.
    """
    telemetry.WORKER_STARTS.inc()
    telemetry.WORKERS.inc()
    spent, beats = 0.0, 0

    async def measure() -> None:
        nonlocal spent, beats
        # first of all: the parent process kills a worker that does not beat, whatever cannot be measured
        beat()
        beats += 1
        if beats % _BEATS == 1:
            spent = _measure(spent)

    async def observed(seconds: float) -> None:
        began = clock()
        await sleep(seconds)
        telemetry.LOOP_LAG.observe(lag(clock() - began))

    try:
        await run_rounds(measure, _BEAT, crashed="measurement of the process crashed", once=True, sleep=observed)
    finally:
        telemetry.WORKERS.dec()


def _measure(spent: float) -> float:
    """Update the process metrics. `spent` is the process's CPU seconds at the last call; returns those of now."""
    now = time.process_time()
    telemetry.CPU_SECONDS.inc(max(0.0, now - spent))
    telemetry.DESCRIPTORS_LIMIT.set(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    # without /proc these metrics are left out
    with suppress(OSError, ValueError, IndexError):
        telemetry.DESCRIPTORS.set(len(os.listdir("/proc/self/fd")) - 1)
        with open("/proc/self/statm") as file:
            telemetry.RESIDENT_BYTES.set(int(file.read().split()[1]) * resource.getpagesize())
    return now

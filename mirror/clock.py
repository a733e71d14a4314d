"""The clock by which every room measures how long something has lasted, also across processes of one machine."""

from __future__ import annotations

import time


def steady_time() -> float:
    """Seconds of a clock that cannot be set, and that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)

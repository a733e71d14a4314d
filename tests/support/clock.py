"""Time that a test moves."""

from __future__ import annotations


class Clock:
    """Seconds, epoch seconds or any others, that stand still until a test sets `time`."""

    def __init__(self, time: float = 1_700_000_000.0) -> None:
        self.time = time

    def __call__(self) -> float:
        return self.time

"""Cuts long work into short steps."""

from __future__ import annotations

from typing import Final

#: What one thing costs, roughly in tens of microseconds on a disk that is not cached well.
NAME: Final = 1
RECORD: Final = 4
MANIFEST: Final = 30
CHANGE: Final = 100

#: What one step may cost: some milliseconds.
_STEP: Final = 200


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

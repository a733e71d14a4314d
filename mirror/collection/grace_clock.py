"""The clock by which collection judges ages.

A wall clock can be set; a steady clock cannot, but does not know the date. While the two agree, the time is certain.
After a jump of the wall clock:

    jump ── ages are judged by the earlier time, moments recorded as the later ──> after the grace time ── the wall
                                                                                   clock is believed again

Whatever was dated before the jump has then waited out the grace time in any case. So nothing goes early, and a machine
that began with a wrong date does not keep its garbage until the mirror is restarted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from mirror import telemetry
from mirror.policy.hosted.collection import ClockReading

#: Seconds by which the clocks may differ without a jump: the wall clock is corrected in small steps all the time.
CLOCK_SLACK: Final = 1.0


class GraceClock:
    """Reads both clocks. May be used from any thread."""

    def __init__(self, now: Callable[[], float], steady: Callable[[], float], grace: float) -> None:
        """`now` is the wall clock, in epoch seconds; `steady` cannot be set and goes on while the machine sleeps."""
        self._now = now
        self._steady = steady
        self._grace = grace
        self._offset = now() - steady()
        self._jump: tuple[float, float] | None = None
        self._reading = threading.Lock()

    def __repr__(self) -> str:
        return f"<GraceClock {'certain' if self._jump is None else 'after a jump'}>"

    def read(self) -> ClockReading:
        """Returns the time, as far as it is certain."""
        with self._reading:
            return self._read()

    def _read(self) -> ClockReading:
        wall, steady = self._now(), self._steady()
        offset = wall - steady
        if abs(offset - self._offset) <= CLOCK_SLACK:
            # follows small corrections
            self._offset, self._jump = offset, None
        elif self._jump is None or abs(offset - self._jump[0]) > CLOCK_SLACK:
            telemetry.log.warning("clock jumped", by=round(offset - self._offset))
            self._jump = offset, steady
        elif steady - self._jump[1] >= self._grace:
            self._offset, self._jump = offset, None
        counted = self._offset + steady
        return ClockReading(min(wall, counted), max(wall, counted))

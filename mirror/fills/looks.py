"""Looks at what somebody else brings, until it has come or stands still.

begin ── moved: look again soon ── not moved: each pause is longer than the last ──> `still` for too long
  ^                                                                                   │ decided by who looks
  └───────────────────────────────────────────────────────────────────────────────────┘
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

#: Seconds between two looks: the first after something has come, otherwise longer, up to the last.
LOOK_FIRST: Final = 0.005
LOOK_LAST: Final = 0.05


class Looks:
    """The looks of one task that waits."""

    def __init__(self, sleep: Callable[[float], Awaitable[None]], clock: Callable[[], float], seen: object) -> None:
        """`seen` is what there is before the first look. `clock` counts seconds."""
        self._sleep = sleep
        self._clock = clock
        self.begin(seen)

    def __repr__(self) -> str:
        return f"<Looks {self._seen}, still for {self.still:.1f} s>"

    def begin(self, seen: object) -> None:
        """What was waited for has come: from now on, something else is."""
        self._seen = seen
        self._moved_at = self._clock()
        self._pause = LOOK_FIRST

    def moved(self, seen: object) -> bool:
        """True if this look sees something else than the last."""
        if seen == self._seen:
            return False
        self.begin(seen)
        return True

    @property
    def still(self) -> float:
        """Seconds for which nothing has moved."""
        return self._clock() - self._moved_at

    async def pause(self) -> None:
        """Waits until the next look."""
        pause, self._pause = self._pause, min(self._pause * 1.5, LOOK_LAST)
        await self._sleep(pause)

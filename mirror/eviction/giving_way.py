"""Lets clients go first while an index is rebuilt, or compared with the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

#: Seconds for which this process counts as busy after a client has used something.
_BUSY: Final = 1.0
#: While it is busy, a pause lasts so many times as long as the step before it, and at most so many seconds. A step that
#: had to wait for a busy index is followed by a longer pause, too.
_PAUSES: Final = 2.0
_LONGEST: Final = 0.2


class Uses(Protocol):
    """What clients have used."""

    @property
    def used_at(self) -> float:
        """When a client last used something here, in epoch seconds; -inf if that is not known."""


class GivesWay:
    """Pauses after each step of long work, in proportion to the step, while clients use this process. Without clients,
    the work goes on at once.
    """

    def __init__(
        self, uses: Uses, *, now: Callable[[], float], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        """`now` is the clock of `uses`, in epoch seconds."""
        self._uses = uses
        self._now = now
        self._sleep = sleep

    def __repr__(self) -> str:
        return f"<GivesWay {'to clients' if self._is_busy() else 'to nobody'}>"

    async def __call__(self, took: float) -> None:
        """To be called after a step that took so many seconds."""
        if self._is_busy():
            await self._sleep(min(took * _PAUSES, _LONGEST))

    def _is_busy(self) -> bool:
        return self._now() - self._uses.used_at < _BUSY


async def nobody(_took: float) -> None:
    """Gives way to nobody."""

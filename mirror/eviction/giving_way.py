"""Lets clients go first while an index is rebuilt or compared with the disk, or the disk is walked.

All threads of a process take turns in one interpreter, so a thread that reads thousands of small files slows every
answer, even if there is a processor for each of them. So such threads pause as well, and after short slices. Other
processes share the index and the disk: clients of any worker count.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Final, Protocol, TypeVar

T = TypeVar("T")

#: Seconds for which this mirror counts as busy after a client has used something.
_BUSY: Final = 1.0
#: While it is busy, a pause lasts so many times as long as the step before it, and at most so many seconds. A step that
#: had to wait for a busy index is followed by a longer pause, too.
_PAUSES: Final = 2.0
_LONGEST: Final = 0.2
#: Seconds that a thread works between two pauses.
_SLICE: Final = 0.001


class Uses(Protocol):
    """What clients have used."""

    @property
    def used_at(self) -> float:
        """When a client last used something, in epoch seconds; -inf if that is not known."""


class Giving(Protocol):
    """Long work goes on between pauses."""

    async def __call__(self, took: float, /) -> None:
        """Pauses. To be called after a step that took so many seconds."""

    def slices(self, items: Iterable[T]) -> Iterator[T]:
        """Blocking: yields the items, with pauses between some of them."""


class GivesWay:
    """Pauses after each step of long work, in proportion to the step, while clients use this mirror. Without clients,
    the work goes on at once.
    """

    def __init__(
        self,
        uses: Uses,
        *,
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        block: Callable[[float], None] = time.sleep,
    ) -> None:
        """`now` is the clock of `uses`, in epoch seconds; `clock` measures slices, in seconds. `block` is the sleep of
        a thread.
        """
        self._uses = uses
        self._now = now
        self._sleep = sleep
        self._clock = clock
        self._block = block

    def __repr__(self) -> str:
        return f"<GivesWay {'to clients' if self._is_busy() else 'to nobody'}>"

    async def __call__(self, took: float, /) -> None:
        """See `Giving`."""
        if self._is_busy():
            await self._sleep(_pause(took))

    def slices(self, items: Iterable[T]) -> Iterator[T]:
        """See `Giving`. What the caller does with the items counts as work, too."""
        began = self._clock()
        for item in items:
            yield item
            if (took := self._clock() - began) >= _SLICE:
                if self._is_busy():
                    self._block(_pause(took))
                began = self._clock()

    def _is_busy(self) -> bool:
        # a clock that was set back must not make it last until then
        return abs(self._now() - self._uses.used_at) < _BUSY


class _Nobody:
    async def __call__(self, _took: float, /) -> None:
        """Does nothing."""

    def slices(self, items: Iterable[T]) -> Iterator[T]:
        """Yields the items."""
        yield from items


#: Gives way to nobody.
NOBODY: Final[Giving] = _Nobody()


def _pause(took: float) -> float:
    """How long a pause is after a step, both in seconds."""
    return min(took * _PAUSES, _LONGEST)

"""Answers that cost much: made once for all who ask meanwhile, and believed for a while that grows with what they cost.

    asked ── known and young ──> the same again
        └── made, by one at a time ── quick ──> not kept
                                  └── slow ───> kept for some times as long as it took

So a page that is left open asks for a share of one thread at most, however large the store is, and on a small store
every answer is new.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar

__all__ = ["CostlyCache"]

T = TypeVar("T")

#: Seconds: what is made in less is not kept.
_QUICK: Final = 0.25
#: How many times as long as it took an answer is believed, and the most seconds.
_TIMES: Final = 20.0
_LONGEST: Final = 600.0
#: Answers kept, to different questions.
_MOST: Final = 8


class CostlyCache(Generic[T]):
    """Of one kind of question; `now` counts seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._turn = asyncio.Lock()
        self._known: dict[Hashable, tuple[T, float]] = {}
        self._epoch = 0

    async def __call__(self, question: Hashable, make: Callable[[], Awaitable[T]]) -> T:
        """The answer; raises what `make` does."""
        async with self._turn:
            began, epoch = self._now(), self._epoch
            known = self._known.get(question)
            if known is not None and began < known[1]:
                return known[0]
            self._known.pop(question, None)
            answer = await make()
            took = self._now() - began
            # what was made while something changed may lack it
            if took >= _QUICK and epoch == self._epoch:
                if len(self._known) >= _MOST:
                    del self._known[next(iter(self._known))]
                self._known[question] = answer, self._now() + min(_LONGEST, took * _TIMES)
            return answer

    def forget(self) -> None:
        """Something was changed: the next answer is a new one."""
        self._epoch += 1
        self._known.clear()

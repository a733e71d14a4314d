"""A cache for costly answers: each is computed once for all concurrent callers, and kept for a time proportional to its
cost.

    question ── answered lately ──> the same answer
        └── computed, one at a time ── quick ──> not kept
                                    └── slow ───> kept for a multiple of the time it took

A page that is left open therefore uses at most a share of one thread, however large the store is; on a small store
every answer is new.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar

from mirror.aio.caches import CacheStats, LruCache

T = TypeVar("T")

#: Seconds: an answer computed in less time is not kept.
_QUICK: Final = 0.25
#: An answer is kept for this many times as long as it took to compute, up to so many seconds.
_TIMES: Final = 20.0
_LONGEST: Final = 600.0
#: Most answers kept, one for each question.
_MOST: Final = 8


class CostlyCache(Generic[T]):
    """The answers to one kind of question; `now` counts seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic, *, name: str = "") -> None:
        self._now = now
        self._turn = asyncio.Lock()
        #: Answers, and until when they are given.
        self._answers: LruCache[Hashable, tuple[T, float]] = LruCache(_MOST, name=name)
        self._epoch = 0

    async def __call__(self, question: Hashable, make: Callable[[], Awaitable[T]]) -> T:
        """The answer, from the cache or from `make`. Raises the errors of `make`."""
        async with self._turn:
            began, epoch = self._now(), self._epoch
            cached = self._answers.get(question)
            if cached is not None and began < cached[1]:
                return cached[0]
            self._answers.pop(question, None)
            answer = await make()
            took = self._now() - began
            # an answer computed while something changed may lack the change
            if took >= _QUICK and epoch == self._epoch:
                self._answers[question] = answer, self._now() + min(_LONGEST, took * _TIMES)
            return answer

    def forget(self) -> None:
        """Something was changed: the next answer is computed anew."""
        self._epoch += 1
        self._answers.clear()

    def stats(self) -> CacheStats:
        """How many answers are kept."""
        return self._answers.stats()

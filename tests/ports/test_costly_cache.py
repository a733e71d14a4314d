"""Answers that cost much are made once, and not again and again for a page that is left open."""

from __future__ import annotations

import asyncio

import pytest

from mirror.aio.costly_cache import CostlyCache


class _Work:
    """Takes so many seconds of a clock that stands still otherwise, and counts."""

    def __init__(self, takes: float) -> None:
        self.takes = takes
        self.now = 0.0
        self.made = 0
        self.believed: CostlyCache[int] = CostlyCache(lambda: self.now)

    async def make(self) -> int:
        """How often it was made."""
        await asyncio.sleep(0)
        self.now += self.takes
        self.made += 1
        return self.made

    async def ask(self, question: str = "?") -> int:
        """As the page does."""
        return await self.believed(question, self.make)


async def test_what_is_quick_is_always_new() -> None:
    """On a small store nothing is ever old."""
    work = _Work(takes=0.1)
    assert [await work.ask() for _ in range(3)] == [1, 2, 3]


async def test_what_is_slow_is_believed() -> None:
    """For twenty times as long as it took, by all who ask; other questions are other answers."""
    work = _Work(takes=2.0)
    assert await asyncio.gather(*(work.ask() for _ in range(50))) == [1] * 50
    work.now += 39.0
    assert await work.ask() == 1
    assert await work.ask("another") == 2
    work.now += 41.0
    assert await work.ask() == 3


async def test_a_page_that_is_left_open_costs_little() -> None:
    """Asked every 30 seconds for a day, what takes ten seconds is made once in some minutes."""
    work = _Work(takes=10.0)
    for _ in range(2880):
        await work.ask()
        work.now += 30.0
    assert work.made <= 86400 / 200


async def test_a_change_is_seen_at_once() -> None:
    """Also one that was made while the answer was on its way."""
    work = _Work(takes=2.0)
    assert await work.ask() == 1
    work.believed.forget()
    asking = asyncio.create_task(work.ask())
    await asyncio.sleep(0)
    work.believed.forget()
    assert await asking == 2
    assert await work.ask() == 3


async def test_a_failure_is_not_believed() -> None:
    """The next who asks tries again."""
    work = _Work(takes=2.0)

    async def fail() -> int:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await work.believed("?", fail)
    assert await work.ask() == 1

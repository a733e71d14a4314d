"""Work that is done ahead of whoever needs the results."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from mirror.collection.ahead import ahead


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Four threads."""
    with ThreadPoolExecutor(4) as pool:
        yield pool


def test_results_come_in_order(pool: ThreadPoolExecutor) -> None:
    """With threads and without."""
    wanted = [(number, number * number) for number in range(200)]
    for threads in (pool, None):
        assert list(ahead(threads, lambda number: number * number, range(200))) == wanted
        assert list(ahead(threads, lambda number: number, [])) == []


def test_several_work_at_once(pool: ThreadPoolExecutor) -> None:
    """While the caller waits for the first."""
    together = threading.Barrier(4)
    assert [each for each, _ in ahead(pool, lambda _: together.wait(60), range(8))] == list(range(8))


def test_not_all_is_begun_at_once(pool: ThreadPoolExecutor) -> None:
    """A caller that stops after a few has not read everything."""
    begun: list[int] = []
    results = ahead(pool, begun.append, range(10_000))
    next(results)
    results.close()
    assert len(begun) < 100


@pytest.mark.parametrize("threads", [True, False])
def test_an_error_comes_in_its_turn(pool: ThreadPoolExecutor, threads: bool) -> None:
    """What came before it was done."""

    def work(number: int) -> int:
        if number == 5:
            raise KeyError(number)
        return number

    results = ahead(pool if threads else None, work, range(50))
    assert [next(results)[0] for _ in range(5)] == list(range(5))
    with pytest.raises(KeyError):
        next(results)

"""Work that waits for a store which is far away, done in several threads ahead of the caller that needs the results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future, wait
from typing import Final, TypeVar

T = TypeVar("T")
R = TypeVar("R")

#: Results that are prepared before they are asked for.
_WIDTH: Final = 32


def ahead(pool: Executor | None, work: Callable[[T], R], items: Iterable[T]) -> Generator[tuple[T, R]]:
    """Yields each item with the result of the work on it, in their order; raises what the work raises, in its turn.
    Without a pool, each is worked on when it is asked for. When this ends, no work is under way.
    """
    if pool is None:
        for item in items:
            yield item, work(item)
        return
    running: deque[tuple[T, Future[R]]] = deque()
    try:
        for item in items:
            running.append((item, pool.submit(work, item)))
            if len(running) >= _WIDTH:
                first, result = running.popleft()
                yield first, result.result()
        while running:
            first, result = running.popleft()
            yield first, result.result()
    finally:
        wait([result for _, result in running if not result.cancel()])

"""Work in threads that must end before its caller goes on.

A thread cannot be cancelled, and it works with files, descriptors and buffers that mostly belong to its caller. A
caller that went on while the thread runs would close a file in use, or free a descriptor's number for another file.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def uninterrupted(
    work: Awaitable[T],
    *,
    stop: Callable[[], None] | None = None,
    unwanted: Callable[[T], None] | None = None,
) -> T:
    """The result of work that runs in a thread. If cancelled, even repeatedly, calls `stop` and still waits for the
    work to end; a result that can no longer be returned is passed to `unwanted`. Raises the errors of the work.
    """
    running = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        if stop:
            stop()
        while not running.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({running})
        if not running.cancelled() and running.exception() is None and unwanted:
            unwanted(running.result())
        raise


async def run_uninterrupted(
    executor: Executor,
    work: Callable[..., T],
    *arguments: object,
    stop: Callable[[], None] | None = None,
    unwanted: Callable[[T], None] | None = None,
) -> T:
    """Run blocking work in the executor; otherwise like `uninterrupted`."""
    running = asyncio.get_running_loop().run_in_executor(executor, work, *arguments)
    return await uninterrupted(running, stop=stop, unwanted=unwanted)


def in_order(threads: Executor, work: Callable[[T], R], items: Iterable[T], *, ahead: int) -> Iterator[R]:
    """The results of blocking work, in the order of the items. Up to `ahead` items are taken, and worked on, before the
    caller takes the first result.
    """
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(threads.submit(work, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()

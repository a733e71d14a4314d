"""The same work asked for at the same time is done once.

Unlike a lock, everyone gets the one result or the one error. The work runs in a task of its own: the first caller is
nobody special, and when a caller leaves, the work goes on for the others. When all have left it still goes on, because
its result is worth keeping (it fills a cache).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Final, TypeVar

__all__ = ["SingleFlight", "end"]

T = TypeVar("T")


class SingleFlight:
    """Work under way, by key. Nothing is remembered after its end."""

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[Any]] = {}

    async def run(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work`, or of the work that runs for this key already. Raises what it raises."""
        task = self._running.get(key)
        if task is None:
            task = asyncio.ensure_future(_as_coroutine(work))
            self._running[key] = task
            task.add_done_callback(lambda done: self._ended(key, done))
        # without the shield one caller's cancellation would cancel the work of all
        result: T = await asyncio.shield(task)
        return result

    async def run_since(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """Like `run`, but never the result of work that had begun before this call: what has changed since then is not
        in it. That work is waited for, and one more does for all who came meanwhile.
        """
        if (running := self._running.get(key)) is not None:
            await asyncio.wait({running})
        return await self.run(key, work)

    def under_way(self, key: Hashable) -> bool:
        """Whether `run` would join others."""
        return key in self._running

    def _ended(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        if self._running.get(key) is task:
            del self._running[key]
        if not task.cancelled():
            # when every caller has left, nobody else would look at it
            task.exception()

    async def aclose(self) -> None:
        """Cancel what runs. Repeatable."""
        await end(*self._running.values())


async def _as_coroutine(work: Callable[[], Awaitable[T]]) -> T:
    return await work()


#: Seconds after which a task that goes on is cancelled again.
_AGAIN: Final = 0.5


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended, however: they are asked again while they go on.

    A cancellation can be lost on its way: `asyncio.wait_for` of Python 3.11, which libraries use, drops it if what it
    waits for has ended in the same moment. Waiting for such a task once would mean to wait for ever.
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_AGAIN)
    for task in tasks:
        if not task.cancelled():
            task.exception()

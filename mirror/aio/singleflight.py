"""Concurrent requests for the same work run it once.

Unlike with a lock, every caller gets the one result or the one error. The work runs in a task of its own, which does
not belong to the first caller: when a caller is cancelled, the work goes on for the others. If all callers are
cancelled it still goes on, because its result is worth keeping (it fills a cache).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Final, TypeVar

T = TypeVar("T")


class SingleFlight:
    """Work under way, by key. Nothing is remembered after the work ends."""

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[Any]] = {}

    async def run(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work`, or of the work already running for this key. Raises the errors of that work."""
        task = self._running.get(key)
        if task is None:
            task = asyncio.ensure_future(_as_coroutine(work))
            self._running[key] = task
            task.add_done_callback(lambda done: self._ended(key, done))
        elif task.done():
            # it has just ended, and its callers, who may remember the result, have had no turn yet: share it. If they
            # got none here, a caller that repeats the work until something is found would hold up all for ever
            await asyncio.sleep(0)
        # without the shield one caller's cancellation would cancel the work of all
        result: T = await asyncio.shield(task)
        return result

    async def run_since(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """Like `run`, but never the result of work that began before this call, because that work may have missed a
        recent change. Waits for such work, then runs once more for all callers that arrived meanwhile.
        """
        if (running := self._running.get(key)) is not None:
            await asyncio.wait({running})
            if self._running.get(key) is running:
                # it had just ended
                del self._running[key]
        return await self.run(key, work)

    def under_way(self, key: Hashable) -> bool:
        """True if `run` would join work that is running."""
        task = self._running.get(key)
        return task is not None and not task.done()

    def __repr__(self) -> str:
        return f"<SingleFlight {len(self._running)} running>"

    def _ended(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        if self._running.get(key) is task:
            del self._running[key]
        if not task.cancelled():
            # retrieve the error: if every caller was cancelled, asyncio would log that it was never retrieved
            task.exception()

    async def aclose(self) -> None:
        """Cancel all running work. Repeatable."""
        await cancel_and_wait(*self._running.values())


async def _as_coroutine(work: Callable[[], Awaitable[T]]) -> T:
    return await work()


#: Seconds after which a task that is still running is cancelled again.
_AGAIN: Final = 0.5


async def cancel_and_wait(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended, in whatever way; tasks that keep running are cancelled again. If it
    is cancelled itself, even repeatedly, it still waits, and raises that at the end: the caller is about to close what
    the tasks use.

    A cancellation can be lost: `asyncio.wait_for` of Python 3.11, which libraries use, drops it if the awaited work
    ends at the same moment. After a single cancellation, waiting for such a task could take for ever.
    """
    pending = {task for task in tasks if not task.done()}
    cancelled: asyncio.CancelledError | None = None
    while pending:
        for task in pending:
            task.cancel()
        try:
            _, pending = await asyncio.wait(pending, timeout=_AGAIN)
        except asyncio.CancelledError as error:
            cancelled = error
            pending = {task for task in pending if not task.done()}
    for task in tasks:
        if not task.cancelled():
            task.exception()
    if cancelled is not None:
        raise cancelled

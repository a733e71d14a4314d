"""Work that goes on after the answer that started it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class BackgroundTasks:
    """Tasks that belong to no request. Their owner waits for them with `finish` before it closes."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start work. Returns at once."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def start_and_wait(self, work: Coroutine[Any, Any, Any], seconds: float) -> None:
        """Start work and wait for its end, but no longer than so many seconds; after that it goes on alone."""
        await asyncio.wait({self.start(work)}, timeout=seconds)

    async def finish(self) -> None:
        """Wait for all tasks, also for those that they start. Raises the first of their errors, once all have ended.
        Repeatable.
        """
        errors: list[Exception] = []
        while self._tasks:
            ended = await asyncio.gather(*self._tasks, return_exceptions=True)
            errors += [each for each in ended if isinstance(each, Exception)]
        if errors:
            raise errors[0]

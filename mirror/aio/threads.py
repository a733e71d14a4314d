"""Work in threads that outlives the one who waits for it.

A thread cannot be cancelled, and what it works with (files, descriptors, buffers) is mostly its caller's: who goes on
while it runs closes a file under it, or gives the number of its descriptor to somebody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

__all__ = ["to_its_end"]

T = TypeVar("T")


async def to_its_end(
    work: Awaitable[T],
    *,
    stop: Callable[[], None] | None = None,
    unwanted: Callable[[T], None] | None = None,
) -> T:
    """The result of work that runs in a thread. When cancelled, once or again, tell the work to `stop` and wait for its
    end all the same; a result that nobody gets any more is `unwanted`. Raises what the work raises.
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

"""Threads for work that may wait long, of which only so much may wait: the rest is refused at once.

submit ──> waits for a thread ──> runs ──> done
   └─ too much waits already ──> refused
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class BoundedThreads(Executor):
    """An executor with `threads` threads, which are started when they are needed. Up to `waiting` calls wait for them;
    beyond that, `submit` raises what `refusal` returns.
    """

    def __init__(self, name: str, threads: int, waiting: int, refusal: Callable[[], Exception]) -> None:
        self._name = name
        self._threads = ThreadPoolExecutor(threads, name)
        self._most = threads + waiting
        self._refusal = refusal
        self._lock = threading.Lock()
        self._count = 0

    def __repr__(self) -> str:
        return f"<BoundedThreads {self._name} {self._count}/{self._most}>"

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See `Executor.submit`. Raises the refusal."""
        with self._lock:
            if self._count >= self._most:
                raise self._refusal()
            self._count += 1
        try:
            future = self._threads.submit(fn, *args, **kwargs)
        except BaseException:
            self._leave(None)
            raise
        future.add_done_callback(self._leave)
        return future

    def _leave(self, _: object) -> None:
        with self._lock:
            self._count -= 1

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See `Executor.shutdown`."""
        self._threads.shutdown(wait, cancel_futures=cancel_futures)


async def in_thread(executor: Executor | None, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Like `asyncio.to_thread`, in a thread of this executor; None: of the event loop's."""
    call = partial(contextvars.copy_context().run, work, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(executor, call)

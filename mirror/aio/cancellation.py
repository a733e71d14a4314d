"""Who was cancelled: the task that runs, or something that it waited for."""

from __future__ import annotations

import asyncio


def raise_if_cancelled(error: BaseException) -> None:
    """Raises this error again if it is a cancellation of the task that runs now. Returns if it is any other error.

    A `CancelledError` may also come out of an await because what was awaited was cancelled, but not the task: shared
    work that was ended, a call of a pool that was shut down. That is an error like any other, and must not end the task
    silently. Whoever goes on after every error catches `(Exception, asyncio.CancelledError)` and asks here.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise error

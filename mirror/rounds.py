"""Work that a process does again and again in the background, until it stops.

    work ──┬─ done ─────────────── pause ──> work
           ├─ an expected error ── warning `failed` with its reason ── pause ──> work
           ├─ any other error ──── `crashed` with its traceback ────── pause ──> work
           └─ cancelled, as in every pause ──> the end

If something that the work waits for is cancelled, but not the work itself, that is one of the other errors.

Most of it is done by one process of a store, which keeps a lock for as long as it runs (`KeptLock`):

    no lock ── taken(), and it is free ──> kept ──┬─ the end of `with` ──> released
       ^                                          └─ lost ── taken() ──┐
       └───────────────────────────────────────────────────────────────┘
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Final

from mirror import telemetry
from mirror.aio.cancellation import raise_if_cancelled
from mirror.errors import IndexUnavailable, StoreError
from mirror.ports import Lease

#: What the store and the index fail with, which other rounds may not.
_USUAL: Final = (StoreError, IndexUnavailable)


class KeptLock:
    """The lock of work that one process does for all. `with` releases it at the end."""

    def __init__(self, take: Callable[[], Awaitable[Lease | None]]) -> None:
        """`take` returns the lock if it is free, and None if another process has it."""
        self._take = take
        self._lease: Lease | None = None

    def __repr__(self) -> str:
        return f"<KeptLock {'free or elsewhere' if self._lease is None else 'here'}>"

    @property
    def is_lost(self) -> bool:
        """Whether the lock was taken, and another process may have it by now."""
        return self._lease is not None and self._lease.lost.is_set()

    @property
    def lease(self) -> Lease | None:
        """The lock as it was last taken; None if this process does not have it."""
        return self._lease

    async def taken(self) -> Lease | None:
        """Returns the lock: the one that is kept, or else, also once that was lost, one that is taken now. None if
        another process has it. Raises what `take` raises.
        """
        if self.is_lost:
            self.release()
        if self._lease is None:
            self._lease = await self._take()
        return self._lease

    def release(self) -> None:
        """Gives the lock up. Repeatable."""
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def __enter__(self) -> KeptLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


async def run_rounds(
    work: Callable[[], Awaitable[float | None]],
    every: float,
    *,
    crashed: str,
    failed: str | None = None,
    after_error: float | Callable[[], float] | None = None,
    expected: tuple[type[Exception], ...] = _USUAL,
    once: bool = False,
    woken: asyncio.Event | None = None,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> None:
    """Does `work` until it is cancelled; no error ends it.

    After a round comes a pause of as many seconds as `work` returns, or of `every` if that is None; after an error, one
    of `after_error`, or also of `every`. `woken` ends a pause early; `work` clears it. The log has `failed` for each of
    the `expected` errors and `crashed` for any other, without `failed` for all. With `once`, each of the two is logged
    again only for another reason than before, or after a round without an error.
    """
    reason = crash = ""
    while True:
        try:
            pause = await work()
            reason = crash = ""
        except (Exception, asyncio.CancelledError) as error:
            raise_if_cancelled(error)
            if failed is None or not isinstance(error, expected):
                if not once or repr(error) != crash:
                    telemetry.log.exception(crashed)
                crash = repr(error)
            else:
                if not once or str(error) != reason:
                    telemetry.log.warning(failed, reason=str(error))
                reason = str(error)
            pause = after_error() if callable(after_error) else after_error
        seconds = every if pause is None else pause
        if woken is None:
            await sleep(seconds)
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await woken.wait()


def begin(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Starts work that goes on in the background until it is cancelled. If it ends by an error, the log has it at once:
    whoever cancels the task comes only at the end of the process.
    """
    task = asyncio.create_task(work)
    task.add_done_callback(_log_death)
    return task


def _log_death(task: asyncio.Task[None]) -> None:
    name = getattr(task.get_coro(), "__qualname__", task.get_name())
    if not task.cancelled():
        if (error := task.exception()) is not None:
            telemetry.log.error("background work ended", work=name, exc_info=error)
    elif not task.cancelling():
        telemetry.log.error("background work ended", work=name, reason="something that it waited for was cancelled")

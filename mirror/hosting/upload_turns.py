"""Turns of large pushed blobs at the bucket: few at once, and never all of them for one caller.

    asking ──┬─ the blob is small ────────────────────────────────────────────────> goes on at once
             ├─ a turn is free, and the caller has fewer than it may have ─────────> has a turn ── done ──> given on
             └─ otherwise: waits on the event loop ──┬─ whose caller has fewest ──> has a turn
                                                     └─ patience over ────────────> `BucketUnavailable`

Without turns, one caller's parallel layers would take all threads that store uploads, and a manifest or a configuration
of somebody else would wait for gigabytes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from mirror.errors import BucketUnavailable
from mirror.policy.hosted.large_blobs import is_large

#: Large uploads of one process at the same time. Each of them sends several parts at once.
_MOST: Final = 4
_MOST_PER_CALLER: Final = 2
#: Seconds for which a large blob waits. Its upload takes minutes itself, so its client is patient.
_PATIENCE: Final = 300.0
#: Seconds after which a client may try again that has waited in vain.
_RETRY_AFTER: Final = 30.0


class UploadTurns:
    """The turns of one process. For one event loop."""

    def __init__(
        self, *, most: int = _MOST, most_per_caller: int = _MOST_PER_CALLER, patience: float = _PATIENCE
    ) -> None:
        """`patience` is in seconds."""
        self._most = most
        self._most_per_caller = most_per_caller
        self._patience = patience
        self._running: Counter[str] = Counter()
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []

    def __repr__(self) -> str:
        return f"<UploadTurns {self._running.total()} of {self._most}, {len(self._waiting)} waiting>"

    @asynccontextmanager
    async def turn(self, caller: str, size: int) -> AsyncIterator[None]:
        """Have a turn for a blob of `size` bytes, after those that came before it. Raises `BucketUnavailable` if none
        is free in time.
        """
        if not is_large(size):
            yield
            return
        await self._enter(caller)
        try:
            yield
        finally:
            self._leave(caller)

    async def _enter(self, caller: str) -> None:
        if self._has_room(caller):
            self._running[caller] += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = (caller, turn)
        self._waiting.append(waiting)
        try:
            async with asyncio.timeout(self._patience):
                await turn
        except BaseException as error:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            else:
                # it was given a turn at the moment it gave up
                self._leave(caller)
            if isinstance(error, TimeoutError):
                reason = "too many large blobs are uploaded to the bucket at the moment"
                raise BucketUnavailable(reason, retry_after=_RETRY_AFTER) from None
            raise

    def _has_room(self, caller: str) -> bool:
        return self._running.total() < self._most and self._running[caller] < self._most_per_caller

    def _leave(self, caller: str) -> None:
        self._running[caller] -= 1
        if not self._running[caller]:
            del self._running[caller]
        # `min` takes the first of several, who has waited for longest
        allowed = [waiting for waiting in self._waiting if self._has_room(waiting[0])]
        if allowed:
            chosen = min(allowed, key=lambda waiting: self._running[waiting[0]])
            self._waiting.remove(chosen)
            self._running[chosen[0]] += 1
            chosen[1].set_result(None)

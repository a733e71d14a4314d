"""Rebuilds the index in the background, when it answers but does not know everything that the disk has.

whole ── lost, or suspect() ──> not whole ── check(), at most once a minute ──> rebuilding ──> whole
                                    ^                                               │
                                    └── the disk cannot be read: later and later ───┘
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from mirror import telemetry
from mirror.aio.singleflight import cancel_and_wait
from mirror.errors import IndexUnavailable, StoreError
from mirror.eviction.reconcile import INCOMPLETE
from mirror.eviction.write_behind import WriteBehind
from mirror.ports import ContentIndex

#: Seconds between two rebuilds, and the most to which this grows while the disk makes rebuilds fail. Each rebuild reads
#: all manifests.
_EVERY: Final = 60.0
_AT_MOST_EVERY: Final = 3600.0
#: Seconds for which the index is not suspected again of lacking blobs.
_SUSPECT_EVERY: Final = 600.0


class IndexRebuilder:
    """Rebuilds the index of one store, one instance in each process that fills the store."""

    def __init__(
        self,
        index: ContentIndex,
        write_behind: WriteBehind,
        rebuild: Callable[[], Awaitable[object]],
        *,
        now: Callable[[], float],
    ) -> None:
        """`rebuild` takes a lock, so that one process at a time rebuilds (`reconcile.ensure`); it raises
        `IndexUnavailable` and `StoreError`.
        """
        self._index = index
        self._write_behind = write_behind
        self._rebuild = rebuild
        self._now = now
        self._running: asyncio.Task[None] | None = None
        self._began_at = self._suspected_at = float("-inf")
        self._every = _EVERY

    def __repr__(self) -> str:
        return f"<IndexRebuilder running={self._running is not None} every={self._every:.0f} s>"

    async def check(self) -> None:
        """Starts a rebuild if the index answers but is not whole, unless one runs or the last one began just now."""
        if await self._write_behind.index_is_whole() or not self._write_behind.index_up:
            return
        if self._running is None and self._now() - self._began_at >= self._every:
            self._began_at = self._now()
            telemetry.log.warning("index lost")
            self._running = asyncio.create_task(self._run(), name="rebuild of the index")

    async def suspect(self) -> bool:
        """Marks the index as incomplete, because it offers too little to drop: perhaps the disk has blobs that the
        index lacks. True if the caller should try again, with a walk over the disk; False if the index is not used
        anyway or was suspected not long ago.
        """
        if self._now() - self._suspected_at < _SUSPECT_EVERY or not await self._write_behind.index_is_whole():
            return False
        self._suspected_at = self._now()
        try:
            await self._index.set_marker(INCOMPLETE)
        except IndexUnavailable as error:
            self._write_behind.note_down(error)
        return True

    async def aclose(self) -> None:
        """Ends the rebuild that runs, if any. Repeatable."""
        if self._running is not None:
            await cancel_and_wait(self._running)

    async def _run(self) -> None:
        try:
            await self._rebuild()
            self._every = _EVERY
        except IndexUnavailable as error:
            self._write_behind.note_down(error)
        except StoreError as error:
            self._every = min(2 * self._every, _AT_MOST_EVERY)
            telemetry.log.warning("index rebuild failed", reason=str(error), retry_in=self._every)
        finally:
            self._running = None

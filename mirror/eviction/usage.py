"""How many bytes the blobs of the store take: by the index where it knows them, else by a walk over the disk.

    index is whole ──> its sum, each time
    it is not ──> a walk ──> believed for a while, corrected by what we store and drop ── too old ──> a walk

Several that ask at once wait for the same walk. Without an index nobody tells what others have stored since the walk:
where that matters, what the disk has less of is taken for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from mirror import telemetry
from mirror.aio.singleflight import SingleFlight
from mirror.errors import IndexUnavailable
from mirror.eviction.write_behind import WriteBehind
from mirror.ports import BlobStore, ContentIndex

__all__ = ["StoreUsage"]

#: A sum found by walking the disk is believed for a second per so many blobs, but not longer than a minute: that keeps
#: the walks to a small part of one thread. What other processes bring meanwhile is not in it, so it is soon done again
#: where the store is small and they could fill it in no time.
_BELIEVED_PER_SECOND: Final = 1000
_WALK_EVERY: Final = 60.0
#: Blobs that are walked while a fill waits: some tenths of a second at the most.
_QUICKLY_WALKED: Final = 10_000


class StoreUsage:
    """One in each process that fills the store. `behind` says how the index is."""

    def __init__(self, store: BlobStore, index: ContentIndex, behind: WriteBehind, *, now: Callable[[], float]) -> None:
        self._store = store
        self._index = index
        self._behind = behind
        self._now = now
        self._walking = SingleFlight()
        self._sum: _Sum | None = None

    async def bytes(self, free: int, *, patient: bool) -> int:
        """Of all blobs. `free` are the bytes that the disk has free, looked at just now. Raises `StoreError`.

        Impatient: without an index an older sum of a large store will do, for a walk over a million blobs takes its
        time; what others may have stored since is added.
        """
        if await self._behind.index_is_whole():
            try:
                usage = await self._index.usage()
            except IndexUnavailable as error:
                self._behind.note_down(error)
            else:
                telemetry.STORE_BLOBS.set(usage.blobs)
                # good enough for the impatient, should the index go away
                self._sum = _Sum(usage.blobs, usage.bytes, float("-inf"), usage.bytes, free)
                return usage.bytes
        known = self._sum
        if known is None or ((patient or not self.is_large) and self._is_old(known)):
            # fills that begin together wait for the same walk; whoever evicts wants to see what was dropped before
            known = await (self._walk_now() if patient else self._walking.run("all", self._walk_now))
        telemetry.STORE_BLOBS.set(known.blobs)
        return known.bytes if patient else known.at_most(free)

    @property
    def is_large(self) -> bool:
        """Whether a look at every blob would take long, as far as is known."""
        return self._sum is None or self._sum.blobs > _QUICKLY_WALKED

    def reckon(self, blobs: int, size: int) -> None:
        """Into the sum: what this process has stored since, or (negative) dropped."""
        if self._sum is not None:
            self._sum = replace(self._sum, blobs=self._sum.blobs + blobs, bytes=self._sum.bytes + size)

    def forget(self) -> None:
        """The sum is wrong: other processes have dropped what is in it."""
        self._sum = None

    async def aclose(self) -> None:
        """Repeatable."""
        await self._walking.aclose()

    def _is_old(self, known: _Sum) -> bool:
        """Whether a walk is not believed any more, or the clock was set."""
        return not 0 <= self._now() - known.at < min(_WALK_EVERY, known.blobs / _BELIEVED_PER_SECOND)

    async def _walk_now(self) -> _Sum:
        self._sum = await asyncio.to_thread(self._walk)
        return self._sum

    def _walk(self) -> _Sum:
        """Blocking: what is on disk."""
        began, (free, _) = self._now(), self._store.free()
        blobs = total = 0
        for info in self._store.walk():
            blobs += 1
            total += info.size
        return _Sum(blobs, total, began, total, free)


@dataclass(frozen=True, slots=True)
class _Sum:
    """Blobs and bytes on disk, when they were summed up, and how many bytes there were and the disk had free then."""

    blobs: int
    bytes: int
    at: float
    then: int
    free: int

    def at_most(self, free: int) -> int:
        """Bytes, if all that the disk has less of now went to blobs that other processes have stored since."""
        return self.bytes + max(0, self.free - free - (self.bytes - self.then))

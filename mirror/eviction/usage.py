"""How many bytes the blobs of the store take: from the index if it is whole, otherwise from a walk over the disk.

    index is whole ──> its sum, each time
    index is not ──> a walk ──> used for a while, corrected by what this process stores and drops ── too old ──> a walk

Concurrent callers wait for the same walk. One that nobody waits for gives way to clients. Without an index this process
does not know what other processes have stored since the walk. If that matters, all space that the disk has lost since
is assumed to be theirs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from mirror import telemetry
from mirror.aio.singleflight import SingleFlight
from mirror.errors import IndexUnavailable
from mirror.eviction.giving_way import NOBODY, Giving
from mirror.eviction.write_behind import WriteBehind
from mirror.ports import BlobStore, ContentIndex

#: A sum found by walking the disk is used for one second for each so many blobs, but at most for a minute, or for so
#: many times as long as the walk took. That keeps the walks to a small part of one thread. The sum lacks what other
#: processes store meanwhile, so a small store, which they could fill quickly, is walked again soon.
_BELIEVED_PER_SECOND: Final = 1000
_WALK_EVERY: Final = 60.0
_TIMES_AS_LONG: Final = 10.0
#: The most blobs that are walked while a fill waits, which takes at most some tenths of a second.
_QUICKLY_WALKED: Final = 10_000


class StoreUsage:
    """The usage of the store, one instance in each process that fills it."""

    def __init__(
        self,
        store: BlobStore,
        index: ContentIndex,
        write_behind: WriteBehind,
        *,
        now: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
        give_way: Giving = NOBODY,
    ) -> None:
        """`now` is in epoch seconds. `clock` measures walks, in seconds, and nobody sets it: after a walk during which
        the time of day was set, a sum would be believed for years.
        """
        self._store = store
        self._index = index
        self._write_behind = write_behind
        self._now = now
        self._clock = clock
        self._give_way = give_way
        self._walking = SingleFlight()
        self._sum: _Sum | None = None

    def __repr__(self) -> str:
        return f"<StoreUsage {self._sum}>"

    async def bytes(self, free: int, *, patient: bool, gives_way: bool = False) -> int:
        """Returns the bytes of all blobs. `free` is the free space of the disk in bytes, read just now. A walk pauses
        for clients if it `gives_way`. Raises `StoreError`.

        If not `patient` and without an index, an older sum of a large store is used, because a walk over a million
        blobs takes long; what other processes may have stored since is added.
        """
        if await self._write_behind.index_is_whole():
            try:
                usage = await self._index.usage()
            except IndexUnavailable as error:
                self._write_behind.note_down(error)
            else:
                telemetry.STORE_BLOBS.set(usage.blobs)
                # callers that are not patient use this sum if the index goes away
                self._sum = _Sum(usage.blobs, usage.bytes, float("-inf"), usage.bytes, free)
                return usage.bytes
        total = self._sum
        if total is None or ((patient or not self.is_large) and self._is_old(total)):
            # fills that begin together wait for the same walk; an eviction needs a new one that sees the latest drops
            total = await (self._walk_now(gives_way) if patient else self._walking.run("all", self._walk_now))
        telemetry.STORE_BLOBS.set(total.blobs)
        return total.bytes if patient else total.at_most(free)

    @property
    def is_large(self) -> bool:
        """True if a walk over all blobs would take long, or if their number is not known."""
        return self._sum is None or self._sum.blobs > _QUICKLY_WALKED

    def adjust(self, blobs: int, size: int) -> None:
        """Adds to the sum what this process has stored since, or, if negative, dropped."""
        if self._sum is not None:
            self._sum = replace(self._sum, blobs=self._sum.blobs + blobs, bytes=self._sum.bytes + size)

    def forget(self) -> None:
        """Discards the sum, because other processes may have dropped what is in it."""
        self._sum = None

    async def aclose(self) -> None:
        """Ends the walk that is under way, if any. Repeatable."""
        await self._walking.aclose()

    def _is_old(self, total: _Sum) -> bool:
        """True if the sum is too old to be used, or if the clock was set back."""
        believed = max(min(_WALK_EVERY, total.blobs / _BELIEVED_PER_SECOND), _TIMES_AS_LONG * total.took)
        return not 0 <= self._now() - total.at < believed

    async def _walk_now(self, gives_way: bool = False) -> _Sum:
        self._sum = await asyncio.to_thread(self._walk, gives_way)
        return self._sum

    def _walk(self, gives_way: bool) -> _Sum:
        """Blocking: walks the disk and adds up what is there."""
        at, began, (free, _) = self._now(), self._clock(), self._store.free()
        infos = self._store.walk()
        blobs = total = 0
        for info in self._give_way.slices(infos) if gives_way else infos:
            blobs += 1
            total += info.size
        return _Sum(blobs, total, at, total, free, self._clock() - began)


@dataclass(frozen=True, slots=True)
class _Sum:
    """The sum of the blobs on disk. `blobs` and `bytes` are kept up to date; `at` is when they were added up (epoch
    seconds), `then` the bytes that the blobs took at that time, `free` the bytes that the disk had free, and `took` the
    seconds of the walk.
    """

    blobs: int
    bytes: int
    at: float
    then: int
    free: int
    took: float = 0.0

    def at_most(self, free: int) -> int:
        """Returns the bytes, assuming that all space lost on the disk since went to blobs that other processes stored.
        `free` is the free space in bytes now.
        """
        return self.bytes + max(0, self.free - free - (self.bytes - self.then))

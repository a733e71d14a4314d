"""Keeps the store within its capacity: measures it, reserves room for fills, and has the evictor drop what is too much.

    reserve() ── within the high water ─────────────────────────────────────────────────> Reservation
       │                                                                                     ^
       └── above it ──> the turn ──> measure again ──> drop down to the low water ───────────┘
                                                          │
                                                          └── must go, but is pinned or in use ──> StoreFull

Room is reserved before a fill begins. Several workers may reserve at the same moment without knowing of each other. The
gap between high water and limit is for that, and the next round, a second later, evicts what is too much
(`rounds.py`). Without an index the usage of the store is estimated (`usage.py`), but it is measured before anything is
dropped.

If it is not known what must stay, nothing is dropped, and new content is stored until the limit is reached.

Hosted content counts against no capacity. It takes room on the disk, and then the cache's limit shrinks (see
`Watermarks.limit`), so that cached content makes way for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from mirror import telemetry
from mirror.errors import BlobTooLarge, IndexUnavailable, NoRoomForPush, StoreError, StoreFull
from mirror.eviction.evictor import Evictor
from mirror.eviction.protection import Protection
from mirror.eviction.quarantine_sweep import QuarantineSweeper
from mirror.eviction.rebuilding import IndexRebuilder
from mirror.eviction.usage import StoreUsage
from mirror.eviction.write_behind import WriteBehind
from mirror.oci.digest import Digest
from mirror.policy.eviction import StoreLoad, Victim, Watermarks
from mirror.ports import BlobStore
from mirror.values.sizes import format_size

#: Candidates read in one step of an eviction. Many more would block the event loop; further steps follow if needed.
_MOST_CANDIDATES: Final = 4096
#: Bytes of a push for which cached content makes way before they have come.
_AT_ONCE: Final = 64 << 20
#: Seconds that a caller that changes nothing waits for a walk.
_SOON: Final = 1.0


class Reservation:
    """Room that is reserved for one fill, until `release` is called."""

    def __init__(self, size: int, give_back: Callable[[int], None]) -> None:
        self.size = size
        self._give_back: Callable[[int], None] | None = give_back

    def __repr__(self) -> str:
        return f"<Reservation {self.size} B{'' if self._give_back else ', released'}>"

    def release(self) -> None:
        """Gives the room back, after the blob was recorded in the index or the fill has failed. Repeatable."""
        give_back, self._give_back = self._give_back, None
        if give_back:
            give_back(self.size)


class Space:
    """The room of one store, one instance in each process that fills the store."""

    def __init__(
        self,
        store: BlobStore,
        evictor: Evictor,
        usage: StoreUsage,
        write_behind: WriteBehind,
        protection: Protection,
        quarantine: QuarantineSweeper,
        watermarks: Watermarks,
        *,
        rebuilder: IndexRebuilder,
        reclaim: Callable[[bool], int] = lambda in_use: 0,
        soon: float = _SOON,
    ) -> None:
        """`reclaim` drops interrupted downloads, and returns their bytes; it blocks, and is called before a fill is
        refused: if its argument is True, also for parts of blobs that clients read at the moment. A caller that changes
        nothing waits `soon` seconds for a walk.
        """
        self._soon = soon
        self._store = store
        self._evictor = evictor
        self._usage = usage
        self._write_behind = write_behind
        self._protection = protection
        self._quarantine = quarantine
        self._watermarks = watermarks
        self._rebuilder = rebuilder
        self._reclaim = reclaim
        #: The bytes that are reserved now.
        self.reserved = 0

    def __repr__(self) -> str:
        return f"<Space reserved={self.reserved} B {self._watermarks.capacity}>"

    # ----------------------------------------------------------------------------------------------- reserving

    async def reserve(self, size: int | None) -> Reservation:
        """Reserves `size` bytes, and evicts if needed. If the size is not known (None), nothing is reserved.

        Raises `BlobTooLarge` if the blob is larger than the capacity of the store, `StoreFull` if pins, fills and other
        data on the disk leave no room for it, and `StoreError` if there is no room and it is not known what must stay.
        """
        wanted = size or 0
        # counted before the disk is measured, so that other fills of this process take this one into account
        self.reserved += wanted
        try:
            load = await self.load(patient=False)
            self._refuse_if_too_large(load, wanted)
            if self._watermarks.excess(load):
                await self._evict_for_fill(load)
        except BaseException:
            self.reserved -= wanted
            raise
        return Reservation(wanted, self._give_back)

    def _refuse_if_too_large(self, load: StoreLoad, wanted: int) -> None:
        limit = self._watermarks.limit(load)
        capacity = self._watermarks.capacity.of(load.disk)
        if wanted > capacity:
            raise BlobTooLarge(
                f"a blob of {format_size(wanted)} is more than the capacity of the store, {format_size(capacity)}"
            )
        if wanted > limit:
            # nothing that may be evicted would make room, but the blob fits once the disk has space again
            raise StoreFull(
                f"no room for {format_size(wanted)}: the disk has {format_size(load.free)} free, of which the mirror "
                f"leaves {format_size(self._watermarks.reserve)} free; the cache may have {format_size(limit)} in all"
            )

    async def _evict_for_fill(self, load: StoreLoad) -> None:
        try:
            await self._evict(lambda then: (self._watermarks.excess(then), self._watermarks.shortage(then)))
        except StoreFull:
            raise
        except StoreError:
            # it is not known what must stay, so nothing was dropped; a blob that fits below the limit is stored anyway
            if self._watermarks.shortage(load):
                raise

    def _give_back(self, size: int) -> None:
        self.reserved -= size
        # most likely the blob is stored now; if not, the next walk corrects the sum
        self._usage.adjust(1, size)

    async def make_room(self, size: int) -> None:
        """Drops at least `size` bytes, whatever the measured usage, because a write found the disk full. Raises
        `StoreFull`.
        """
        await self._evict(lambda _: (size, size), on_disk=True)

    async def make_room_for_push(self, size: int, *, at_once: int = _AT_ONCE) -> None:
        """Makes sure that the disk has room for `size` more bytes of hosted content, which no capacity limits, and
        evicts cached content if needed. To be called before they are received, and again while they arrive: nothing is
        reserved. Quick if there is room. Raises `NoRoomForPush`, `StoreError`.

        `size` is what a client claims, and a claim costs it nothing. So cached content makes way for the next `at_once`
        bytes only. A claim for which everything that is cached would not be enough evicts nothing.
        """
        short = self._short_of(size)
        if short <= 0:
            return
        if size > at_once:
            load = await self.load(patient=False)
            cached = load.present + load.growing + load.aside
            if short > cached:
                raise _no_room(size, short - cached, "even if everything that is cached were evicted")
            size = at_once
            short = self._short_of(size)
            if short <= 0:
                return
        with suppress(StoreFull):
            await self.make_room(short)
        # measured, because blobs that also have a hosted name free nothing, and other processes write as well
        if (short := self._short_of(size)) > 0:
            raise _no_room(size, short, "after cached content was evicted")

    def _short_of(self, size: int) -> int:
        # no thread: the kernel knows it without the disk, and every push asks
        free, _ = self._store.free()
        return size + self._watermarks.reserve - free

    # ----------------------------------------------------------------------------------------------- measuring

    async def load(self, *, patient: bool = True, gives_way: bool = False) -> StoreLoad:
        """Returns the load of the store, including what fills of this process have reserved. For the arguments see
        `StoreUsage.bytes`. Raises `StoreError`.
        """
        growing, quarantined, (free, disk) = await asyncio.to_thread(
            lambda: (self._store.growing(), self.quarantined(), self._store.free())
        )
        blobs = await self._usage.bytes(free, patient=patient, gives_way=gives_way)
        ours = self._protection.in_process()
        own = sum(size for digest, size in growing.items() if digest in ours)
        # a fill of this process counts once: by its reservation, until its partial file accounts for as much
        pending = max(0, self.reserved - own)
        return StoreLoad(blobs, sum(growing.values()), pending, free, disk, quarantined)

    async def limit(self) -> int:
        """Returns the most bytes that the store may hold now. Raises `StoreError`."""
        return self._watermarks.limit(await self.load(patient=False))

    async def fullness(self, patience: float | None = None) -> tuple[int, int] | None:
        """Returns the bytes that blobs take, and the most that they may take. Raises `StoreError`.

        Returns None if this takes longer than `patience` (seconds), because without an index a large store is walked.
        The walk continues in the background.
        """
        try:
            async with asyncio.timeout(patience):
                load = await self.load(patient=False)
        except TimeoutError:
            return None
        return load.present, self._watermarks.limit(load)

    def quarantined(self) -> int:
        """Blocking: returns the bytes of the damaged blobs in quarantine."""
        return sum(blob.size for blob in self._quarantine.blobs())

    # ------------------------------------------------------------------------------------------------ evicting

    async def plan(self, size: int | None = None, *, short: bool = False) -> list[Victim]:
        """Returns what would be dropped to free `size` bytes, or, if None, to get down to the low water. Drops nothing.

        If `short`, only the first victims are returned, as many as are found among some thousand candidates. Then
        `IndexUnavailable` is raised if the index is not usable and the store is too large to be read instead.
        """
        await self._write_behind.flush()
        if short and not await self._write_behind.index_is_whole() and await self._is_large():
            raise IndexUnavailable("the index is down or being rebuilt, and the store too large to be read for this")
        wanted = size if size is not None else self._watermarks.above_low(await self.load())
        victims, _ = await self._evictor.choose(wanted, most=_MOST_CANDIDATES if short else None)
        return victims

    async def _is_large(self) -> bool:
        """True if reading every blob's metadata and every manifest would take long."""
        return not await self.fullness(self._soon) or self._usage.is_large

    async def collect(self) -> list[Victim]:
        """Evicts down to the low water and returns what was dropped. It is no error if less can be dropped."""
        return await self._evict(lambda then: (self._watermarks.above_low(then), 0))

    async def check(self) -> None:
        """Sweeps the quarantine, and evicts what is above the high water. Updates the metrics. Raises `StoreError`."""
        load = await self.load(gives_way=True)
        limit = self._watermarks.limit(load)
        telemetry.STORE_BYTES.set(load.present)
        telemetry.STORE_LIMIT.set(limit)
        telemetry.PARTIAL_BYTES.set(load.growing)
        telemetry.QUARANTINE_BYTES.set(await self._quarantine.sweep(limit))
        if self._watermarks.excess(load):
            await self._evict(lambda then: (self._watermarks.excess(then), 0))

    async def _evict(self, need: Callable[[StoreLoad], tuple[int, int]], *, on_disk: bool = False) -> list[Victim]:
        """Waits for the turn, measures again, because other processes may have made room meanwhile, and drops what is
        still needed. Returns what was dropped.

        `need` returns the bytes that should be dropped, and those that must be dropped or `StoreFull` is raised. No
        blob is dropped if all that can be dropped would not be enough. If `on_disk`, only what the disk gets back
        counts: not the bytes of records without a file, nor of blobs that also have a hosted name.
        """
        with telemetry.span("evict") as span:
            async with self._evictor.turn():
                await self._write_behind.flush()
                # the process that had the turn before may have dropped blobs that are in the sum of this one; without
                # an index all blobs are walked anyway
                self._usage.forget()
                eviction = _Eviction(*need(await self.load()))
                await self._carry_out(eviction, on_disk)
            dropped = eviction.dropped
            span.note(mirror__blobs=len(dropped), mirror__bytes=sum(victim.size for victim in dropped))
        return dropped

    async def _carry_out(self, eviction: _Eviction, on_disk: bool) -> None:
        if urgent := eviction.must > 0:
            # damaged blobs are dropped before any good one
            eviction.has_freed(await self._quarantine.give_up())
        while eviction.should > 0:
            try:
                victims, exhausted = await self._evictor.choose(eviction.should, eviction.tried, _MOST_CANDIDATES)
            except StoreError:
                # it is not known what must stay, but interrupted downloads need not
                if eviction.must > 0 and await self._reclaim_for(eviction):
                    continue
                if urgent and eviction.must <= 0:
                    return
                raise
            offered = sum(victim.size for victim in victims)
            if offered < eviction.must and (exhausted or not victims):
                if await self._rebuilder.suspect() or await self._reclaim_for(eviction):
                    continue
                raise StoreFull(
                    f"{format_size(eviction.must)} must go, and all but {format_size(offered)} is pinned or in use"
                )
            if not victims:
                return
            eviction.tried.update(victim.digest for victim in victims)
            dropped = await self._evictor.drop_victims(victims)
            eviction.dropped += dropped.victims
            eviction.has_freed(dropped.freed if on_disk else dropped.recorded)

    async def _reclaim_for(self, eviction: _Eviction) -> bool:
        """Drops interrupted downloads that no worker resumes at the moment, once for each eviction, before a fill is
        refused; then, or the next time, those of which clients read parts. True if that made room, so that the caller
        checks again what is still needed: that may be a walk.
        """
        while eviction.reclaims:
            in_use = eviction.reclaims.pop(0)
            if freed := await asyncio.to_thread(self._reclaim, in_use):
                eviction.has_freed(freed)
                return True
        return False


@dataclass(slots=True)
class _Eviction:
    """The state of one eviction: the bytes that should still be dropped, and those that must be; the victims that were
    dropped, and all that were tried; and the arguments for further calls of `reclaim`.
    """

    should: int
    must: int
    dropped: list[Victim] = field(default_factory=list)
    tried: set[Digest] = field(default_factory=set)
    reclaims: list[bool] = field(default_factory=lambda: [False, True])

    def has_freed(self, size: int) -> None:
        """Notes that `size` bytes fewer are needed."""
        self.should -= size
        self.must -= size


def _no_room(size: int, short: int, when: str) -> NoRoomForPush:
    what = format_size(size) if size else "a push"
    return NoRoomForPush(f"the disk has no room for {what}: {format_size(short)} are missing {when}")

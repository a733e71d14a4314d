"""Keeps the store within its capacity. Drops first the blobs that no cached manifest names (loose blobs), then whole
images, the least recently used first.

What happens to one blob here:

    loose, or below the coldest image ── plan ──> victim ── 1 store.delete ──> 2 index.drop ──> gone
                                                                │
                      a crash here leaves a record without a file: dropped when it is next chosen

    manifest fetched ── name() ──> index: blobs that it names are not loose, and are dropped with the last such manifest

The index counts how many recorded manifests name each blob. So only the use of a manifest is recorded, and nothing
below it has to be touched: a blob that is named is no candidate, and images are ordered by the use of their manifests.
Choosing among a million blobs reads the ends of two ordered lists, and the content of the victims.

The order of use comes from the index, which receives uses with a short delay (`write_behind.py`). If the index is down,
or is empty because it was lost, the disk is walked instead: its own times of use apply, and all manifests are read. A
dead Redis must not let the disk fill up, and an empty index does not tell what may be dropped. Pins are always read
from the disk, each time before anything is dropped. If it is not known what must stay, nothing is dropped, and new
content is stored until the limit is reached.

Room is reserved before a fill begins. Several workers may reserve at the same moment without knowing of each other. The
gap between high water and limit is for that, and the next round, a second later, evicts what is too much. Without an
index the usage of the store is estimated (`usage.py`), but it is measured before anything is dropped. One process at a
time evicts, under a lock of the kernel (`exclusive`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from mirror import telemetry
from mirror.aio.singleflight import end
from mirror.aio.threads import to_its_end
from mirror.errors import BlobTooLarge, IndexUnavailable, StoreError, StoreFull
from mirror.eviction import candidates as finding
from mirror.eviction.quarantine_sweep import QuarantineSweeper
from mirror.eviction.reconcile import INCOMPLETE
from mirror.eviction.usage import StoreUsage
from mirror.eviction.write_behind import WriteBehind
from mirror.graph.references import ReferenceReader
from mirror.oci.digest import Digest
from mirror.policy.eviction import StoreLoad, Victim, Watermarks
from mirror.policy.quarantine_limits import QuarantineLimits
from mirror.policy.records import References
from mirror.ports import BlobInfo, BlobStore, ContentIndex
from mirror.values.sizes import format_size

#: Candidates read in one step of an eviction. Many more would block the event loop; further steps follow if needed.
_MOST_CANDIDATES: Final = 4096
#: Seconds to wait for the turn to evict. After that, a pull that waits for it is passed through without being cached.
_TURN: Final = 20.0
#: Blobs deleted before their records are dropped from the index.
_BATCH: Final = 256
#: Seconds that a caller that changes nothing waits for a walk.
_SOON: Final = 1.0
#: Seconds between two rebuilds of the index, and the most to which this grows while the disk makes rebuilds fail. Each
#: rebuild reads all manifests.
_REBUILD_EVERY: Final = 60.0
_REBUILD_AT_MOST_EVERY: Final = 3600.0
#: Seconds for which the index is not suspected again of lacking blobs.
_SUSPECT_EVERY: Final = 600.0
#: The default limits of the quarantine of damaged blobs.
_QUARANTINE: Final = QuarantineLimits()


class Reservation:
    """Room that is reserved for one fill, until `release` is called."""

    def __init__(self, size: int, released: Callable[[int], None]) -> None:
        self.size = size
        self._released = released
        self._held = True

    def release(self) -> None:
        """Gives the room back, after the blob was recorded in the index or the fill has failed. Repeatable."""
        if self._held:
            self._held = False
            self._released(self.size)


class Evictor:
    """Reserves room for fills and evicts, one instance in each process that fills the store."""

    def __init__(
        self,
        store: BlobStore,
        index: ContentIndex,
        *,
        water: Watermarks,
        names: ReferenceReader,
        protected: Callable[[], Collection[Digest]],
        pinned: Callable[[float], Collection[Digest]],
        exclusive: Callable[[], AbstractAsyncContextManager[object]],
        rebuild: Callable[[], Awaitable[object]] | None = None,
        reclaim: Callable[[], int] | None = None,
        quarantine: QuarantineLimits = _QUARANTINE,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        interval: float = 1.0,
    ) -> None:
        """`names` reads what manifests name if the index cannot tell. `protected` returns digests that must never be
        dropped, such as those of fills in this process. `pinned` returns the digests that must stay at a time (epoch
        seconds); it blocks, and raises `StoreError` if they are not known. `exclusive` holds a lock across all
        processes of this store. `rebuild` is started if the index answers but is not whole; it takes another lock, so
        that one process at a time rebuilds (`reconcile.ensure`). `reclaim` drops other dispensable files, and returns
        their bytes; it blocks, and is called before a fill is refused. `quarantine` limits the quarantine of damaged
        blobs. `interval` is in seconds.
        """
        self._store = store
        self._index = index
        self._water = water
        self._names = names
        self._protected = protected
        self._pinned = pinned
        self._exclusive = exclusive
        self._rebuild = rebuild
        self._reclaim = reclaim
        self._aside = QuarantineSweeper(store, quarantine)
        self._now = now
        self._behind = WriteBehind(store, index, now=lambda: self._now())
        self._held = StoreUsage(store, index, self._behind, now=lambda: self._now())
        self._sleep = sleep
        self._interval = interval
        self._reserved = 0
        self._evicting = asyncio.Lock()
        self._rebuilding: asyncio.Task[None] | None = None
        self._rebuilt_at = self._suspected_at = float("-inf")
        self._rebuild_every = _REBUILD_EVERY

    # ------------------------------------------------------------------------------------------------- uses

    def touch(self, digest: Digest) -> None:
        """Notes that a blob was used; see `WriteBehind.touch`."""
        self._behind.touch(digest)

    async def arrived(self, info: BlobInfo) -> None:
        """Records a new blob in the index; see `WriteBehind.arrived`."""
        await self._behind.arrived(info)

    async def name(self, names: References, size: int) -> None:
        """Records what a new manifest names; see `WriteBehind.name`."""
        await self._behind.name(names, size)

    async def flush(self) -> None:
        """Writes everything pending to index and disk; see `WriteBehind.flush`."""
        await self._behind.flush()

    @property
    def index_came_back(self) -> asyncio.Event:
        """Set when the index answers again after a failure; the caller clears it (see `WriteBehind`)."""
        return self._behind.index_came_back

    # ------------------------------------------------------------------------------------------------- room

    async def reserve(self, size: int | None) -> Reservation:
        """Reserves `size` bytes, and evicts if needed. If the size is not known (None), nothing is reserved.

        Raises `BlobTooLarge` if the blob is larger than the limit of the store, `StoreFull` if pins and fills leave no
        room for it, and `StoreError` if there is no room and it is not known what must stay.
        """
        wanted = size or 0
        # counted before the disk is measured, so that other fills of this process take this one into account
        self._reserved += wanted
        try:
            measure = await self._measure(patient=False)
            self._refuse_if_too_large(measure, wanted)
            if self._water.excess(measure):
                await self._evict_for_fill(measure)
        except BaseException:
            self._reserved -= wanted
            raise
        return Reservation(wanted, self._give_back)

    async def _evict_for_fill(self, measure: StoreLoad) -> None:
        try:
            await self._evict(lambda then: (self._water.excess(then), self._water.shortage(then)))
        except StoreFull:
            raise
        except StoreError:
            # it is not known what must stay, so nothing was dropped; a blob that fits below the limit is stored anyway
            if self._water.shortage(measure):
                raise

    def _give_back(self, size: int) -> None:
        self._reserved -= size
        # most likely the blob is stored now; if not, the next walk corrects the sum
        self._held.reckon(1, size)

    def _refuse_if_too_large(self, measure: StoreLoad, wanted: int) -> None:
        limit = self._water.limit(measure)
        if wanted > limit:
            larger = f"{format_size(wanted)} is more than the {format_size(limit)} that the store has"
            raise BlobTooLarge(f"a blob of {larger}")

    async def limit(self) -> int:
        """Returns the most bytes that the store may hold now. Raises `StoreError`."""
        return self._water.limit(await self._measure(patient=False))

    async def make_room(self, size: int) -> None:
        """Drops at least `size` bytes, whatever the measured usage, because a write found the disk full. Raises
        `StoreFull`.
        """
        await self._evict(lambda _: (size, size), on_disk=True)

    async def plan(self, size: int | None = None, *, short: bool = False) -> list[Victim]:
        """Returns what would be dropped to free `size` bytes, or, if None, to get down to the low water. Drops nothing.

        If `short`, only the first victims are returned, as many as are found among some thousand candidates. Then
        `IndexUnavailable` is raised if the index is not usable and the store is too large to be read instead.
        """
        await self.flush()
        if short and not await self._behind.index_is_whole() and await self._is_large():
            raise IndexUnavailable("the index is down or being rebuilt, and the store too large to be read for this")
        wanted = size if size is not None else _above_low(self._water, await self._measure())
        victims, _ = await self._choose(wanted, frozenset(), _MOST_CANDIDATES if short else None)
        return victims

    async def collect(self, *, dry_run: bool = False) -> list[Victim]:
        """Evicts down to the low water. Returns what was dropped, or, if `dry_run`, what would be. It is no error if
        less can be dropped.
        """
        if dry_run:
            return await self.plan()
        return await self._evict(lambda then: (_above_low(self._water, then), 0))

    async def drop(self, digests: Collection[Digest]) -> tuple[int, int]:
        """Drops these blobs, except those that must stay. Returns how many were dropped, and their bytes. Raises
        `StoreFull` if another process does not finish evicting, and `StoreError`.
        """
        victims = [Victim(digest, 0, 0.0, "purged") for digest in digests]
        async with self.turn():
            before = await asyncio.to_thread(self._behind.present, list(digests))
            dropped, _ = await self._drop(victims)
        gone = {victim.digest for victim in dropped}
        return len(gone), sum(record.size for record in before if record.digest in gone)

    async def run(self) -> None:
        """Flushes and evicts every `interval` seconds, until cancelled."""
        trouble: str | None = None
        try:
            while True:
                await self._sleep(self._interval)
                try:
                    await self.tick()
                    trouble = None
                except StoreError as error:
                    if str(error) != trouble:
                        # logged once: a disk that is read-only, or full of pinned images, stays so for many rounds
                        telemetry.log.warning("evictor.failed", reason=str(error))
                    trouble = str(error)
                except Exception:
                    # go on after any error: without this task nothing is evicted until the disk is full
                    telemetry.log.exception("evictor.crashed")
        finally:
            await self._stop_rebuilding()
            await self._held.aclose()

    async def tick(self) -> None:
        """Does one round of `run`. Raises `StoreError`."""
        await self.flush()
        if not await self._behind.index_is_whole() and self._behind.index_up:
            self._begin_rebuilding()
        measure = await self._measure()
        telemetry.STORE_BYTES.set(measure.held)
        telemetry.STORE_LIMIT.set(self._water.limit(measure))
        telemetry.PARTIAL_BYTES.set(measure.growing)
        telemetry.QUARANTINE_BYTES.set(await self._aside.sweep(self._now(), self._water.limit(measure)))
        if self._water.excess(measure):
            await self._evict(lambda then: (self._water.excess(then), 0))

    async def fullness(self, patience: float | None = None) -> tuple[int, int] | None:
        """Returns the bytes that blobs take, and the most that they may take. Raises `StoreError`.

        Returns None if this takes longer than `patience` (seconds), because without an index a large store is walked.
        The walk continues in the background.
        """
        try:
            async with asyncio.timeout(patience):
                measure = await self._measure(patient=False)
        except TimeoutError:
            return None
        return measure.held, self._water.limit(measure)

    @property
    def index_trouble(self) -> str | None:
        """Why the last call of the index failed, None if it did not. `fullness` calls the index, too."""
        return self._behind.trouble

    def quarantined(self) -> int:
        """Blocking: returns the bytes of the damaged blobs in quarantine."""
        return sum(one.size for one in self._aside.kept())

    # --------------------------------------------------------------------------------------------- measuring

    async def _measure(self, *, patient: bool = True) -> StoreLoad:
        """Returns the load of the store, including what fills of this process have reserved. For `patient` see
        `StoreUsage.bytes`.
        """
        growing, aside, (free, disk) = await asyncio.to_thread(
            lambda: (self._store.growing(), self._aside.kept(), self._store.free())
        )
        held = await self._held.bytes(free, patient=patient)
        ours = self._protected()
        own = sum(size for digest, size in growing.items() if digest in ours)
        # a fill of this process counts once: by its reservation, until its partial file accounts for as much
        pending = max(0, self._reserved - own)
        return StoreLoad(held, sum(growing.values()), pending, free, disk, sum(one.size for one in aside))

    async def _is_large(self) -> bool:
        """True if reading every blob's metadata and every manifest would take long."""
        return not await self.fullness(_SOON) or self._held.is_large

    # ---------------------------------------------------------------------------------------------- evicting

    async def _evict(self, need: Callable[[StoreLoad], tuple[int, int]], *, on_disk: bool = False) -> list[Victim]:
        """Waits for the turn, measures again, because other processes may have made room meanwhile, and drops what is
        still needed. Returns what was dropped.

        `need` returns the bytes that should be dropped, and those that must be dropped or `StoreFull` is raised. No
        blob is dropped if all that can be dropped would not be enough. If `on_disk`, only deleted files count as freed,
        not the bytes of records without a file.
        """
        with telemetry.span("evict") as span:
            async with self.turn():
                await self.flush()
                # the process that had the turn before may have dropped blobs that are in the sum of this one; without
                # an index all blobs are walked anyway
                self._held.forget()
                eviction = _Eviction(*need(await self._measure()))
                await self._carry_out(eviction, on_disk)
            dropped = eviction.dropped
            span.note(mirror__blobs=len(dropped), mirror__bytes=sum(victim.size for victim in dropped))
        return dropped

    async def _carry_out(self, eviction: _Eviction, on_disk: bool) -> None:
        if urgent := eviction.must > 0:
            # damaged blobs are dropped before any good one
            eviction.has_freed(await self._aside.give_up())
        while eviction.should > 0:
            try:
                victims, these_are_all = await self._choose(eviction.should, eviction.tried, _MOST_CANDIDATES)
            except StoreError:
                # it is not known what must stay, but interrupted downloads need not
                if eviction.must > 0 and await self._reclaim_for(eviction):
                    continue
                if urgent and eviction.must <= 0:
                    return
                raise
            offered = sum(victim.size for victim in victims)
            if offered < eviction.must and (these_are_all or not victims):
                if await self._suspect_index() or await self._reclaim_for(eviction):
                    continue
                raise StoreFull(
                    f"{format_size(eviction.must)} must go, and all but {format_size(offered)} is pinned or in use"
                )
            if not victims:
                return
            eviction.tried.update(victim.digest for victim in victims)
            freed, without_file = await self._drop(victims)
            eviction.dropped += freed
            eviction.has_freed(sum(victim.size for victim in freed) + (0 if on_disk else without_file))

    async def _reclaim_for(self, eviction: _Eviction) -> bool:
        """Drops interrupted downloads that no worker resumes at the moment, once for each eviction, before a fill is
        refused. True if this was done, so that the caller checks again what is still needed.
        """
        if self._reclaim is None or eviction.reclaimed:
            return False
        eviction.reclaimed = True
        eviction.has_freed(await asyncio.to_thread(self._reclaim))
        return True

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Holds the turn to drop blobs, one holder at a time across all processes. Inside, no other process evicts or
        purges, and everything that an earlier holder chose is gone. Raises `StoreFull` if the turn does not come in
        time, because another process hangs while it holds the turn.
        """
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(_TURN):
                    await stack.enter_async_context(self._evicting)
                    await stack.enter_async_context(self._exclusive())
            except TimeoutError as error:
                raise StoreFull("another process evicts, and does not come to an end") from error
            yield

    async def _choose(self, size: int, tried: Collection[Digest], most: int | None = None) -> tuple[list[Victim], bool]:
        """Returns victims that free `size` bytes, none of them `tried`, and whether there are no other candidates.

        The victims may be too few if more would mean to read more than `most` candidates. Raises `StoreError` if it is
        not known what must stay.
        """
        if size <= 0:
            return [], False
        spared = {*await self._staying(), *tried}
        if await self._behind.index_is_whole():
            try:
                most = None if most is None else most + len(spared)
                return await finding.from_index(self._index, size, spared, self._now(), most)
            except IndexUnavailable as error:
                self._behind.note_down(error)
        return await asyncio.to_thread(
            finding.from_disk, self._store, self._names, size, spared, self._behind.uses(), self._now()
        )

    async def _staying(self) -> set[Digest]:
        """Returns the digests that must not be dropped at this moment. Raises `StoreError` if they are not known."""
        pinned = await asyncio.to_thread(self._pinned, self._now())
        return {*pinned, *self._protected()}

    async def _drop(self, victims: list[Victim]) -> tuple[list[Victim], int]:
        """Deletes the files, then the records. Returns the victims whose file was there, and the bytes that were
        recorded for the others.
        """
        dropped: list[Victim] = []
        without_file = 0
        stuck: set[Digest] = set()
        for cut in _cut(victims, _BATCH):
            # asked again at the last moment: since the choice a fill may have begun, or an image may have been pinned
            staying = await self._staying()
            batch = [victim for victim in cut if victim.digest not in staying]
            # to its end, even if cancelled: files chosen in this turn must not be deleted during the next one
            deleted = await to_its_end(asyncio.to_thread(self._delete, batch, stuck))
            freed = [victim for victim, size in deleted if size]
            dropped += freed
            without_file += sum(victim.size for victim, size in deleted if not size)
            self._count(freed, sum(size for _, size in deleted))
            await self._behind.forget([victim.digest for victim, _ in deleted])
        return dropped, without_file

    def _delete(self, victims: list[Victim], stuck: set[Digest]) -> list[tuple[Victim, int]]:
        """Blocking: deletes the files of these victims, and returns each with the bytes that it freed. A victim that
        cannot be deleted is left out, and its images are added to `stuck`: the victims that follow in these images
        stay. Manifests come first, and a manifest that stays must not lose what it names.
        """
        deleted = []
        for victim in victims:
            if not stuck.isdisjoint(victim.images):
                continue
            try:
                deleted.append((victim, self._store.delete(victim.digest)))
            except StoreError as error:
                telemetry.log.warning("evictor.delete_failed", digest=str(victim.digest), reason=str(error))
                stuck.update(victim.images)
        return deleted

    def _count(self, freed: list[Victim], size: int) -> None:
        telemetry.EVICTED.inc(len(freed))
        telemetry.EVICTED_BYTES.inc(size)
        self._held.reckon(-len(freed), -size)

    # ---------------------------------------------------------------------------------------------- the index

    async def _suspect_index(self) -> bool:
        """Marks the index as incomplete, because it offers too little to drop: perhaps the disk has blobs that the
        index lacks. True if the caller should try again, with a walk over the disk; False if the index is not used
        anyway or was suspected not long ago.
        """
        if self._now() - self._suspected_at < _SUSPECT_EVERY or not await self._behind.index_is_whole():
            return False
        self._suspected_at = self._now()
        try:
            await self._index.set_marker(INCOMPLETE)
        except IndexUnavailable as error:
            self._behind.note_down(error)
        return True

    def _begin_rebuilding(self) -> None:
        """Starts a rebuild of the index in the background, unless one runs or the last one began not long ago."""
        if self._rebuild is None or self._rebuilding or self._now() - self._rebuilt_at < self._rebuild_every:
            return
        self._rebuilt_at = self._now()
        telemetry.log.warning("evictor.index_lost")
        self._rebuilding = asyncio.create_task(self._rebuild_now(self._rebuild), name="rebuild of the index")

    async def _rebuild_now(self, rebuild: Callable[[], Awaitable[object]]) -> None:
        try:
            await rebuild()
            self._rebuild_every = _REBUILD_EVERY
        except IndexUnavailable as error:
            self._behind.note_down(error)
        except StoreError as error:
            self._rebuild_every = min(2 * self._rebuild_every, _REBUILD_AT_MOST_EVERY)
            telemetry.log.warning("evictor.rebuild_failed", reason=str(error), again_in=self._rebuild_every)
        finally:
            self._rebuilding = None

    async def _stop_rebuilding(self) -> None:
        if self._rebuilding is not None:
            await end(self._rebuilding)


@dataclass(slots=True)
class _Eviction:
    """The state of one eviction: the bytes that should still be dropped, and those that must be; the victims that were
    dropped, and all that were tried; and whether `reclaim` was called.
    """

    should: int
    must: int
    dropped: list[Victim] = field(default_factory=list)
    tried: set[Digest] = field(default_factory=set)
    reclaimed: bool = False

    def has_freed(self, size: int) -> None:
        """Notes that `size` bytes fewer are needed."""
        self.should -= size
        self.must -= size


def _above_low(water: Watermarks, measure: StoreLoad) -> int:
    """Returns the bytes above the low water."""
    return max(0, measure.used - int(water.limit(measure) * water.low))


def _cut(victims: list[Victim], size: int) -> Iterator[list[Victim]]:
    for start in range(0, len(victims), size):
        yield victims[start : start + size]

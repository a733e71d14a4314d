"""Keeps the store within its capacity: first what no cached manifest names, then the coldest images, each whole.

What happens to one blob here:

    loose, or below the coldest image ── plan ──> victim ── 1 store.delete ──> 2 index.drop ──> gone
                                                                │
                      a crash here leaves a record without a file: dropped when it is next chosen

    manifest fetched ── name() ──> index: what it names is not loose, and only goes with the last that names it

The index counts how many remembered manifests name each blob. So what is used is the manifest alone, and nothing below
it has to be touched: a blob that is named is no candidate, and the order of images is the order of their manifests.
Choosing among a million blobs reads the ends of two ordered lists, and what is below the victims.

The order of use comes from the index, which is told of uses a little later (`write_behind.py`). Where the index is
down, or empty because it was lost, the disk is walked instead, with the times of use noted there and the manifests
read: a dead Redis must not let the disk fill up, and an empty index says nothing about what may go. Pins are read from
the disk in either case, each time before anything is dropped; where nobody knows what they are for nothing is, and what
comes is taken up to the limit.

Room is reserved before a fill begins. Several workers may reserve at the same moment without knowing of each other;
the gap between high water and limit is for that, and the next round, a second later, brings them back. What the store
holds is estimated where there is no index (`held.py`), but measured before anything is dropped.
Evicting is done by one process at a time, under a lock of the kernel (`exclusive`).
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
from mirror.policy.quarantine import QuarantineLimits
from mirror.policy.records import References
from mirror.ports import BlobInfo, BlobStore, ContentIndex
from mirror.values.sizes import format_size

__all__ = ["Evictor", "Reservation"]

#: Candidates looked at in one go while evicting: thousands more would hold up the event loop, and there is a next go.
_MOST_CANDIDATES: Final = 4096
#: Seconds to wait for one's turn to evict. The pull that waits for it then goes through uncached.
_TURN: Final = 20.0
#: Blobs deleted before the index is told.
_BATCH: Final = 256
#: Seconds that whoever only wants to know waits for a walk.
_SOON: Final = 1.0
#: Seconds between two rebuilds of the index, and at most after many that the disk has failed: each reads all manifests.
_REBUILD_EVERY: Final = 60.0
_REBUILD_AT_MOST_EVERY: Final = 3600.0
#: Seconds between two suspicions that the index lacks blobs.
_SUSPECT_EVERY: Final = 600.0
#: What is kept of what is damaged, where nobody says.
_QUARANTINE: Final = QuarantineLimits()


class Reservation:
    """Room set aside for one fill, until `release`."""

    def __init__(self, size: int, released: Callable[[int], None]) -> None:
        self.size = size
        self._released = released
        self._held = True

    def release(self) -> None:
        """Repeatable. After the blob is in the index, or was given up."""
        if self._held:
            self._held = False
            self._released(self.size)


class Evictor:
    """One in each process that fills the store."""

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
        """`names` are asked where the index cannot be. `protected` are digests never to be dropped, such as those in
        flight here; `pinned` those that must stay at a time (epoch seconds), blocking, and `StoreError` where nobody
        knows. `exclusive` holds a lock over all processes of this store. `rebuild` is started when the index answers
        but is not whole; it sees to it that one process at a time does it, under another lock (`reconcile.ensure`).
        `reclaim`, blocking, drops what else can be done without, and returns its bytes: asked before anyone is refused.
        `quarantine` bounds what was set aside as damaged. `interval` is in seconds.
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
        """See `WriteBehind`."""
        self._behind.touch(digest)

    async def arrived(self, info: BlobInfo) -> None:
        """See `WriteBehind`."""
        await self._behind.arrived(info)

    async def name(self, names: References, size: int) -> None:
        """See `WriteBehind`."""
        await self._behind.name(names, size)

    async def flush(self) -> None:
        """See `WriteBehind`."""
        await self._behind.flush()

    @property
    def index_came_back(self) -> asyncio.Event:
        """See `WriteBehind`."""
        return self._behind.index_came_back

    # ------------------------------------------------------------------------------------------------- room

    async def reserve(self, size: int | None) -> Reservation:
        """Set `size` bytes aside (None: unknown, nothing), evicting if needed.

        Raises `BlobTooLarge` where the blob is larger than the store may be, `StoreFull` where pins and fills leave no
        room for it, and `StoreError` where there is none and nobody knows what must stay.
        """
        wanted = size or 0
        # counted while we look, so that others of this process look at the disk with us in mind
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
            # nobody knows what must stay, so that nothing went: no reason to refuse what fits all the same
            if self._water.shortage(measure):
                raise

    def _give_back(self, size: int) -> None:
        self._reserved -= size
        # most likely it is held now; if not, the next walk tells
        self._held.reckon(1, size)

    def _refuse_if_too_large(self, measure: StoreLoad, wanted: int) -> None:
        limit = self._water.limit(measure)
        if wanted > limit:
            larger = f"{format_size(wanted)} is more than the {format_size(limit)} that the store has"
            raise BlobTooLarge(f"a blob of {larger}")

    async def limit(self) -> int:
        """The most bytes that the store may hold now. Raises `StoreError`."""
        return self._water.limit(await self._measure(patient=False))

    async def make_room(self, size: int) -> None:
        """The disk was full in mid-write, whatever we counted: drop at least `size` bytes. Raises `StoreFull`."""
        await self._evict(lambda _: (size, size), on_disk=True)

    async def plan(self, size: int | None = None, *, short: bool = False) -> list[Victim]:
        """What would be dropped to free `size` bytes; None: to come down to the low water. Changes nothing.

        `short`: the first of it will do, as many as are found among some thousand candidates. Raises `IndexUnavailable`
        where that would mean to read a large store, for want of an index that knows it.
        """
        await self.flush()
        if short and not await self._behind.index_is_whole() and await self._is_large():
            raise IndexUnavailable("the index is down or being rebuilt, and the store too large to be read for this")
        wanted = size if size is not None else _above_low(self._water, await self._measure())
        victims, _ = await self._choose(wanted, frozenset(), _MOST_CANDIDATES if short else None)
        return victims

    async def collect(self, *, dry_run: bool = False) -> list[Victim]:
        """Come down to the low water; what was dropped, or would be. Dropping less than wished is no error here."""
        if dry_run:
            return await self.plan()
        return await self._evict(lambda then: (_above_low(self._water, then), 0))

    async def drop(self, digests: Collection[Digest]) -> tuple[int, int]:
        """Drop these blobs, but for those that must stay; how many there were, and their bytes. Raises `StoreFull`
        where another process does not stop evicting, `StoreError`.
        """
        victims = [Victim(digest, 0, 0.0, "purged") for digest in digests]
        async with self.turn():
            before = await asyncio.to_thread(self._behind.present, list(digests))
            dropped, _ = await self._drop(victims)
        gone = {victim.digest for victim in dropped}
        return len(gone), sum(record.size for record in before if record.digest in gone)

    async def run(self) -> None:
        """Flush and evict, every `interval`, until cancelled."""
        trouble: str | None = None
        try:
            while True:
                await self._sleep(self._interval)
                try:
                    await self.tick()
                    trouble = None
                except StoreError as error:
                    if str(error) != trouble:
                        # said once: a disk that is read-only or pinned full stays so for many rounds
                        telemetry.log.warning("evictor.failed", reason=str(error))
                    trouble = str(error)
                except Exception:
                    # whatever it was: without this task nothing is evicted until the disk is full
                    telemetry.log.exception("evictor.crashed")
        finally:
            await self._stop_rebuilding()
            await self._held.aclose()

    async def tick(self) -> None:
        """One round of `run`. Raises `StoreError`."""
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
        """Bytes that blobs take, and that they may take. Raises `StoreError`.

        None: without an index a large store is walked, which takes longer than `patience` (seconds); it goes on.
        """
        try:
            async with asyncio.timeout(patience):
                measure = await self._measure(patient=False)
        except TimeoutError:
            return None
        return measure.held, self._water.limit(measure)

    @property
    def index_trouble(self) -> str | None:
        """Why the index was of no use when it was last asked, as `fullness` does; None: it was."""
        return self._behind.trouble

    def quarantined(self) -> int:
        """Blocking: bytes of damaged blobs that were set aside."""
        return sum(one.size for one in self._aside.kept())

    # --------------------------------------------------------------------------------------------- measuring

    async def _measure(self, *, patient: bool = True) -> StoreLoad:
        """Impatient: see `StoreUsage.bytes`."""
        growing, aside, (free, disk) = await asyncio.to_thread(
            lambda: (self._store.growing(), self._aside.kept(), self._store.free())
        )
        held = await self._held.bytes(free, patient=patient)
        ours = self._protected()
        own = sum(size for digest, size in growing.items() if digest in ours)
        # a fill of ours counts once: as what it reserved, until as much of it is growing
        pending = max(0, self._reserved - own)
        return StoreLoad(held, sum(growing.values()), pending, free, disk, sum(one.size for one in aside))

    async def _is_large(self) -> bool:
        """Whether a look at every blob and every manifest would take long."""
        return not await self.fullness(_SOON) or self._held.is_large

    # ---------------------------------------------------------------------------------------------- evicting

    async def _evict(self, need: Callable[[StoreLoad], tuple[int, int]], *, on_disk: bool = False) -> list[Victim]:
        """Drop what is needed, as measured once it is our turn: others may have made room meanwhile.

        `need` gives the bytes that should go, and those that must go or `StoreFull` is raised. Nothing is dropped
        where that cannot help. `on_disk`: a record without a file frees nothing, however much it was counted for.
        """
        with telemetry.span("evict") as span:
            async with self.turn():
                await self.flush()
                # who had the turn before may have dropped what is in our sum; without an index all is walked anyway
                self._held.forget()
                eviction = _Eviction(*need(await self._measure()))
                await self._carry_out(eviction, on_disk)
            dropped = eviction.dropped
            span.note(mirror__blobs=len(dropped), mirror__bytes=sum(victim.size for victim in dropped))
        return dropped

    async def _carry_out(self, eviction: _Eviction, on_disk: bool) -> None:
        if urgent := eviction.must > 0:
            # what is damaged goes before anything that is good
            eviction.has_freed(await self._aside.give_up())
        while eviction.should > 0:
            try:
                victims, these_are_all = await self._choose(eviction.should, eviction.tried, _MOST_CANDIDATES)
            except StoreError:
                # nobody knows what must stay; what was interrupted need not
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
        """Before anyone is refused, interrupted downloads go that nobody resumes at the moment; once. Whether to look
        again at what is still needed.
        """
        if self._reclaim is None or eviction.reclaimed:
            return False
        eviction.reclaimed = True
        eviction.has_freed(await asyncio.to_thread(self._reclaim))
        return True

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """One at a time over all processes: inside, nothing is evicted or purged by others, and what was chosen before
        is gone. Raises `StoreFull` where another one has stopped in the middle of it.
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
        """Victims that free `size` bytes, but for those that were `tried`; and whether there are no others.

        They may be too few where that would mean to look at more than `most` candidates.
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
        """What must not be dropped at this moment. Raises `StoreError` where nobody knows."""
        pinned = await asyncio.to_thread(self._pinned, self._now())
        return {*pinned, *self._protected()}

    async def _drop(self, victims: list[Victim]) -> tuple[list[Victim], int]:
        """The files first, then the records; those whose file was there, and the bytes recorded for the others."""
        dropped: list[Victim] = []
        without_file = 0
        stuck: set[Digest] = set()
        for cut in _cut(victims, _BATCH):
            # asked again at the last moment: a flight may have begun since they were chosen, or something was pinned
            staying = await self._staying()
            batch = [victim for victim in cut if victim.digest not in staying]
            # to its end: whoever has the next turn must not see files go that were chosen in this one
            deleted = await to_its_end(asyncio.to_thread(self._delete, batch, stuck))
            freed = [victim for victim, size in deleted if size]
            dropped += freed
            without_file += sum(victim.size for victim, size in deleted if not size)
            self._count(freed, sum(size for _, size in deleted))
            await self._behind.forget([victim.digest for victim, _ in deleted])
        return dropped, without_file

    def _delete(self, victims: list[Victim], stuck: set[Digest]) -> list[tuple[Victim, int]]:
        """Blocking: the bytes that each freed, without those that cannot be deleted, and without what comes after one
        in its image (`stuck`): manifests come first, and one that stays must not lose what it names.
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
        """There is too little to drop: perhaps the disk has blobs that the index missed. Whether to look there."""
        if self._now() - self._suspected_at < _SUSPECT_EVERY or not await self._behind.index_is_whole():
            return False
        self._suspected_at = self._now()
        try:
            await self._index.set_marker(INCOMPLETE)
        except IndexUnavailable as error:
            self._behind.note_down(error)
        return True

    def _begin_rebuilding(self) -> None:
        """In the background; not again and again."""
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
    """Bytes that should still go, and those of them that must; what was dropped for it, and what was tried."""

    should: int
    must: int
    dropped: list[Victim] = field(default_factory=list)
    tried: set[Digest] = field(default_factory=set)
    reclaimed: bool = False

    def has_freed(self, size: int) -> None:
        """So many bytes less are needed."""
        self.should -= size
        self.must -= size


def _above_low(water: Watermarks, measure: StoreLoad) -> int:
    """Bytes above the low water."""
    return max(0, measure.used - int(water.limit(measure) * water.low))


def _cut(victims: list[Victim], size: int) -> Iterator[list[Victim]]:
    for start in range(0, len(victims), size):
        yield victims[start : start + size]

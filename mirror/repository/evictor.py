"""Keeps the store within its capacity: first what no cached manifest names, then the coldest images, each whole.

What happens to one blob here:

    used ── touch() ──> in memory ── flush(), each second ──> index (order) and, hourly, the disk (used_at)
    loose, or below the coldest image ── plan ──> victim ── 1 store.delete ──> 2 index.drop ──> gone
                                                                │
                      a crash here leaves a record without a file: dropped when it is next chosen

    manifest fetched ── name() ──> index: what it names is not loose, and only goes with the last that names it

The index counts how many remembered manifests name each blob. So what is used is the manifest alone, and nothing below
it has to be touched: a blob that is named is no candidate, and the order of images is the order of their manifests.
Choosing among a million blobs reads the ends of two ordered lists, and what is below the victims.

The order of use comes from the index. Where the index is down, or empty because it was lost, the disk is walked
instead, with the times of use noted there and the manifests read: a dead Redis must not let the disk fill up, and an
empty index says nothing about what may go. Pins are read from the disk in either case, each time before anything is
dropped; where nobody knows what they are for nothing is, and what comes is taken up to the limit.

Room is reserved before a fill begins. Several workers may reserve at the same moment without knowing of each other;
the gap between high water and limit is for that, and the next round, a second later, brings them back. Without an
index nobody tells what others have stored since the disk was walked: what the disk has less of is taken for it, until
that would mean to evict; then it is walked first.
Evicting is done by one process at a time, under a lock of the kernel (`exclusive`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from mirror import telemetry
from mirror.errors import BlobUnknown, IndexUnavailable, StoreError, StoreFull
from mirror.oci.digest import Digest
from mirror.once import Once, end
from mirror.policy.eviction import Measure, Victim, Water
from mirror.policy.quarantine import Quarantine
from mirror.policy.records import ContentRecord, ManifestNames
from mirror.policy.sizes import format_size
from mirror.ports import BlobInfo, BlobStore, ContentIndex
from mirror.repository import victims as finding
from mirror.repository.names import NamesOnDisk
from mirror.repository.quarantine import KeptAside
from mirror.repository.reconcile import INCOMPLETE, is_whole

__all__ = ["Evictor", "Reservation"]

#: Uses kept in memory while the index cannot take them; the oldest go first.
_MOST_TOUCHES: Final = 100_000
#: Seconds between two notes of a blob's use on disk.
_COARSE: Final = 3600.0
#: Manifests whose names wait for the index, and blobs that do.
_MOST_UNNAMED: Final = 10_000
_MOST_UNTOLD: Final = 100_000
#: Candidates looked at in one go while evicting: thousands more would hold up the event loop, and there is a next go.
_MOST_CANDIDATES: Final = 4096
#: Seconds to wait for one's turn to evict. The pull that waits for it then goes through uncached.
_TURN: Final = 20.0
#: Blobs deleted before the index is told.
_BATCH: Final = 256
#: A sum found by walking the disk is believed for a second per so many blobs, but not longer than a minute: that keeps
#: the walks to a small part of one thread. What other processes bring meanwhile is not in it, so it is soon done again
#: where the store is small and they could fill it in no time.
_BELIEVED_PER_SECOND: Final = 1000
_WALK_EVERY: Final = 60.0
#: Blobs that are walked while a fill waits: some tenths of a second at the most.
_QUICKLY_WALKED: Final = 10_000
#: Seconds that whoever only wants to know waits for a walk.
_SOON: Final = 1.0
#: Seconds between two rebuilds of the index, and between two suspicions that it lacks blobs.
_REBUILD_EVERY: Final = 60.0
_SUSPECT_EVERY: Final = 600.0
#: What is kept of what is damaged, where nobody says.
_QUARANTINE: Final = Quarantine()


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
        water: Water,
        names: NamesOnDisk,
        protected: Callable[[], Collection[Digest]],
        pinned: Callable[[float], Collection[Digest]],
        exclusive: Callable[[], AbstractAsyncContextManager[object]],
        rebuild: Callable[[], Awaitable[object]] | None = None,
        reclaim: Callable[[], int] | None = None,
        quarantine: Quarantine = _QUARANTINE,
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
        self._aside = KeptAside(store, quarantine)
        self._now = now
        self._sleep = sleep
        self._interval = interval
        self._touches: dict[Digest, float] = {}
        self._unmarked: dict[Digest, float] = {}
        self._marked: dict[Digest, float] = {}
        self._unnamed: dict[Digest, tuple[ManifestNames, ContentRecord]] = {}
        #: Blobs that came while the index did not answer; in order of arrival, the values say nothing.
        self._untold: dict[Digest, None] = {}
        self._reserved = 0
        self._evicting = asyncio.Lock()
        self._walking = Once()
        self._index_up = True
        #: Set when the index answers again after it did not; cleared by whoever sees to what it may have missed.
        self.index_came_back = asyncio.Event()
        self._sum: _Sum | None = None
        self._rebuilding: asyncio.Task[None] | None = None
        self._rebuilt_at = self._suspected_at = float("-inf")

    # ------------------------------------------------------------------------------------------------- uses

    def touch(self, digest: Digest) -> None:
        """A blob was used. Cheap: a few dictionary operations."""
        now = self._now()
        _remember(self._touches, digest, now)
        if now - self._marked.get(digest, float("-inf")) >= _COARSE:
            _remember(self._marked, digest, now)
            _remember(self._unmarked, digest, now)

    async def arrived(self, info: BlobInfo) -> None:
        """A blob is here. What the index cannot take now is told once it answers again: a blob that it does not know is
        neither counted nor ever dropped.
        """
        try:
            await self._index.put([ContentRecord(info.digest, info.size, self._now())])
        except BaseException as error:
            self._untold[info.digest] = None
            if len(self._untold) > _MOST_UNTOLD:
                # the daily comparison with the disk finds it
                del self._untold[next(iter(self._untold))]
            if not isinstance(error, IndexUnavailable):
                raise
            self._note_down(error)

    async def _flush_untold(self) -> None:
        if not self._untold or not self._index_up:
            return
        untold, self._untold = self._untold, {}
        try:
            # some may have been dropped meanwhile
            await self._index.put(await asyncio.to_thread(self._present, list(untold)))
        except BaseException as error:
            self._untold = {**untold, **self._untold}
            if not isinstance(error, IndexUnavailable):
                raise
            self._note_down(error)

    async def name(self, names: ManifestNames, size: int) -> None:
        """A manifest of `size` bytes is here. What the index cannot take now is told with the next flush."""
        self._unnamed[names.digest] = names, ContentRecord(names.digest, size, self._now())
        if len(self._unnamed) > _MOST_UNNAMED:
            # the daily comparison with the disk finds it
            del self._unnamed[next(iter(self._unnamed))]
        await self._flush_names()

    async def _flush_names(self) -> None:
        unnamed, self._unnamed = self._unnamed, {}
        if not unnamed:
            return
        try:
            # the blob too: of one that it does not know, the index takes no names
            await self._index.put([record for _, record in unnamed.values()])
            await self._index.name([names for names, _ in unnamed.values()])
        except BaseException as error:
            self._unnamed = {**unnamed, **self._unnamed}
            if not isinstance(error, IndexUnavailable):
                raise
            self._note_down(error)

    async def flush(self) -> None:
        """Tell index and disk of the uses since. What the index cannot take now is kept for the next time."""
        await self._flush_to_disk()
        await self._flush_untold()
        await self._flush_names()
        touches, self._touches = self._touches, {}
        if not touches:
            return
        try:
            await self._index.touch(touches)
        except IndexUnavailable as error:
            self._put_back(touches)
            self._note_down(error)
        except BaseException:
            self._put_back(touches)
            raise
        else:
            self._note_up()

    async def _flush_to_disk(self) -> None:
        unmarked, self._unmarked = self._unmarked, {}
        if unmarked:
            try:
                await asyncio.to_thread(self._store.mark_used, unmarked)
            except StoreError as error:
                telemetry.log.warning("evictor.mark_failed", reason=str(error))

    def _put_back(self, touches: Mapping[Digest, float]) -> None:
        """Before what came meanwhile, which is later; the oldest beyond the bound are lost."""
        merged = {**touches, **self._touches}
        self._touches = dict(islice(merged.items(), max(0, len(merged) - _MOST_TOUCHES), None))

    # ------------------------------------------------------------------------------------------------- room

    async def reserve(self, size: int | None) -> Reservation:
        """Set `size` bytes aside (None: unknown, nothing), evicting if needed.

        Raises `StoreFull` where the blob is larger than the store may be, or pins and fills leave no room for it, and
        `StoreError` where there is none and nobody knows what must stay.
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

    async def _evict_for_fill(self, measure: Measure) -> None:
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
        self._reckon(1, size)

    def _refuse_if_too_large(self, measure: Measure, wanted: int) -> None:
        limit = self._water.limit(measure)
        if wanted > limit:
            raise StoreFull(f"a blob of {format_size(wanted)} is more than the {format_size(limit)} that the store has")

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
        if short and not await self._index_is_whole() and await self._is_large():
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
        async with self._in_turn():
            before = await asyncio.to_thread(self._present, list(digests))
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
            await self._walking.aclose()

    async def tick(self) -> None:
        """One round of `run`. Raises `StoreError`."""
        await self.flush()
        if not await self._index_is_whole() and self._index_up:
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

    def quarantined(self) -> int:
        """Blocking: bytes of damaged blobs that were set aside."""
        return sum(one.size for one in self._aside.kept())

    # --------------------------------------------------------------------------------------------- measuring

    async def _measure(self, *, patient: bool = True) -> Measure:
        """Impatient: without an index an older sum of a large store will do, for a walk over a million blobs takes its
        time; what others may have stored since is added.
        """
        growing, aside, (free, disk) = await asyncio.to_thread(
            lambda: (self._store.growing(), self._aside.kept(), self._store.free())
        )
        held = await self._held(patient, free)
        ours = self._protected()
        own = sum(size for digest, size in growing.items() if digest in ours)
        # a fill of ours counts once: as what it reserved, until as much of it is growing
        pending = max(0, self._reserved - own)
        return Measure(held, sum(growing.values()), pending, free, disk, sum(one.size for one in aside))

    async def _held(self, patient: bool, free: int) -> int:
        """Bytes of all blobs, by the index where it knows them. `free` are those of the disk, looked at just now."""
        if await self._index_is_whole():
            try:
                usage = await self._index.usage()
            except IndexUnavailable as error:
                self._note_down(error)
            else:
                telemetry.STORE_BLOBS.set(usage.blobs)
                # good enough for the impatient, should the index go away
                self._sum = _Sum(usage.blobs, usage.bytes, float("-inf"), usage.bytes, free)
                return usage.bytes
        known = self._sum
        if known is None or ((patient or known.blobs <= _QUICKLY_WALKED) and self._is_old(known)):
            # fills that begin together wait for the same walk; whoever evicts wants to see what was dropped before
            known = await (self._walk_now() if patient else self._walking.run("all", self._walk_now))
        telemetry.STORE_BLOBS.set(known.blobs)
        return known.bytes if patient else known.at_most(free)

    def _is_old(self, known: _Sum) -> bool:
        """Whether a walk is not believed any more, or the clock was set."""
        return not 0 <= self._now() - known.at < min(_WALK_EVERY, known.blobs / _BELIEVED_PER_SECOND)

    async def _is_large(self) -> bool:
        """Whether a look at every blob and every manifest would take long."""
        known = self._sum if await self.fullness(_SOON) else None
        return known is None or known.blobs > _QUICKLY_WALKED

    async def _walk_now(self) -> _Sum:
        self._sum = await asyncio.to_thread(self._walk)
        return self._sum

    def _reckon(self, blobs: int, size: int) -> None:
        """Into the sum: what this process has stored since, or (negative) dropped."""
        if self._sum is not None:
            self._sum = replace(self._sum, blobs=self._sum.blobs + blobs, bytes=self._sum.bytes + size)

    async def _index_is_whole(self) -> bool:
        """Whether it answers, and knows what the disk has."""
        try:
            whole = await is_whole(self._index)
        except IndexUnavailable as error:
            self._note_down(error)
            return False
        self._note_up()
        return whole

    def _walk(self) -> _Sum:
        """Blocking: what is on disk."""
        began, (free, _) = self._now(), self._store.free()
        blobs = total = 0
        for info in self._store.walk():
            blobs += 1
            total += info.size
        return _Sum(blobs, total, began, total, free)

    # ---------------------------------------------------------------------------------------------- evicting

    async def _evict(self, need: Callable[[Measure], tuple[int, int]], *, on_disk: bool = False) -> list[Victim]:
        """Drop what is needed, as measured once it is our turn: others may have made room meanwhile.

        `need` gives the bytes that should go, and those that must go or `StoreFull` is raised. Nothing is dropped
        where that cannot help. `on_disk`: a record without a file frees nothing, however much it was counted for.
        """
        dropped: list[Victim] = []
        tried: set[Digest] = set()
        with telemetry.span("evict") as span:
            await self._evict_into(dropped, tried, need, on_disk)
            span.note(mirror__blobs=len(dropped), mirror__bytes=sum(victim.size for victim in dropped))
        return dropped

    async def _evict_into(
        self,
        dropped: list[Victim],
        tried: set[Digest],
        need: Callable[[Measure], tuple[int, int]],
        on_disk: bool,
    ) -> None:
        async with self._in_turn():
            await self.flush()
            # who had the turn before may have dropped what is in our sum; without an index all is walked anyway
            self._sum = None
            should, must = need(await self._measure())
            if urgent := must > 0:
                # what is damaged goes before anything that is good
                gone = await self._aside.give_up()
                should, must = should - gone, must - gone
            reclaimed = self._reclaim is None
            while should > 0:
                try:
                    victims, these_are_all = await self._choose(should, tried, _MOST_CANDIDATES)
                except StoreError:
                    # nobody knows what must stay; what was interrupted need not
                    if must > 0 and not reclaimed:
                        reclaimed, gone = True, await self._reclaim_now()
                        should, must = should - gone, must - gone
                        continue
                    if urgent and must <= 0:
                        break
                    raise
                offered = sum(victim.size for victim in victims)
                too_little = offered < must and (these_are_all or not victims)
                if too_little and await self._suspect_index():
                    continue
                if too_little and not reclaimed:
                    # before anyone is refused, interrupted downloads go that nobody resumes at the moment
                    reclaimed, gone = True, await self._reclaim_now()
                    should, must = should - gone, must - gone
                    continue
                if too_little:
                    raise StoreFull(
                        f"{format_size(must)} must go, and all but {format_size(offered)} is pinned or in use"
                    )
                if not victims:
                    break
                tried.update(victim.digest for victim in victims)
                freed, without_file = await self._drop(victims)
                dropped += freed
                gone = sum(victim.size for victim in freed) + (0 if on_disk else without_file)
                should, must = should - gone, must - gone

    async def _reclaim_now(self) -> int:
        """Bytes of what could be done without."""
        return await asyncio.to_thread(self._reclaim) if self._reclaim else 0

    @asynccontextmanager
    async def _in_turn(self) -> AsyncIterator[None]:
        """One at a time over all processes. Raises `StoreFull` where another one has stopped in the middle of it."""
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
        if await self._index_is_whole():
            try:
                most = None if most is None else most + len(spared)
                return await finding.from_index(self._index, size, spared, self._now(), most)
            except IndexUnavailable as error:
                self._note_down(error)
        return await asyncio.to_thread(
            finding.from_disk, self._store, self._names, size, spared, dict(self._touches), self._now()
        )

    async def _staying(self) -> set[Digest]:
        """What must not be dropped at this moment. Raises `StoreError` where nobody knows."""
        pinned = await asyncio.to_thread(self._pinned, self._now())
        return {*pinned, *self._protected()}

    async def _drop(self, victims: list[Victim]) -> tuple[list[Victim], int]:
        """The files first, then the records; those whose file was there, and the bytes recorded for the others."""
        dropped: list[Victim] = []
        without_file = 0
        for cut in _cut(victims, _BATCH):
            # asked again at the last moment: a flight may have begun since they were chosen, or something was pinned
            staying = await self._staying()
            batch = [victim for victim in cut if victim.digest not in staying]
            deleted = await asyncio.to_thread(self._delete, batch)
            freed = [victim for victim, size in deleted if size]
            dropped += freed
            without_file += sum(victim.size for victim, size in deleted if not size)
            self._count(freed, sum(size for _, size in deleted))
            await self._forget([victim.digest for victim, _ in deleted])
        return dropped, without_file

    def _delete(self, victims: list[Victim]) -> list[tuple[Victim, int]]:
        """Blocking: the bytes that each freed, without those that cannot be deleted."""
        deleted = []
        for victim in victims:
            try:
                deleted.append((victim, self._store.delete(victim.digest)))
            except StoreError as error:
                telemetry.log.warning("evictor.delete_failed", digest=str(victim.digest), reason=str(error))
        return deleted

    def _count(self, freed: list[Victim], size: int) -> None:
        telemetry.EVICTED.inc(len(freed))
        telemetry.EVICTED_BYTES.inc(size)
        self._reckon(-len(freed), -size)

    async def _forget(self, digests: list[Digest]) -> None:
        """Drop the records, except of a blob that was fetched again in the very moment."""
        try:
            await self._index.drop(digests)
            again = await asyncio.to_thread(self._present, digests)
            if again:
                await self._index.put(again)
        except IndexUnavailable as error:
            # records without files are dropped when they are met
            self._note_down(error)

    def _present(self, digests: list[Digest]) -> list[ContentRecord]:
        """Blocking."""
        found = []
        for digest in digests:
            try:
                info = self._store.stat(digest)
            except BlobUnknown:
                continue
            found.append(ContentRecord(digest, info.size, info.used_at))
        return found

    # ---------------------------------------------------------------------------------------------- the index

    async def _suspect_index(self) -> bool:
        """There is too little to drop: perhaps the disk has blobs that the index missed. Whether to look there."""
        if self._now() - self._suspected_at < _SUSPECT_EVERY or not await self._index_is_whole():
            return False
        self._suspected_at = self._now()
        try:
            await self._index.set_marker(INCOMPLETE)
        except IndexUnavailable as error:
            self._note_down(error)
        return True

    def _begin_rebuilding(self) -> None:
        """In the background; not again and again."""
        if self._rebuild is None or self._rebuilding or self._now() - self._rebuilt_at < _REBUILD_EVERY:
            return
        self._rebuilt_at = self._now()
        telemetry.log.warning("evictor.index_lost")
        self._rebuilding = asyncio.create_task(self._rebuild_now(self._rebuild), name="rebuild of the index")

    async def _rebuild_now(self, rebuild: Callable[[], Awaitable[object]]) -> None:
        try:
            await rebuild()
        except IndexUnavailable as error:
            self._note_down(error)
        except StoreError as error:
            telemetry.log.warning("evictor.rebuild_failed", reason=str(error))
        finally:
            self._rebuilding = None

    async def _stop_rebuilding(self) -> None:
        if self._rebuilding is not None:
            await end(self._rebuilding)

    def _note_down(self, error: IndexUnavailable) -> None:
        if self._index_up:
            self._index_up = False
            telemetry.log.warning("evictor.without_index", reason=str(error))

    def _note_up(self) -> None:
        if not self._index_up:
            self._index_up = True
            self.index_came_back.set()
            telemetry.log.info("evictor.with_index")


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


def _above_low(water: Water, measure: Measure) -> int:
    """Bytes above the low water."""
    return max(0, measure.used - int(water.limit(measure) * water.low))


def _remember(times: dict[Digest, float], digest: Digest, now: float) -> None:
    """As the latest; the oldest goes where there are too many."""
    times.pop(digest, None)
    times[digest] = now
    if len(times) > _MOST_TOUCHES:
        del times[next(iter(times))]


def _cut(victims: list[Victim], size: int) -> Iterator[list[Victim]]:
    for start in range(0, len(victims), size):
        yield victims[start : start + size]

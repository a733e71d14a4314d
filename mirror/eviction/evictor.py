"""Chooses what to drop and drops it: first the blobs that no cached manifest names (loose blobs), then whole images,
the least recently used first. `space.py` decides when, and how much.

A blob of the cache that also has a hosted name is dropped like any other: then the cache has less, and the disk has no
more room than before.

What happens to one blob here:

    loose, or below the coldest image ── choose ──> victim ── 1 store.delete ──> 2 index.drop ──> gone
                                                                  │
                        a crash here leaves a record without a file: dropped when it is next chosen

The index counts how many recorded manifests name each blob. So only the use of a manifest is recorded, and nothing
below it has to be touched: a blob that is named is no candidate, and images are ordered by the use of their manifests.
Choosing among a million blobs reads the ends of two ordered lists, and the content of the victims.

The order of use comes from the index, which receives uses with a short delay (`write_behind.py`). If the index is down,
or is empty because it was lost, the disk is walked instead: its own times of use apply, and all manifests are read. A
dead Redis must not let the disk fill up, and an empty index does not tell what may be dropped. What must stay
(`protection.py`) is read each time before anything is dropped. If it is not known, nothing is dropped.

One process at a time drops blobs, under a lock of the kernel (`exclusive`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from mirror import telemetry
from mirror.aio.batches import batches
from mirror.aio.threads import uninterrupted
from mirror.errors import IndexUnavailable, StoreError, StoreFull
from mirror.eviction import candidates
from mirror.eviction.protection import Protection
from mirror.eviction.usage import StoreUsage
from mirror.eviction.write_behind import WriteBehind
from mirror.graph.references import ReferenceReader
from mirror.oci.digest import Digest
from mirror.policy.eviction import Victim
from mirror.ports import BlobStore, ContentIndex, Deleted

#: Seconds to wait for the turn to drop. After that, a pull that waits for it is passed through without being cached.
_TURN: Final = 20.0
#: Blobs deleted before their records are dropped from the index.
_BATCH: Final = 256


@dataclass(frozen=True, slots=True)
class Dropped:
    """What was dropped: the `victims` whose file was there; the bytes that were `recorded` for all that are gone now,
    also for those without a file; and the bytes that were `freed` on the disk, fewer if blobs have a hosted name.
    """

    victims: list[Victim]
    recorded: int
    freed: int


class Evictor:
    """Drops blobs of one store, one instance in each process that does so."""

    def __init__(
        self,
        store: BlobStore,
        index: ContentIndex,
        write_behind: WriteBehind,
        usage: StoreUsage,
        references: ReferenceReader,
        protection: Protection,
        *,
        exclusive: Callable[[], AbstractAsyncContextManager[object]],
        now: Callable[[], float],
    ) -> None:
        """`references` reads what manifests name if the index cannot tell. `exclusive` holds a lock across all
        processes of this store.
        """
        self._store = store
        self._index = index
        self._write_behind = write_behind
        self._usage = usage
        self._references = references
        self._protection = protection
        self._exclusive = exclusive
        self._now = now
        self._ours = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Evictor {'has or awaits the turn' if self._ours.locked() else 'idle'}>"

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Holds the turn to drop blobs, one holder at a time across all processes. Inside, no other process evicts or
        purges, and everything that an earlier holder chose is gone. Raises `StoreFull` if the turn does not come in
        time, because another process hangs while it holds the turn.
        """
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(_TURN):
                    await stack.enter_async_context(self._ours)
                    await stack.enter_async_context(self._exclusive())
            except TimeoutError as error:
                raise StoreFull("another process evicts, and does not come to an end") from error
            yield

    async def choose(
        self, size: int, tried: Collection[Digest] = (), most: int | None = None
    ) -> tuple[list[Victim], bool]:
        """Returns victims that free `size` bytes, none of them `tried`, and whether there are no other candidates.

        The victims may be too few if more would mean to read more than `most` candidates. Raises `StoreError` if it is
        not known what must stay.
        """
        if size <= 0:
            return [], False
        spared = {*await self._protection.at(self._now()), *tried}
        if await self._write_behind.index_is_whole():
            try:
                most = None if most is None else most + len(spared)
                return await candidates.from_index(self._index, size, spared, self._now(), most)
            except IndexUnavailable as error:
                self._write_behind.note_down(error)
        uses = self._write_behind.uses()
        return await asyncio.to_thread(
            candidates.from_disk, self._store, self._references, size, spared, uses, self._now()
        )

    async def drop(self, digests: Collection[Digest]) -> tuple[int, int]:
        """Waits for the turn and drops these blobs, except those that must stay. Returns how many were dropped, and
        their bytes. Raises `StoreFull` if another process does not finish evicting, and `StoreError`.
        """
        victims = [Victim(digest, 0, 0.0, "purged") for digest in digests]
        async with self.turn():
            before = await asyncio.to_thread(self._write_behind.present, list(digests))
            dropped = await self.drop_victims(victims)
        gone = {victim.digest for victim in dropped.victims}
        return len(gone), sum(record.size for record in before if record.digest in gone)

    async def drop_victims(self, victims: list[Victim]) -> Dropped:
        """Deletes the files, then the records; the caller has the turn. Victims that must stay by now are left out.
        Raises `StoreError`.
        """
        dropped: list[Victim] = []
        recorded = freed = 0
        stuck: set[Digest] = set()
        for cut in batches(victims, _BATCH):
            # asked again at the last moment: since the choice a fill may have begun, or an image may have been pinned
            staying = await self._protection.at(self._now())
            batch = [victim for victim in cut if victim.digest not in staying]
            # to its end, even if cancelled: files chosen in this turn must not be deleted during the next one
            deleted = await uninterrupted(asyncio.to_thread(self._delete, batch, stuck))
            gone = [victim for victim, file in deleted if file.size]
            dropped += gone
            recorded += sum(victim.size for victim, _ in deleted)
            freed += sum(file.freed for _, file in deleted)
            self._count(gone, sum(file.size for _, file in deleted))
            await self._write_behind.forget([victim.digest for victim, _ in deleted])
        return Dropped(dropped, recorded, freed)

    def _delete(self, victims: list[Victim], stuck: set[Digest]) -> list[tuple[Victim, Deleted]]:
        """Blocking: deletes the files of these victims, and returns each with what that has done. A victim that cannot
        be deleted is left out, and its images are added to `stuck`: the victims that follow in these images stay.
        Manifests come first, and a manifest that stays must not lose what it names.
        """
        deleted = []
        for victim in victims:
            if not stuck.isdisjoint(victim.images):
                continue
            try:
                deleted.append((victim, self._store.delete(victim.digest)))
            except StoreError as error:
                telemetry.log.warning("blob cannot be deleted", digest=str(victim.digest), reason=str(error))
                stuck.update(victim.images)
        return deleted

    def _count(self, freed: list[Victim], size: int) -> None:
        telemetry.EVICTED.inc(len(freed))
        telemetry.EVICTED_BYTES.inc(size)
        self._usage.adjust(-len(freed), -size)

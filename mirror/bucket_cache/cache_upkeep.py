"""Keeps the cache in the bucket within its capacity, and the book of it right. One process of the machine does this.

    every minute      more than the high water ──> the least recently used go, down to the low water
    at start, daily   a flat listing of the bucket ──> the book; records of manifests that are gone ──> deleted

Manifests and the blobs that they name have the same time of use (`CacheUses`), so images go about as a whole, and a
blob that several images share goes with the one that was used last. What pins and freezes protect stays: what they are
about is brought back to the disk first, if it was lost. If it is not known what they protect, nothing is deleted.

In a cluster, each replica keeps its own book right, and one of them, under a lease, deletes for all.

A deletion has no condition. One that is late may hit an object that was put again since: the book then has an object
that is gone, which the next reader finds out and fetches from upstream.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final

from mirror import telemetry
from mirror.aio.batches import batches_in_thread
from mirror.bucket_cache.cached_keys import BLOBS, RECORDS, RecordKind, blob_key, parse_blob_key, parse_record_key
from mirror.oci.digest import Digest
from mirror.ports import BookedObject, Bucket, Lease, ObjectBook, ObjectInfo
from mirror.rounds import KeptLock, run_rounds

#: Seconds between two rounds, and between two listings.
_EVERY: Final = 60.0
_LIST_EVERY: Final = 86400.0
#: The same if other replicas write to the bucket as well.
_LIST_EVERY_BESIDES_OTHERS: Final = 3600.0
#: Seconds after which a failed listing is tried again.
_LIST_AGAIN: Final = 600.0
#: Objects that are listed, or deleted, at a time.
_BATCH: Final = 1000
#: Seconds after which the record of a manifest whose bytes are gone is deleted. That of one whose bytes are still being
#: written is younger.
_FORGET_AFTER: Final = 86400.0


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """The bytes that cached blobs may take in the bucket: above `high` some are deleted, down to `low`."""

    high: int
    low: int


class CacheUpkeep:
    """The rounds of one process."""

    def __init__(
        self,
        bucket: Bucket,
        book: ObjectBook,
        limits: CacheLimits | None,
        *,
        protected: Callable[[float], Collection[Digest]],
        restore: Callable[[], Awaitable[None]],
        try_hold: Callable[[], Awaitable[Lease | None]],
        evicts: Callable[[], Awaitable[Lease | None]] | None = None,
        share: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`limits` is None if there is none. `protected` blocks and returns what pins and freezes protect; it raises
        `StoreError` if that is not known. `restore` brings back to the disk what tells `protected` what that is; it
        raises `StoreError`. `try_hold` takes the lock of this work if no other process of this
        machine has it. In a cluster, `evicts` takes that of the replica which deletes; None: there is no other replica.
        `share` blocks: it exchanges with the others what was used; it raises `StoreError`.
        """
        self._bucket = bucket
        self._book = book
        self._limits = limits
        self._protected = protected
        self._restore = restore
        self._try_hold = try_hold
        self._share = share
        self._evicting = None if evicts is None else KeptLock(evicts)
        self._now = now
        self._sleep = sleep
        self._list_at = float("-inf")

    def __repr__(self) -> str:
        return f"<CacheUpkeep {self._limits}>"

    async def run(self) -> None:
        """Does a round every minute, until cancelled."""

        async def tick_if_ours() -> None:
            if await lock.taken() is not None:
                await self.tick()

        with KeptLock(self._try_hold) as lock, self._evicting or nullcontext():
            await run_rounds(
                tick_if_ours,
                _EVERY,
                failed="upkeep of bucket cache failed",
                crashed="upkeep of bucket cache crashed",
                once=True,
                sleep=self._sleep,
            )

    async def tick(self) -> None:
        """Does one round. Raises `StoreError`, `IndexUnavailable`."""
        completed = await asyncio.to_thread(self._book.completed_at)
        now = self._now()
        every = _LIST_EVERY if self._evicting is None else _LIST_EVERY_BESIDES_OTHERS
        if now >= self._list_at and (completed is None or not 0 <= now - completed < every):
            self._list_at = now + _LIST_AGAIN
            await self.list_all()
            await asyncio.to_thread(self._share)
        if await self._may_evict():
            await self.evict()
        totals = await asyncio.to_thread(self._book.totals)
        telemetry.BUCKET_CACHE_OBJECTS.set(totals.objects)
        telemetry.BUCKET_CACHE_BYTES.set(totals.bytes)

    async def _may_evict(self) -> bool:
        """Whether this process, of all replicas, is the one that deletes. Raises `StoreError`."""
        return self._evicting is None or await self._evicting.taken() is not None

    async def list_all(self) -> None:
        """Lists the bucket's cache, and corrects the book. Raises `StoreError`, `IndexUnavailable`."""
        number = await asyncio.to_thread(self._book.begin_listing)
        objects = records = forgotten = 0
        #: The latest time of the store's clock that was seen.
        latest = 0.0
        async for page in batches_in_thread(self._bucket.list(BLOBS), _BATCH):
            latest = max([latest, *(info.changed_at for info in page)])
            objects += await asyncio.to_thread(self._enter_blobs, number, page)
        async for page in batches_in_thread(self._bucket.list(RECORDS), _BATCH):
            latest = max([latest, *(info.changed_at for info in page)])
            gone = await asyncio.to_thread(self._enter_records, number, page, latest)
            records, forgotten = records + len(page) - gone, forgotten + gone
        await asyncio.to_thread(self._book.end_listing, number, self._now())
        telemetry.log.info("bucket cache listed", objects=objects, records=records, forgotten=forgotten)

    def _enter_blobs(self, number: int, page: list[ObjectInfo]) -> int:
        """Blocking: returns how many blobs are entered."""
        blobs = [
            BookedObject(digest, info.size, info.changed_at) for info in page if (digest := parse_blob_key(info.key))
        ]
        self._book.listed(number, blobs, ())
        return len(blobs)

    def _enter_records(self, number: int, page: list[ObjectInfo], latest: float) -> int:
        """Blocking: enters records; deletes those of manifests whose bytes are gone, and returns how many. `latest` is
        a time of the store's clock that has passed.
        """
        gone = [info.key for info in page if self._is_useless(info, latest)]
        self._book.listed(number, (), [info.key for info in page])
        if gone:
            self._bucket.delete(gone)
            self._book.drop_records(gone)
        return len(gone)

    def _is_useless(self, info: ObjectInfo, latest: float) -> bool:
        record = parse_record_key(info.key)
        return (
            record is not None
            and record.kind is RecordKind.MANIFEST
            and latest - info.changed_at > _FORGET_AFTER
            and self._book.find(record.digest) is None
            # the listing may have been late, or another replica has put the bytes since
            and self._bucket.head(blob_key(record.digest)) is None
        )

    async def evict(self) -> None:
        """Deletes what is too much. Raises `StoreError`, `IndexUnavailable`."""
        if self._limits is None:
            return
        totals = await asyncio.to_thread(self._book.totals)
        if totals.bytes <= self._limits.high:
            return
        await self._restore()
        spared = await asyncio.to_thread(self._protected, self._now())
        excess = totals.bytes - self._limits.low
        while excess > 0:
            coldest = await asyncio.to_thread(self._book.coldest, _BATCH + len(spared))
            victims = _enough([each for each in coldest if each.digest not in spared], excess)
            if not victims:
                telemetry.log.warning("bucket cache full", reason="pins and freezes protect the rest", bytes=excess)
                return
            if self._evicting is not None and self._evicting.is_lost:
                return
            await asyncio.to_thread(self._delete, victims)
            excess -= sum(each.size for each in victims)

    def _delete(self, victims: list[BookedObject]) -> None:
        """Blocking."""
        self._bucket.delete([blob_key(each.digest) for each in victims])
        self._book.drop([each.digest for each in victims])
        telemetry.BUCKET_CACHE_EVICTED.inc(len(victims))
        telemetry.BUCKET_CACHE_EVICTED_BYTES.inc(sum(each.size for each in victims))


def _enough(candidates: list[BookedObject], size: int) -> list[BookedObject]:
    """The first candidates that have `size` bytes together, up to a batch."""
    chosen: list[BookedObject] = []
    for each in candidates[:_BATCH]:
        if size <= 0:
            break
        chosen.append(each)
        size -= each.size
    return chosen

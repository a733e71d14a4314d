"""Builds the cache in the bucket, if `cache_in_bucket` is set."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mirror import telemetry
from mirror.aio.closing import close_all
from mirror.bucket_cache.bucket_purge import BucketPurge
from mirror.bucket_cache.cache_upkeep import CacheLimits, CacheUpkeep
from mirror.bucket_cache.cache_uses import CacheUses
from mirror.bucket_cache.cached_objects import CachedObjects
from mirror.bucket_cache.cached_uploads import CachedUploads
from mirror.bucket_cache.kept_content import KeptContent
from mirror.bucket_cache.restoring import Restoring
from mirror.bucket_cache.shared_uses import SharedUses
from mirror.bucket_cache.site_records import SiteRecords
from mirror.config import Config, routing_table
from mirror.errors import IndexUnavailable
from mirror.index.cached_book import CachedBook
from mirror.oci.digest import Digest
from mirror.ports import BlobStore, Bucket, Catalog, Freezes, Locks, OrderedPurges, Pins
from mirror.store.local.layout import Layout
from mirror.store.local.locks import FileLocks
from mirror.values.sizes import parse_size
from mirror.values.timestamps import moment

if TYPE_CHECKING:
    # commands need no server
    from mirror.server.admin.bucket_status import BucketCacheJson

#: The lock of the process that keeps the cache in the bucket within its limits.
UPKEEP_LOCK: Final = "bucketcache"
#: In a cluster, the lock of the process of a replica that keeps its book right.
_BOOK_LOCK: Final = "bucketbook"
#: Threads that wait for the bucket on behalf of misses.
_RESTORING_THREADS: Final = 4


@dataclass(frozen=True, slots=True)
class BucketCache:
    """The parts of one process. `keeps` says of which registries the bucket keeps content."""

    bucket: Bucket
    book: CachedBook
    capacity: int | None
    limits: CacheLimits | None
    keeps: Callable[[str], bool]
    uploads: CachedUploads
    objects: CachedObjects
    uses: CacheUses
    kept: KeptContent
    restoring: Restoring
    purge: BucketPurge
    locks: FileLocks
    executor: Executor
    now: Callable[[], float]

    def upkeep(
        self,
        protected: Callable[[float], Collection[Digest]],
        pins: Pins,
        freezes: Freezes,
        work: Locks | None = None,
        replica: str = "",
    ) -> CacheUpkeep:
        """What keeps the cache within its limits. `protected` returns what pins and freezes protect, as far as the disk
        has it. `work` are the locks of all replicas, if there are others, and
        `replica` is the name of this one.
        """

        async def restore() -> None:
            for pin in await asyncio.to_thread(lambda: list(pins.all())):
                await self.restoring.image(pin.repo, pin.reference)
            for freeze in await asyncio.to_thread(lambda: list(freezes.all())):
                await self.restoring.image(freeze.repo, freeze.digest)

        return CacheUpkeep(
            self.bucket,
            self.book,
            self.limits,
            protected=protected,
            restore=restore,
            try_hold=lambda: self.locks.try_hold(_BOOK_LOCK if work is not None else UPKEEP_LOCK),
            evicts=None if work is None else lambda: work.try_hold(UPKEEP_LOCK),
            share=_nothing if work is None else SharedUses(self.bucket, self.book, replica, self.now).share,
            now=self.now,
        )

    def facts(self) -> BucketCacheJson | None:
        """Blocking: what the bucket keeps, for the status; None if the book cannot be read."""
        try:
            totals, listed_at = self.book.totals(), self.book.completed_at()
        except IndexUnavailable:
            return None
        return {
            "blobs": totals.objects,
            "bytes": totals.bytes,
            "limit": self.capacity,
            "listed_at": moment(listed_at) if listed_at is not None else None,
            "waiting": int(telemetry.measured("mirror_bucket_cache_waiting")),
            "dropped": int(sum(count for _, count in telemetry.counted("mirror_bucket_cache_dropped"))),
        }

    async def aclose(self, patience: float) -> None:
        """Waits up to `patience` seconds until all is written, and closes everything."""
        await close_all(
            self.restoring.aclose,
            lambda: self.uploads.aclose(patience),
            lambda: self.executor.shutdown(wait=False, cancel_futures=True),
            self.book.close,
        )


def open_bucket_cache(
    config: Config,
    bucket: Bucket,
    layout: Layout,
    store: BlobStore,
    catalog: Catalog,
    locks: FileLocks,
    *,
    now: Callable[[], float],
    purges: OrderedPurges | None = None,
) -> BucketCache:
    """The cache in this bucket, which the caller closes. `purges` are those of a cluster. Nothing is asked, and no
    thread started, before it is used.
    """
    capacity, keeps = _capacity(config), kept_registries(config)
    limits = _limits(config, capacity)
    book = CachedBook(layout.cached_book, str(config.store.bucket))
    records = SiteRecords(catalog)
    uploads = CachedUploads(
        bucket,
        book,
        store,
        records,
        hold=locks.try_hold_now,
        largest=limits.low if limits else None,
        purges=purges,
        now=now,
    )
    some_sealed = config.offline or any(route.offline for route in config.route)
    others = config.cluster.has_members
    objects = CachedObjects(bucket, book, some_sealed=some_sealed, others_write=others, now=now)
    executor = ThreadPoolExecutor(_RESTORING_THREADS, "restore")
    restoring = Restoring(bucket, objects, store, records, executor, keeps=keeps, purges=purges)
    return BucketCache(
        bucket,
        book,
        capacity,
        limits,
        keeps,
        uploads,
        objects,
        CacheUses(book, store),
        KeptContent(uploads, keeps),
        restoring,
        BucketPurge(uploads, restoring, keeps),
        locks,
        executor,
        now,
    )


def _nothing() -> None:
    pass


def kept_registries(config: Config) -> Callable[[str], bool]:
    """A function that says whether the bucket keeps content of a registry: of proxied ones, unless upstream must allow
    each caller.
    """
    table = routing_table(config)
    verified = {entry.name for entry in config.upstream if entry.access == "verify"}

    def keeps(registry: str) -> bool:
        found = table.registry(registry)
        return found is not None and not found[1].hosted and not found[1].members and found[1].name not in verified

    return keeps


def _capacity(config: Config) -> int | None:
    return None if config.store.bucket_capacity is None else parse_size(config.store.bucket_capacity)


def _limits(config: Config, capacity: int | None) -> CacheLimits | None:
    """The limits have the same distance to the capacity as those of the disk."""
    if capacity is None:
        return None
    return CacheLimits(int(capacity * config.store.high_water), int(capacity * config.store.low_water))

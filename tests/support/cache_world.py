"""The bucket's cache without the rest of a mirror: a disk, a bucket in memory, and what is between them.

world = CacheWorld(tmp_path)
world.uploads.add_blob(digest); world.settle()        everything that waited is written
world.wipe()                                          the disk is as if it were new; the bucket stays
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mirror.bucket_cache.bucket_purge import BucketPurge
from mirror.bucket_cache.cache_upkeep import CacheLimits, CacheUpkeep
from mirror.bucket_cache.cached_objects import CachedObjects
from mirror.bucket_cache.cached_uploads import CachedUploads
from mirror.bucket_cache.kept_content import KeptContent
from mirror.bucket_cache.restoring import Restoring
from mirror.bucket_cache.site_records import SiteRecords
from mirror.index.cached_book import CachedBook
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.store.local.layout import Layout
from mirror.store.local.locks import FileLocks
from tests.support.clock import Clock
from tests.support.here import Here
from tests.support.memory_bucket import MemoryBucket
from tests.support.ordered_purges import FakePurges
from tests.support.process import eventually

REPO = Repo("docker.io", "library/app")
#: Of a registry whose content is not kept.
PRIVATE = Repo("private.test", "team/app")


class CacheWorld:
    """One machine with its bucket. `another` is a second process of it."""

    def __init__(self, root: Path, bucket: MemoryBucket | None = None, *, most: int = 1000) -> None:
        self.root = root
        self.clock = Clock(1_000_000.0)
        self.bucket = bucket or MemoryBucket(now=self.clock)
        self._most = most
        #: For `_open`: whether some repositories have no upstream.
        self.some_sealed = False
        #: Of the other replicas.
        self.purges = FakePurges()
        self._executor = ThreadPoolExecutor(4)
        self._opened: list[CachedUploads] = []
        self.protected: Callable[[float], Collection[Digest]] = lambda now: ()
        self._open()

    def _open(self) -> None:
        self.here = Here.at(self.root)
        self.book = CachedBook(Layout(self.root).cached_book, "s3://bucket")
        self.locks = FileLocks(Layout(self.root))
        records = SiteRecords(self.here.catalog)
        self.uploads = CachedUploads(
            self.bucket,
            self.book,
            self.here.store,
            records,
            hold=self.locks.try_hold_now,
            largest=1_000_000,
            most=self._most,
            give_up=0.0,
            purges=self.purges,
            now=self.clock,
        )
        self._opened.append(self.uploads)
        self.objects = CachedObjects(self.bucket, self.book, some_sealed=self.some_sealed, now=self.clock)
        self.restoring = Restoring(
            self.bucket,
            self.objects,
            self.here.store,
            records,
            self._executor,
            keeps=keeps,
            purges=self.purges,
            clock=self.clock,
        )
        self.kept = KeptContent(self.uploads, keeps)
        self.purge = BucketPurge(self.uploads, self.restoring, keeps)

    def upkeep(self, limits: CacheLimits | None = None) -> CacheUpkeep:
        """Of this machine."""
        return CacheUpkeep(
            self.bucket,
            self.book,
            limits,
            protected=lambda now: self.protected(now),
            restore=self.restore,
            try_hold=lambda: self.locks.try_hold("bucketcache"),
            now=self.clock,
        )

    async def restore(self) -> None:
        """Brings nothing back, unless a test replaces it."""

    def settle(self) -> None:
        """Returns once nothing waits to be written."""
        eventually(lambda: not self.uploads.waiting, "all is written to the bucket")

    def wipe(self) -> None:
        """Empties the disk."""
        self.settle()
        self.book.close()
        shutil.rmtree(self.root)
        self._open()

    async def aclose(self) -> None:
        """Ends the threads."""
        for uploads in self._opened:
            await uploads.aclose(0)
        await self.restoring.aclose()
        self._executor.shutdown()
        self.book.close()


def keeps(registry: str) -> bool:
    """All but one."""
    return registry != PRIVATE.registry

"""What one replica uses is not evicted from the bucket by another that does not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mirror.bucket_cache.cache_upkeep import CacheLimits, CacheUpkeep
from mirror.bucket_cache.cached_keys import blob_key
from mirror.bucket_cache.shared_uses import SharedUses
from mirror.index.cached_book import CachedBook
from mirror.oci.digest import Digest
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from mirror.store.local.locks import FileLocks
from tests.support.clock import Clock
from tests.support.memory_bucket import MemoryBucket

_DAY = 86400.0
_OLD, _USED = Digest.of(b"a"), Digest.of(b"b")


class _Replica:
    def __init__(self, root: Path, bucket: MemoryBucket, clock: Clock, *, evicts: bool) -> None:
        layout = LocalStore(Layout(root)).layout
        self.locks = FileLocks(layout)
        self.book = CachedBook(layout.cached_book, "s3://bucket")
        self.uses = SharedUses(bucket, self.book, root.name, clock)

        async def nothing() -> None:
            pass

        async def nobody() -> None:
            return None

        self.upkeep = CacheUpkeep(
            bucket,
            self.book,
            CacheLimits(1, 1),
            protected=lambda _: (),
            restore=nothing,
            try_hold=lambda: self.locks.try_hold("book"),
            evicts=(lambda: self.locks.try_hold("evicts")) if evicts else nobody,
            share=self.uses.share,
            now=clock,
        )


@pytest.fixture
def clock() -> Clock:
    return Clock(1_000_000.0)


@pytest.fixture
def bucket(clock: Clock) -> MemoryBucket:
    bucket = MemoryBucket(now=clock)
    for digest, content in ((_OLD, b"a"), (_USED, b"b")):
        bucket.write(blob_key(digest), content)
    return bucket


async def test_the_replica_that_evicts_knows_what_others_use(
    tmp_path: Path, bucket: MemoryBucket, clock: Clock
) -> None:
    """Each replica keeps its own book right; only the one with the lease deletes."""
    evicts = _Replica(tmp_path / "evicts", bucket, clock, evicts=True)
    uses = _Replica(tmp_path / "uses", bucket, clock, evicts=False)
    await uses.upkeep.tick()
    assert {*bucket.content()} >= {blob_key(_OLD), blob_key(_USED)}
    clock.time += 3 * _DAY
    await asyncio.to_thread(uses.book.use, {_USED: clock()})
    clock.time += 3600.0
    await uses.upkeep.tick()
    await evicts.upkeep.tick()
    assert blob_key(_USED) in bucket.content()
    assert blob_key(_OLD) not in bucket.content()


async def test_what_cannot_be_read_is_no_use(tmp_path: Path, bucket: MemoryBucket, clock: Clock) -> None:
    """And a replica that is gone for a week is forgotten; times in the future are those of a wrong clock."""
    here = _Replica(tmp_path / "here", bucket, clock, evicts=False)
    await here.upkeep.tick()
    later = f'{{"{_USED}": {clock() + 100 * _DAY}}}'
    bucket.write("cache-uses/other", later.encode())
    bucket.write("cache-uses/damaged", b"[")
    bucket.write("cache-uses/gone", b"{}")
    bucket.date("cache-uses/gone", clock() - 8 * _DAY)
    clock.time += 2 * _DAY
    await asyncio.to_thread(here.uses.share)
    await asyncio.to_thread(here.uses.share)
    assert "cache-uses/gone" not in bucket.content()
    [used] = await asyncio.to_thread(here.book.used_since, clock() - 1.0, 9)
    assert (used.digest, used.used_at) == (_USED, clock())

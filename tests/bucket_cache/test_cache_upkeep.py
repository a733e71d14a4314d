"""The bucket's cache stays within its capacity, and the book of it is right."""

from __future__ import annotations

import pytest

from mirror.bucket_cache.cache_upkeep import CacheLimits
from mirror.bucket_cache.cache_uses import CacheUses
from mirror.bucket_cache.cached_keys import CachedRecord, blob_key
from mirror.errors import BucketUnavailable, StoreError
from mirror.oci.digest import Digest
from mirror.ports import BookedObject
from tests.support.cache_world import REPO, CacheWorld

_DAY = 86400.0


def _fill(world: CacheWorld, count: int, *, size: int = 100) -> list[Digest]:
    """Blobs in the bucket, each used a day after the one before."""
    digests = []
    for number in range(count):
        content = (b"%d " % number).ljust(size)
        digests.append(Digest.of(content))
        world.here.store.put(digests[-1], content)
        world.uploads.add_blob(digests[-1])
        world.settle()
        world.clock.time += _DAY
    return digests


def _left(world: CacheWorld) -> set[str]:
    return {key for key in world.bucket.content() if key.startswith("cache/")}


async def test_the_least_recently_used_go(world: CacheWorld) -> None:
    """Down to the low water, by one call of the bucket."""
    digests = _fill(world, 10)
    await world.upkeep(CacheLimits(1000, 700)).evict()
    assert len(_left(world)) == 10
    await world.upkeep(CacheLimits(900, 700)).evict()
    assert _left(world) == {blob_key(digest) for digest in digests[3:]}
    assert world.book.totals().bytes == 700
    assert world.bucket.calls["delete"] == 1


async def test_a_use_keeps(world: CacheWorld) -> None:
    """By a pull from the bucket, and here on the disk."""
    digests = _fill(world, 4)
    world.objects.source(digests[0])
    CacheUses(world.book, world.here.store).note({digests[1]: world.clock()})
    await world.upkeep(CacheLimits(300, 200)).evict()
    assert _left(world) == {blob_key(digest) for digest in digests[:2]}


async def test_a_use_of_a_manifest_keeps_what_it_names(world: CacheWorld) -> None:
    """Clients that have its layers do not ask for them."""
    [cold] = _fill(world, 1)
    image = world.here.image([b"layer"])
    blobs = [image.digest, Digest.of(b"layer")]
    world.kept.recorded(REPO, [image.digest], blobs)
    world.settle()
    world.clock.time += 2 * _DAY
    [warm] = _fill(world, 1)
    CacheUses(world.book, world.here.store).note({image.digest: world.clock()})
    totals = world.book.totals()
    await world.upkeep(CacheLimits(totals.bytes - 1, totals.bytes - 1)).evict()
    assert _left(world) == {blob_key(digest) for digest in (*blobs, warm)} - {blob_key(cold)}


async def test_what_is_protected_stays(world: CacheWorld) -> None:
    """Even if it is all there is; if it is not known what is, nothing goes."""
    digests = _fill(world, 4)
    world.protected = lambda now: {digests[0], digests[1]}
    await world.upkeep(CacheLimits(300, 100)).evict()
    assert _left(world) == {blob_key(digest) for digest in digests[:2]}

    def unknown(now: float) -> set[Digest]:
        raise StoreError("a pin cannot be read")

    world.protected = unknown
    with pytest.raises(StoreError, match="a pin"):
        await world.upkeep(CacheLimits(100, 100)).evict()
    assert len(_left(world)) == 2


async def test_a_deletion_that_fails_is_tried_again(world: CacheWorld) -> None:
    """The book has what may still be there."""
    digests = _fill(world, 3)
    world.bucket.fail("delete")
    with pytest.raises(BucketUnavailable):
        await world.upkeep(CacheLimits(200, 200)).evict()
    assert world.book.totals().objects == 3
    await world.upkeep(CacheLimits(200, 200)).evict()
    assert _left(world) == {blob_key(digest) for digest in digests[1:]}


async def test_a_lost_book_is_made_from_a_listing(world: CacheWorld) -> None:
    """Foreign keys are left out; times of use begin with the times of the objects."""
    digests = _fill(world, 3)
    world.bucket.write("cache/readme.txt", b"not ours")
    world.wipe()
    assert world.book.completed_at() is None
    await world.upkeep().tick()
    assert world.book.completed_at() == world.clock()
    assert world.book.totals().objects == 3
    assert [each.digest for each in world.book.coldest(9)] == digests
    assert "cache/readme.txt" in world.bucket.content()


async def test_a_listing_corrects_the_book(world: CacheWorld) -> None:
    """What is gone goes, what was not known comes, and what is written meanwhile stays."""
    digests = _fill(world, 2)
    upkeep = world.upkeep()
    await upkeep.tick()
    world.bucket.lose(blob_key(digests[0]))
    unknown, fresh = Digest.of(b"unknown"), Digest.of(b"fresh")
    world.bucket.write(blob_key(unknown), b"unknown")
    await upkeep.tick()
    assert world.book.find(digests[0]) is not None
    world.clock.time += _DAY
    world.bucket.freeze_listings()
    world.bucket.before("list", lambda: world.book.put([BookedObject(fresh, 5, world.clock())]))
    await upkeep.tick()
    found = {each.digest for each in world.book.coldest(9)}
    assert found == {digests[1], unknown, fresh}


async def test_a_listing_that_fails_changes_nothing(world: CacheWorld) -> None:
    """It is tried again some minutes later."""
    _fill(world, 2)
    upkeep = world.upkeep()
    world.bucket.fail("list")
    with pytest.raises(BucketUnavailable):
        await upkeep.tick()
    await upkeep.tick()
    assert world.book.completed_at() is None
    assert world.book.totals().objects == 2
    world.clock.time += 600
    await upkeep.tick()
    assert world.book.completed_at() is not None


async def test_records_of_manifests_that_are_gone_go(world: CacheWorld) -> None:
    """At the listing after the one that missed the bytes. Not those of manifests that are there, nor young ones, nor
    tags.
    """
    gone, stays, young = (world.here.image([b"layer of %d" % number], tag=f"v{number}") for number in range(3))
    for image in (gone, stays):
        world.kept.recorded(REPO, [image.digest], [image.digest])
    world.kept.tag_changed(REPO, "v0")
    world.settle()
    world.clock.time += 2 * _DAY
    world.kept.recorded(REPO, [young.digest], [])
    world.settle()
    world.bucket.lose(blob_key(gone.digest))
    await world.upkeep().list_all()
    await world.upkeep().list_all()
    records = {key for key in world.bucket.content() if key.startswith("cached/")}
    assert records == {
        CachedRecord.of_manifest(REPO, stays.digest).key,
        CachedRecord.of_manifest(REPO, young.digest).key,
        CachedRecord.of_tag(REPO, "v0").key,
    }


@pytest.mark.parametrize("ahead", [0.0, 10 * _DAY])
async def test_a_record_is_not_useless_by_a_listing_alone(world: CacheWorld, ahead: float) -> None:
    """The bytes were put again after the listing had passed their place, or their upload is still under way and the
    clock of this machine is wrong.
    """
    old, young = (world.here.image([b"layer of %d" % number], tag=f"v{number}") for number in range(2))
    world.kept.recorded(REPO, [old.digest], [] if ahead else [old.digest])
    world.settle()
    if not ahead:
        world.clock.time += 2 * _DAY
    world.kept.recorded(REPO, [young.digest], [young.digest])
    world.settle()
    bytes_of_it = world.bucket.content().get(blob_key(old.digest))
    if bytes_of_it is not None:
        world.bucket.lose(blob_key(old.digest))
        world.book.drop([old.digest])
        world.bucket.before("list", lambda: None)
        world.bucket.before("list", lambda: ignoring(world.bucket.write(blob_key(old.digest), bytes_of_it)))
    world.clock.time += ahead
    world.book.drop([old.digest])
    await world.upkeep().list_all()
    assert CachedRecord.of_manifest(REPO, old.digest).key in world.bucket.content()


def ignoring(_result: object) -> None:
    """The result of what happens meanwhile."""

"""What the disk has cached is brought into the bucket, all at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.bucket_cache.cached_copy import CachedCopy
from mirror.bucket_cache.cached_keys import blob_key
from mirror.errors import BucketUnavailable, StoreError
from mirror.oci.digest import Digest
from mirror.policy.records import Sighting
from mirror.store.local.layout import Layout
from tests.support.cache_world import PRIVATE, REPO, CacheWorld, keeps


def copy(world: CacheWorld, sizes: list[int] | None = None) -> CachedCopy:
    """One copy; `sizes` gets what is read."""

    def read(size: int) -> None:
        if sizes is not None and size:
            sizes.append(size)

    return CachedCopy(world.uploads, world.here.catalog, world.here.store, keeps, read=read, wait=lambda _: None)


def fill(world: CacheWorld) -> None:
    """Two images of a kept registry, one of a private one, and a blob that nothing names."""
    image = world.here.image([b"layer", b"shared"], repo=REPO, tag="v1")
    world.here.image([b"other", b"shared"], repo=REPO, tag="v2")
    world.here.image([b"private"], repo=PRIVATE, tag="v1")
    world.here.store.put(Digest.of(b"nobody's"), b"nobody's")
    world.here.catalog.put_history(REPO, "v1", [Sighting(image.digest, image.media_type, image.size, 1.0, 2.0)])


async def test_everything_of_kept_registries_comes_into_the_bucket(world: CacheWorld) -> None:
    fill(world)
    sizes: list[int] = []
    report = copy(world, sizes).run()
    assert (report.repositories, report.unreadable) == (1, 0)
    there = world.bucket.content()
    for content in (b"layer", b"other", b"shared"):
        assert there[blob_key(Digest.of(content))] == content
        assert len(content) in sizes
    assert blob_key(Digest.of(b"private")) not in there
    assert blob_key(Digest.of(b"nobody's")) not in there
    assert not [key for key in there if PRIVATE.registry in key]
    assert {key.rpartition("/")[2] for key in there if "/_tags/" in key} == {"v1", "v2"}
    assert [key for key in there if "/_history/v1" in key]


async def test_once_more_it_writes_nothing(world: CacheWorld) -> None:
    fill(world)
    copy(world).run()
    world.bucket.calls.clear()
    report = copy(world).run()
    assert (report.blobs, report.records) == (6, 6)
    assert (world.bucket.calls["upload"], world.bucket.calls["write"]) == (0, 0)


async def test_it_is_restored_from_there(world: CacheWorld) -> None:
    """A new disk gets the tag and the manifest from the bucket, as of content that was written behind."""
    fill(world)
    copy(world).run()
    world.wipe()
    assert world.here.catalog.get_tag(REPO, "v1") is None
    await world.restoring.tag(REPO, "v1")
    assert world.here.catalog.get_tag(REPO, "v1")


async def test_a_bucket_that_does_not_answer_ends_it_and_it_goes_on(world: CacheWorld) -> None:
    fill(world)
    world.bucket.fail("upload", 100)
    with pytest.raises(BucketUnavailable):
        copy(world).run()
    while world.bucket.pending:
        with pytest.raises(BucketUnavailable):
            world.bucket.upload("x", world.root / "store.json", 1)
    copy(world).run()
    assert blob_key(Digest.of(b"other")) in world.bucket.content()


async def test_it_can_be_stopped(world: CacheWorld) -> None:
    fill(world)

    def stop(_size: int) -> None:
        raise StoreError("stopped")

    stopping = CachedCopy(world.uploads, world.here.catalog, world.here.store, keeps, read=stop, wait=lambda _: None)
    with pytest.raises(StoreError, match="stopped"):
        stopping.run()
    assert world.bucket.content() == {}


async def test_what_is_damaged_is_left_out(world: CacheWorld) -> None:
    """The manifest cannot be read, so its blobs are not known; the rest comes."""
    fill(world)
    record = world.here.catalog.get_tag(REPO, "v2")
    assert record is not None
    damage(world, record.digest, record.size)
    report = copy(world).run()
    assert report.unreadable == 1
    assert blob_key(Digest.of(b"layer")) in world.bucket.content()
    assert blob_key(Digest.of(b"other")) not in world.bucket.content()
    assert blob_key(record.digest) not in world.bucket.content()


def damage(world: CacheWorld, digest: Digest, size: int) -> None:
    """Let a file of the cache have other bytes."""
    path = Path(Layout(world.root).blob(digest))
    path.chmod(0o600)
    path.write_bytes(b"x" * size)

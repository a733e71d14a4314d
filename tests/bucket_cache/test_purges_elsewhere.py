"""Purges of other replicas: a replica that was away carries them out before it writes to the bucket, and what is purged
is not restored from there.
"""

from __future__ import annotations

import asyncio

import pytest

from mirror.errors import BucketUnavailable, StoreError
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from tests.support.cache_world import REPO, CacheWorld
from tests.support.process import eventually


def _kept(world: CacheWorld, repo: Repo = REPO, tag: str = "v1") -> Digest:
    """An image that the bucket has."""
    image = world.here.image([b"layer", tag.encode()], repo=repo, tag=tag)
    world.kept.recorded(repo, [image.digest], [image.digest, Digest.of(b"layer")])
    world.kept.tag_changed(repo, tag)
    world.settle()
    return image.digest


async def test_uploads_wait_until_purges_are_heeded(world: CacheWorld) -> None:
    """What was purged meanwhile is then not on the disk any more, and never comes to the bucket."""
    world.purges.is_heeded = False
    gone, stays = Digest.of(b"gone"), Digest.of(b"stays")
    for content in (b"gone", b"stays"):
        world.here.store.put(Digest.of(content), content)
        world.uploads.add_blob(Digest.of(content))
    with pytest.raises(BucketUnavailable, match="not carried out"):
        await asyncio.to_thread(world.uploads.write_now, stays)
    eventually(lambda: world.uploads.trouble is not None, "an upload has been tried")
    assert world.bucket.content() == {}
    world.here.store.delete(gone)
    world.purges.is_heeded = True
    await asyncio.to_thread(world.settle)
    assert [*world.bucket.content().values()] == [b"stays"]


async def test_what_is_purged_is_not_restored(world: CacheWorld) -> None:
    """Neither by name nor with its repository; other images are."""
    purged, other = _kept(world), _kept(world, tag="v2")
    world.wipe()
    world.purges.withheld = {(REPO, "v1"), (REPO, purged)}
    assert not await world.restoring.tag(REPO, "v1")
    assert not await world.restoring.manifest(REPO, purged)
    assert await world.restoring.repository(REPO) == [other]
    assert [*world.here.catalog.tags(REPO)] == ["v2"]
    # the purge itself needs it
    assert await world.restoring.repository(REPO, again=True) == [purged]


async def test_nothing_is_restored_before_purges_are_known(world: CacheWorld) -> None:
    """That is not known, and no trouble of the bucket."""
    digest = _kept(world)
    world.wipe()
    world.purges.is_known = False
    for _ in range(5):
        with pytest.raises(StoreError, match="orders are not known"):
            await world.restoring.tag(REPO, "v1")
    with pytest.raises(StoreError, match="orders are not known"):
        await world.restoring.repository(REPO)
    world.purges.is_known = True
    assert await world.restoring.tag(REPO, "v1")
    assert await world.restoring.manifest(REPO, digest)

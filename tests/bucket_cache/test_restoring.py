"""A disk that was lost gets its manifests and tags back from the bucket."""

from __future__ import annotations

import threading

import pytest

from mirror.bucket_cache import restoring
from mirror.bucket_cache.cached_keys import CachedRecord, blob_key
from mirror.bucket_cache.cached_objects import CertainObjects
from mirror.errors import BlobDamaged, BlobUnknown, BucketUnavailable, StoreError
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor
from mirror.policy.records import ManifestRecord, Sighting
from mirror.ports import Body
from tests.support.cache_world import PRIVATE, REPO, CacheWorld
from tests.support.process import eventually


def _kept(world: CacheWorld) -> Descriptor:
    """An image that the bucket has."""
    image = world.here.image([b"layer"], tag="v1")
    world.here.catalog.put_history(REPO, "v1", [Sighting(image.digest, image.media_type, image.size, 1.0, 2.0)])
    world.kept.recorded(REPO, [image.digest], [image.digest, Digest.of(b"layer")])
    world.kept.tag_changed(REPO, "v1")
    world.settle()
    return image


async def test_an_image_comes_back(world: CacheWorld) -> None:
    """With the times and the history that it had."""
    image = _kept(world)
    before = world.here.catalog.get_tag(REPO, "v1"), world.here.catalog.get_manifest(REPO, image.digest)
    content = world.here.store.read(image.digest, 10_000)
    world.wipe()
    assert await world.restoring.tag(REPO, "v1")
    assert await world.restoring.manifest(REPO, image.digest)
    after = world.here.catalog.get_tag(REPO, "v1"), world.here.catalog.get_manifest(REPO, image.digest)
    assert after == before
    assert [each.digest for each in world.here.catalog.get_history(REPO, "v1")] == [image.digest]
    assert world.here.store.read(image.digest, 10_000) == content


async def test_bytes_without_a_record_give_no_right(world: CacheWorld) -> None:
    """Another repository has the manifest; this one has never had it."""
    image = _kept(world)
    world.wipe()
    other = type(REPO)("docker.io", "library/other")
    assert not await world.restoring.manifest(other, image.digest)
    assert world.here.catalog.get_manifest(other, image.digest) is None
    assert not await world.restoring.manifest(PRIVATE, image.digest)


async def test_grants_stay_narrow(world: CacheWorld) -> None:
    """What an import has proven is all that is granted afterwards."""
    image = _kept(world)
    record = ManifestRecord(image.digest, image.media_type, image.size, 5.0, grants=())
    world.here.catalog.put_manifest(REPO, record)
    world.kept.recorded(REPO, [image.digest], [image.digest])
    world.wipe()
    assert await world.restoring.manifest(REPO, image.digest)
    found = world.here.catalog.get_manifest(REPO, image.digest)
    assert found is not None
    assert found.grants == ()


async def test_what_the_disk_has_is_not_replaced(world: CacheWorld) -> None:
    """An evicted manifest whose record is still here needs only its bytes."""
    image = _kept(world)
    fresh = ManifestRecord(image.digest, image.media_type, image.size, 9.0)
    world.here.catalog.put_manifest(REPO, fresh)
    world.here.store.delete(image.digest)
    assert await world.restoring.manifest(REPO, image.digest)
    assert world.here.catalog.get_manifest(REPO, image.digest) == fresh
    assert world.here.store.stat(image.digest).size == image.size


async def test_wrong_bytes_are_dropped_from_the_bucket(world: CacheWorld) -> None:
    """And never written here."""
    image = _kept(world)
    world.wipe()
    world.bucket.damage(blob_key(image.digest), b"other bytes")
    assert not await world.restoring.manifest(REPO, image.digest)
    with pytest.raises(BlobUnknown):
        world.here.store.stat(image.digest)
    assert blob_key(image.digest) not in world.bucket.content()
    assert world.here.catalog.get_manifest(REPO, image.digest) is None


async def test_a_manifest_that_was_read_wrong_once_stays(world: CacheWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read a second time before anything is deleted, and is served."""
    image = _kept(world)
    world.wipe()
    key = blob_key(image.digest)
    opening, content, wrong = world.bucket.open, world.bucket.content()[key], [True]

    def open_object(key: str, start: int = 0, stop: int | None = None) -> Body | None:
        world.bucket.damage(key, b"\0" + content[1:] if wrong else content)
        wrong.clear()
        return opening(key, start, stop)

    monkeypatch.setattr(world.bucket, "open", open_object)
    assert await world.restoring.manifest(REPO, image.digest)
    assert world.bucket.content()[key] == content
    assert world.here.store.read(image.digest, 10_000) == content


async def test_the_only_copy_of_a_sealed_repository_is_kept(world: CacheWorld) -> None:
    """Although it seems wrong: that is an error, and no "not here". The next import writes it again."""
    image = _kept(world)
    key, image_content = blob_key(image.digest), world.here.store.read(image.digest, 10_000)
    world.some_sealed = True
    world.wipe()
    await world.upkeep().tick()
    world.bucket.damage(key, b"x" * image.size)
    for _ in range(2):
        with pytest.raises(BlobDamaged):
            await world.restoring.manifest(REPO, image.digest)
    assert world.bucket.content()[key] == b"x" * image.size
    assert await world.restoring.repository(REPO) == []
    world.here.store.put(image.digest, image_content)
    world.uploads.add_blob(image.digest)
    world.settle()
    assert world.bucket.content()[key] == image_content
    world.here.store.delete(image.digest)
    assert await world.restoring.manifest(REPO, image.digest)


@pytest.mark.parametrize("content", [b"", b"{", b"\x00" * 17, b"x" * 2_000_000])
async def test_records_that_are_not_valid_count_as_absent(world: CacheWorld, content: bytes) -> None:
    """A cache: upstream, or the next import, brings them again."""
    image = _kept(world)
    world.wipe()
    for record in (CachedRecord.of_manifest(REPO, image.digest), CachedRecord.of_tag(REPO, "v1")):
        world.bucket.damage(record.key, content)
    assert not await world.restoring.manifest(REPO, image.digest)
    assert not await world.restoring.tag(REPO, "v1")
    assert world.here.catalog.tags(REPO) == []


async def test_a_bucket_that_does_not_answer_is_left_alone_for_a_while(world: CacheWorld) -> None:
    """It is not known what it has, and the next misses do not wait for it."""
    image = _kept(world)
    world.wipe()
    world.bucket.down = True
    with pytest.raises(BucketUnavailable):
        await world.restoring.manifest(REPO, image.digest)
    asked = sum(world.bucket.calls.values())
    with pytest.raises(BucketUnavailable, match="just now"):
        await world.restoring.tag(REPO, "v1")
    assert sum(world.bucket.calls.values()) == asked
    world.bucket.down = False
    world.clock.time += 60
    assert await world.restoring.tag(REPO, "v1")


async def test_all_of_a_repository_comes_back_once(world: CacheWorld) -> None:
    """For lists. What follows from pulls is not looked for again."""
    image = _kept(world)
    signature = world.here.image([b"signature"], subject=image.to_json())
    world.kept.recorded(REPO, [signature.digest], [signature.digest])
    world.wipe()
    assert set(await world.restoring.repository(REPO)) == {image.digest, signature.digest}
    assert world.here.catalog.tags(REPO) == ["v1"]
    assert set(world.here.catalog.manifest_digests(REPO)) == {image.digest, signature.digest}
    listed = world.bucket.calls["list"]
    assert await world.restoring.repository(REPO) == []
    assert world.bucket.calls["list"] == listed
    assert await world.restoring.repository(PRIVATE) == []


async def test_an_invented_name_costs_one_listing(world: CacheWorld) -> None:
    """However often a list of it is asked for: a repository without manifests has nothing to serve."""
    _kept(world)
    invented, listed = type(REPO)("docker.io", "library/invented"), world.bucket.calls["list"]
    for _ in range(3):
        assert await world.restoring.repository(invented) == []
    assert world.bucket.calls["list"] == listed + 1


async def test_a_complete_book_saves_requests(world: CacheWorld) -> None:
    """A manifest that the bucket does not have costs none."""
    _kept(world)
    await world.upkeep().tick()
    asked = sum(world.bucket.calls.values())
    assert not await world.restoring.manifest(REPO, Digest.of(b"unknown"))
    assert sum(world.bucket.calls.values()) == asked


async def test_a_book_that_lacks_something_is_not_believed_where_nothing_else_has_it(world: CacheWorld) -> None:
    """A power cut may have cost it the latest objects."""
    world.some_sealed = True
    _kept(world)
    world.wipe()
    await world.upkeep().tick()
    layer = Digest.of(b"layer")
    world.book.drop([layer])
    found = world.objects.source(layer)
    assert found is not None
    assert found.size == 5
    assert world.objects.source(Digest.of(b"unknown")) is None


async def test_an_object_that_is_found_gone_is_struck_out(world: CacheWorld) -> None:
    """The next question asks upstream at once."""
    _kept(world)
    layer = Digest.of(b"layer")
    found = world.objects.source(layer)
    assert found is not None
    assert (found.key, found.size) == (blob_key(layer), 5)
    assert world.objects.lost(found, "it is gone")
    assert world.objects.source(layer) is None


async def test_a_book_that_is_lost_costs_requests_only(world: CacheWorld) -> None:
    """The bucket is asked instead."""
    _kept(world)
    world.book.close()
    layer = Digest.of(b"layer")
    assert world.objects.source(layer) is not None
    assert world.objects.source(Digest.of(b"unknown")) is None
    world.bucket.down = True
    with pytest.raises(StoreError):
        world.objects.source(layer)


async def test_a_bucket_that_is_slow_is_not_waited_for(world: CacheWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says later counts for later."""
    monkeypatch.setattr(restoring, "_PATIENCE", 0.01)
    image = _kept(world)
    world.wipe()
    may_answer = threading.Event()

    def wait() -> None:
        assert may_answer.wait(60)

    world.bucket.before("head", wait)
    with pytest.raises(BucketUnavailable, match="in time"):
        await world.restoring.manifest(REPO, image.digest)
    may_answer.set()
    eventually(lambda: world.here.catalog.get_manifest(REPO, image.digest), "it comes all the same")


async def test_whoever_is_sent_to_the_bucket_finds_the_object(world: CacheWorld) -> None:
    """Clients cannot go on without it, so the book is not believed."""
    _kept(world)
    layer = Digest.of(b"layer")
    certain = CertainObjects(world.objects)
    assert certain.source(layer) == world.objects.source(layer)
    world.bucket.lose(blob_key(layer))
    assert world.objects.source(layer) is not None
    assert certain.source(layer) is None
    world.book.end_listing(world.book.begin_listing(), 1.0)
    assert world.objects.source(layer) is None

"""What was cached is written to the bucket behind the answers, once, and nothing that is gone by then."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mirror import telemetry
from mirror.bucket_cache.cached_keys import CachedRecord, blob_key, parse_blob_key, parse_record_key
from mirror.errors import BucketDenied, BucketUnavailable, StoreError
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.oci.reference import Repo
from mirror.policy.records import ManifestRecord
from mirror.ports import Expected, Version
from tests.support.cache_world import PRIVATE, REPO, CacheWorld
from tests.support.process import eventually


def _blob(world: CacheWorld, content: bytes) -> Digest:
    digest = Digest.of(content)
    world.here.store.put(digest, content)
    return digest


def _offer_image(world: CacheWorld, repo: Repo = REPO) -> Digest:
    """Offers an image with one layer and the tag `v1` as a pull does."""
    image = world.here.image([b"layer"], repo=repo, tag="v1")
    world.kept.recorded(repo, [image.digest], [image.digest, Digest.of(b"layer")])
    world.kept.tag_changed(repo, "v1")
    return image.digest


async def test_an_image_goes_behind(world: CacheWorld) -> None:
    """Its blobs, the record of its manifest, and its tag."""
    digest = _offer_image(world)
    world.settle()
    found = world.bucket.content()
    assert found.keys() == {
        blob_key(digest),
        blob_key(Digest.of(b"layer")),
        CachedRecord.of_manifest(REPO, digest).key,
        CachedRecord.of_tag(REPO, "v1").key,
    }
    assert found[blob_key(Digest.of(b"layer"))] == b"layer"
    assert world.bucket.calls["delete"] == 0
    assert world.book.totals().objects == 2
    assert world.book.find(Digest.of(b"layer")) == 5


async def test_what_must_not_leave_the_disk_stays(world: CacheWorld) -> None:
    """A registry whose callers upstream must allow."""
    _offer_image(world, PRIVATE)
    world.kept.published(PRIVATE.registry, Digest.of(b"layer"))
    world.kept.published(REPO.registry, _blob(world, b"another"))
    world.settle()
    assert world.bucket.content().keys() == {blob_key(Digest.of(b"another"))}


async def test_nothing_is_written_twice(world: CacheWorld) -> None:
    """Neither what this machine has written, nor, by HEAD, what the bucket had before the book was begun."""
    _offer_image(world)
    world.settle()
    writes = world.bucket.calls["upload"], world.bucket.calls["write"]
    _offer_image(world)
    world.settle()
    world.book.drop([Digest.of(b"layer")])
    world.uploads.add_blob(Digest.of(b"layer"))
    world.settle()
    assert (world.bucket.calls["upload"], world.bucket.calls["write"]) == writes
    assert world.book.find(Digest.of(b"layer")) == 5


async def test_a_tag_is_written_again_when_it_moves_and_each_hour(world: CacheWorld) -> None:
    """Upstream is asked for a tag every few minutes, which is no reason to write each time."""
    _offer_image(world)
    world.settle()
    world.clock.time += 1800
    _offer_image(world)
    world.settle()
    assert world.bucket.calls["write"] == 2
    world.clock.time += 1900
    _offer_image(world)
    world.settle()
    assert world.bucket.calls["write"] == 3
    world.here.image([b"newer"], tag="v1")
    world.kept.tag_changed(REPO, "v1")
    world.settle()
    assert world.bucket.calls["write"] == 4


async def test_a_tag_that_upstream_dropped_goes(world: CacheWorld) -> None:
    """It must not come back when the disk is lost."""
    _offer_image(world)
    world.settle()
    world.here.catalog.drop_tag(REPO, "v1")
    world.kept.tag_changed(REPO, "v1")
    world.settle()
    assert CachedRecord.of_tag(REPO, "v1").key not in world.bucket.content()


async def test_what_the_disk_has_lost_by_its_turn_is_not_written(world: CacheWorld) -> None:
    """A purge need not look for what waits."""
    world.bucket.down = True
    digest = _blob(world, b"secret")
    world.uploads.add_blob(digest)
    eventually(lambda: world.uploads.trouble, "the bucket was tried")
    world.here.store.delete(digest)
    world.bucket.down = False
    world.settle()
    assert world.bucket.content() == {}


async def test_a_write_that_arrives_after_a_purge_is_deleted_again(
    world: CacheWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It seemed to fail, the purge found nothing in the bucket, and then it was there."""
    digest = _offer_image(world)
    world.settle()
    await world.upkeep().tick()
    other, late = _blob(world, b"secret"), list[str]()
    record = ManifestRecord(other, OCI_MANIFEST, 6, 1.0)
    world.here.catalog.put_manifest(REPO, record)
    writing, uploading = world.bucket.write, world.bucket.upload

    def purge_here(key: str) -> None:
        late.append(key)
        if key == blob_key(other):
            world.here.store.delete(other)
            world.purge.drop_blobs([other])
        else:
            world.here.catalog.drop_manifest(REPO, other)
            world.purge.drop_records(REPO, [], [other])

    def write(key: str, content: bytes, *, expect: Expected = None) -> Version:
        if key in late:
            return writing(key, content, expect=expect)
        purge_here(key)
        writing(key, content)
        raise BucketUnavailable("no answer in time", retry_after=0.0)

    def upload(key: str, file: Path, size: int) -> None:
        if key not in late:
            content = file.read_bytes()
            purge_here(key)
            writing(key, content)
            raise BucketUnavailable("no answer in time", retry_after=0.0)
        uploading(key, file, size)

    monkeypatch.setattr(world.bucket, "write", write)
    monkeypatch.setattr(world.bucket, "upload", upload)
    before = world.bucket.content()
    with pytest.raises(BucketUnavailable):
        world.uploads.write_now(other)
    with pytest.raises(BucketUnavailable):
        world.uploads.write_now(CachedRecord.of_manifest(REPO, other))
    assert len(world.bucket.content()) == len(before) + 2
    # the next attempts
    assert world.uploads.write_now(other)
    assert world.uploads.write_now(CachedRecord.of_manifest(REPO, other))
    assert world.bucket.content() == before
    assert blob_key(digest) in before


async def test_what_is_purged_while_it_is_written_is_deleted_again(world: CacheWorld) -> None:
    """The purge may have looked at the bucket before."""
    digest = _offer_image(world)
    record = CachedRecord.of_manifest(REPO, digest)
    world.settle()
    world.purge.drop_records(REPO, [], [digest])
    world.purge.drop_blobs([digest])
    world.bucket.before("upload", lambda: _purge_here(world, digest))
    world.bucket.before("write", lambda: world.here.catalog.drop_manifest(REPO, digest))
    world.uploads.add_blob(digest)
    world.uploads.add_record(record)
    world.settle()
    assert world.bucket.pending == []
    assert not {blob_key(digest), record.key} & world.bucket.content().keys()
    assert world.book.find(digest) is None


def _purge_here(world: CacheWorld, digest: Digest) -> None:
    world.here.store.delete(digest)


async def test_a_bucket_that_is_down_is_waited_for(world: CacheWorld) -> None:
    """Nothing is lost meanwhile, the log says so once, and pulls do not notice."""
    with capture_logs() as logs:
        world.bucket.fail("upload", 2)
        world.uploads.add_blob(_blob(world, b"one"))
        world.settle()
    assert world.bucket.content().keys() == {blob_key(Digest.of(b"one"))}
    assert [line["event"] for line in logs] == ["bucket cache waits for bucket"]
    assert world.uploads.trouble is None


async def test_too_much_that_waits_is_dropped_and_counted(tmp_path: Path) -> None:
    """The queue has a bound."""
    world = CacheWorld(tmp_path, most=2)
    world.bucket.down = True
    dropped = telemetry.BUCKET_CACHE_DROPPED.labels("full")
    before = dropped._value.get()
    with capture_logs() as logs:
        for number in range(9):
            world.uploads.add_blob(_blob(world, b"blob %d" % number))
        assert world.uploads.waiting <= 5
        assert dropped._value.get() - before >= 4
        await world.aclose()
    assert [line["event"] for line in logs].count("bucket cache drops content") == 2


async def test_an_orderly_stop_writes_what_waits(world: CacheWorld) -> None:
    """And takes nothing more."""
    digests = [_blob(world, b"blob %d" % number) for number in range(20)]
    for digest in digests:
        world.uploads.add_blob(digest)
    await world.uploads.aclose(60)
    assert world.bucket.content().keys() == {blob_key(digest) for digest in digests}
    world.uploads.add_blob(_blob(world, b"late"))
    assert world.uploads.waiting == 0


async def test_a_stop_does_not_wait_for_a_bucket_that_is_down(world: CacheWorld) -> None:
    """Its patience may be without end, as that of a command."""
    world.bucket.down = True
    world.uploads.add_blob(_blob(world, b"one"))
    await world.uploads.aclose(float("inf"))
    assert world.bucket.content() == {}


@pytest.mark.parametrize("kind", [BucketDenied, StoreError, ValueError])
async def test_threads_survive_every_error(world: CacheWorld, kind: type[Exception]) -> None:
    """The next blob is written, also after a mistake of ours."""
    world.bucket.fail("upload", error=kind("on purpose"))
    world.uploads.add_blob(_blob(world, b"one"))
    world.settle()
    world.uploads.add_blob(_blob(world, b"two"))
    world.settle()
    assert blob_key(Digest.of(b"two")) in world.bucket.content()


async def test_blobs_that_are_too_large_stay_out(world: CacheWorld) -> None:
    """Nothing else would fit beside them."""
    world.uploads.add_blob(_blob(world, bytes(1_000_001)))
    world.uploads.add_blob(_blob(world, bytes(1_000_000)))
    world.settle()
    assert world.book.totals().bytes == 1_000_000


async def test_two_processes_do_not_write_the_same_blob(world: CacheWorld) -> None:
    """The second finds it in the book."""
    another = CacheWorld(world.root, world.bucket)
    digest, began, may_end = _blob(world, b"one"), threading.Event(), threading.Event()

    def wait() -> None:
        began.set()
        assert may_end.wait(60)

    world.bucket.before("upload", wait)
    world.uploads.add_blob(digest)
    assert began.wait(60)
    another.uploads.add_blob(digest)
    # it comes round to another blob while the first waits
    another.uploads.add_blob(_blob(world, b"two"))
    eventually(lambda: blob_key(Digest.of(b"two")) in world.bucket.content(), "the other blob is written")
    may_end.set()
    world.settle()
    another.settle()
    assert world.bucket.calls["upload"] == 2
    await another.aclose()


async def test_keys_are_read_back(world: CacheWorld) -> None:
    """And no other spelling."""
    digest = Digest.of(b"x")
    assert parse_blob_key(blob_key(digest)) == digest
    assert parse_blob_key(f"cache/sha256/00/{digest.hex}") is None
    assert parse_blob_key("cache/readme.txt") is None
    for record in (
        CachedRecord.of_tag(Repo("localhost:5000", "a/b"), "v1.0"),
        CachedRecord.of_history(REPO, "latest"),
        CachedRecord.of_manifest(REPO, digest),
    ):
        assert parse_record_key(record.key) == record
    for key in ("cached/docker.io/app/_tags/-x", "cached/docker.io/app/_blobs/x", "cached/docker.io/app/_manifests/x"):
        assert parse_record_key(key) is None

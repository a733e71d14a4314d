"""A whole mirror whose hosted content is in a bucket."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from mirror.errors import StoreFull
from mirror.graph.damage import restore_hosted
from mirror.oci.digest import Digest
from tests.support.bucket_mirror import bucket_mirror, evict, wipe
from tests.support.live_mirror import PATIENCE, until
from tests.support.memory_bucket import MemoryBucket
from tests.support.push_client import PushClient, index

SMALL = b"a small layer"
LARGE = bytes(range(251)) * 20_000


@pytest.fixture
def bucket() -> MemoryBucket:
    """Empty."""
    return MemoryBucket()


def opened(bucket: MemoryBucket, folder: str = "hosted/") -> int:
    """How many objects with blobs were read so far."""
    return sum(keys[0].startswith(folder) for verb, keys in bucket.log if verb == "open")


async def test_pushed_pulled_and_pulled_again_without_the_disk(tmp_path: Path, bucket: MemoryBucket) -> None:
    """The bucket is the truth; a new disk answers like the old one."""
    async with bucket_mirror(tmp_path, bucket) as mirror:
        client = PushClient(mirror)
        manifest = await client.push_image("v1", SMALL, LARGE)
        assert (await client.manifest("v1")).body == manifest
        got = await client.blob(Digest.of(LARGE))
        assert (got.body, got.cache) == (LARGE, "hit")
        assert not opened(bucket)
    assert not (tmp_path / "store" / "hosted").exists()
    wipe(tmp_path)
    async with bucket_mirror(tmp_path, bucket) as mirror:
        client = PushClient(mirror)
        assert (await client.manifest("v1")).body == manifest
        head = await client.blob(Digest.of(LARGE), method="HEAD")
        assert (head.status, head.headers["Content-Length"]) == (200, str(len(LARGE)))
        assert opened(bucket) == 1
        got = await client.blob(Digest.of(LARGE))
        assert (got.body, got.cache) == (LARGE, "fwd=uri-miss; stored; detail=bucket")
        await mirror.landed(Digest.of(LARGE))
        got = await client.blob(Digest.of(LARGE))
        assert (got.body, got.cache) == (LARGE, "hit")
        assert (await client.blob(Digest.of(SMALL))).body == SMALL
        tags = await mirror.ask("/v2/corp/app/tags/list")
        assert tags.json["tags"] == ["v1"]


async def test_many_clients_read_a_blob_of_the_bucket_once(tmp_path: Path, bucket: MemoryBucket) -> None:
    """They follow one flight, from wherever they begin."""
    async with bucket_mirror(tmp_path, bucket) as mirror:
        client = PushClient(mirror)
        digest = await client.push_blob(LARGE)
        evict(mirror, LARGE)
        answers = await asyncio.gather(
            *(client.blob(digest) for _ in range(8)),
            *(client.blob(digest, Range=f"bytes={start}-{start + 99}") for start in range(0, 4000, 1000)),
        )
        assert [answer.body for answer in answers[:8]] == [LARGE] * 8
        assert [answer.body for answer in answers[8:]] == [LARGE[start : start + 100] for start in range(0, 4000, 1000)]
        assert opened(bucket) == 1


async def test_113_pulls_of_copies_go_on_without_the_bucket(tmp_path: Path, bucket: MemoryBucket) -> None:
    """What is on the disk is served; what is not, and every push, gets 503 and may come back."""
    async with bucket_mirror(tmp_path, bucket) as mirror:
        client = PushClient(mirror)
        manifest = await client.push_image("v1", SMALL, LARGE)
        assert (await client.manifest("v1")).body == manifest
        evict(mirror, LARGE)
        bucket.down = True
        # longer than what a process remembers by itself
        mirror.clock.forward(60)
        assert (await client.manifest("v1")).body == manifest
        assert (await client.blob(Digest.of(SMALL))).body == SMALL
        missing = await client.blob(Digest.of(LARGE))
        assert (missing.status, missing.headers["Retry-After"]) == (503, "5")
        refused = await client.ask("POST", client.uploads)
        if refused.status == 202:
            refused = await client.finish(refused.headers["Location"], Digest.of(b"new"), b"new")
        assert refused.status == 503
        assert int(refused.headers["Retry-After"]) >= 1
        bucket.down = False
        assert (await client.blob(Digest.of(LARGE))).body == LARGE
        await client.push_image("v2", b"new")


async def test_119_an_object_with_wrong_bytes(tmp_path: Path, bucket: MemoryBucket) -> None:
    """Never whole; then 404 as lost, until it is pushed again."""
    async with bucket_mirror(tmp_path, bucket) as mirror:
        client = PushClient(mirror)
        await client.push_image("v1", SMALL, LARGE)
        digest = Digest.of(LARGE)
        [key] = [key for key in bucket.content() if digest.hex in key and key.startswith("hosted/")]
        bucket.damage(key, LARGE[:-1] + b"\0")
        evict(mirror, LARGE)
        assert not (await mirror.ask(f"/v2/corp/app/blobs/{digest}")).whole
        await mirror.idle()
        lost = await client.blob(digest)
        assert (lost.status, lost.code) == (404, "BLOB_UNKNOWN")
        assert b"pushed again" in lost.body
        assert await until(lambda: mirror.events("hosted blob lost in the bucket"))
        assert (await client.manifest("v1")).status == 200
        await client.push_blob(LARGE)
        assert (await client.blob(digest)).body == LARGE


async def test_120_an_object_that_is_gone_and_a_copy_that_is_not(tmp_path: Path, bucket: MemoryBucket) -> None:
    """404 as lost; eviction keeps the copies of what is lost, which repair it."""
    async with bucket_mirror(tmp_path, bucket) as mirror:
        client = PushClient(mirror)
        await client.push_image("v1", SMALL, LARGE)
        for content in (SMALL, LARGE):
            digest = Digest.of(content)
            [key] = [key for key in bucket.content() if digest.hex in key and key.startswith("hosted/")]
            bucket.lose(key)
        evict(mirror, LARGE)
        assert (await client.blob(Digest.of(LARGE))).status == 404
        # the copy is served, and nobody has noticed yet that it is all that is left
        assert (await client.blob(Digest.of(SMALL))).body == SMALL


async def test_manifests_are_read_from_the_bucket_as_well(tmp_path: Path, bucket: MemoryBucket) -> None:
    """An index, what it names, its tag and its referrers."""
    async with bucket_mirror(tmp_path, bucket) as mirror:
        client = PushClient(mirror)
        child = await client.push_image("child", SMALL)
        both = index(child)
        assert (await client.put(both, "all")).status == 201
    wipe(tmp_path)
    async with bucket_mirror(tmp_path, bucket) as mirror:
        client = PushClient(mirror)
        assert (await client.manifest("all")).body == both
        assert (await client.manifest(Digest.of(child))).body == child
        assert (await client.referrers(Digest.of(child))).json["manifests"] == []
        assert (await mirror.ask("/v2/corp/other/tags/list")).status == 404


async def test_copies_are_evicted_as_images(tmp_path: Path, bucket: MemoryBucket) -> None:
    """Room is made by dropping copies, and nothing is lost by that."""
    async with bucket_mirror(tmp_path, bucket) as mirror:
        client = PushClient(mirror)
        manifest = await client.push_image("v1", SMALL, LARGE)
        assert (await client.manifest("v1")).body == manifest
        await mirror.rebuilt()
        mirror.clock.forward(3600)
        space = mirror.app.storage.eviction.space
        async with asyncio.timeout(PATIENCE):
            # what a manifest names is noted behind the answer
            while {victim.images for victim in await space.plan(1)} != {(Digest.of(manifest),)}:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert {Digest.of(LARGE), Digest.of(manifest)} <= {victim.digest for victim in await space.plan(1)}
        await space.make_room(len(LARGE))
        assert not mirror.blob_file(Digest.of(LARGE)).exists()
        assert (await client.manifest("v1")).body == manifest
        assert (await client.blob(Digest.of(LARGE))).body == LARGE


async def test_two_workers_share_what_a_bucket_has(tmp_path: Path, bucket: MemoryBucket) -> None:
    """What one has taken, the other serves; each sees the other's tags at once."""
    async with bucket_mirror(tmp_path, bucket) as first, bucket_mirror(tmp_path, bucket) as second:
        manifest = await PushClient(first).push_image("v1", SMALL)
        assert (await PushClient(second).manifest("v1")).body == manifest
        moved = await PushClient(second).push_image("v1", b"another layer")
        assert (await PushClient(first).manifest("v1")).body == moved


async def test_more_is_hosted_than_the_disk_holds(tmp_path: Path, bucket: MemoryBucket) -> None:
    """Pushes and pulls go on; the copies stay within the capacity; nothing is lost."""
    layers = [bytes([number]) * 1_000_000 for number in range(12)]
    async with bucket_mirror(tmp_path, bucket, store={"capacity": "5MB"}) as mirror:
        client = PushClient(mirror)
        space = mirror.app.storage.eviction.space
        manifests = []
        for number, layer in enumerate(layers):
            manifests.append(await client.push_image(f"v{number}", layer))
            mirror.clock.forward(3600)
            await space.check()
        for number, (layer, manifest) in enumerate(zip(layers, manifests, strict=True)):
            assert (await client.manifest(f"v{number}")).body == manifest
            assert (await client.blob(Digest.of(layer))).body == layer
            await mirror.idle()
            mirror.clock.forward(3600)
            await space.check()
            assert (await space.load()).present <= 5_000_000
        collected = await client.ask("DELETE", f"/v2/corp/app/manifests/{Digest.of(manifests[0])}")
        assert collected.status == 202
        assert (await client.manifest("v0")).status == 404
        assert (await client.manifest("v1")).body == manifests[1]


async def test_a_layer_that_the_disk_cannot_take_is_sent_past_it(tmp_path: Path, bucket: MemoryBucket) -> None:
    """Larger than the capacity: streamed from the bucket to each client, verified all the same."""
    async with bucket_mirror(tmp_path, bucket, store={"capacity": "1MB"}) as mirror:
        client = PushClient(mirror)
        digest = await client.push_blob(LARGE)
        await mirror.app.storage.eviction.space.check()
        # the check may have evicted it already
        mirror.app.storage.evictable.delete(Digest.of(LARGE))
        got = await client.blob(digest)
        assert (got.body, got.cache) == (LARGE, "fwd=bypass")
        part = await client.blob(digest, Range="bytes=1000-1999")
        assert (part.status, part.body) == (206, LARGE[1000:2000])
        [key] = [key for key in bucket.content() if digest.hex in key and key.startswith("hosted/")]
        bucket.damage(key, LARGE[:-1] + b"\0")
        assert not (await mirror.ask(f"/v2/corp/app/blobs/{digest}")).whole
        assert (await client.blob(digest)).status == 404


async def test_120_the_last_copy_is_kept_and_repairs_the_bucket(tmp_path: Path, bucket: MemoryBucket) -> None:
    """What the bucket has lost is not evicted, and is uploaded again."""
    async with bucket_mirror(tmp_path, bucket) as mirror:
        client = PushClient(mirror)
        digest = await client.push_blob(LARGE)
        await client.push_blob(SMALL)
        storage = mirror.app.storage
        assert storage.blobs is not None
        hosted = storage.blobs.hosted
        found = hosted.source(digest)
        assert found is not None
        bucket.lose(found.key)
        assert hosted.lost(found, "somebody deleted it")
        await mirror.rebuilt()
        mirror.clock.forward(3600)
        with suppress(StoreFull):
            await storage.eviction.space.make_room(len(LARGE) + len(SMALL))
        assert mirror.blob_file(digest).exists()
        assert (await client.blob(digest)).cache == "hit"
        assert await asyncio.to_thread(restore_hosted, storage.evictable, hosted) == 0
        evict(mirror, LARGE)
        assert (await client.blob(digest)).body == LARGE

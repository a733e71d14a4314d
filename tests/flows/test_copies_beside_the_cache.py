"""Copies of hosted blobs lie on the disk; no upstream, however it names them, opens them to anybody."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

import pytest

from mirror.app.storage import blob_places, scrub_records
from mirror.eviction.reconcile import INCOMPLETE, reconcile
from mirror.eviction.scrub import scrub_all
from mirror.graph.manifests import has_blob
from mirror.oci.digest import Digest
from tests.support.bucket_mirror import bucket_mirror, evict
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import LiveMirror, until
from tests.support.memory_bucket import MemoryBucket
from tests.support.push_client import OPEN, PushClient

SECRET: Final = b"a private layer" * 1000
DIGEST: Final = Digest.of(SECRET)
_NAME: Final = "library/app"
_RULES: Final = (
    OPEN,
    {"effect": "allow", "callers": ["*"], "actions": ["pull"], "repositories": ["docker.io/**"]},
)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    """An upstream with manifests that name blobs which it does not have."""
    with FakeRegistry() as running:
        running.add_image(_NAME, "v1", [SECRET])
        del running.repository(_NAME).blobs[DIGEST]
        yield running


@pytest.fixture
def bucket() -> MemoryBucket:
    """Empty."""
    return MemoryBucket()


def site(root: Path, bucket: MemoryBucket, registry: FakeRegistry) -> AbstractAsyncContextManager[LiveMirror]:
    """A mirror that keeps in the bucket what it hosts and what it caches."""
    store: dict[str, Any] = {"cache_in_bucket": True}
    return bucket_mirror(root, bucket, rules=_RULES, upstreams={"docker.io": registry.url}, store=store)


async def attack(mirror: LiveMirror) -> list[int]:
    """What a stranger gets who knows the digest: HEAD and GET of the blob, and a mount."""
    assert (await mirror.ask(f"/v2/{_NAME}/manifests/v1")).status == 200
    got = await mirror.ask(f"/v2/{_NAME}/blobs/{DIGEST}")
    assert got.body != SECRET
    other = PushClient(mirror, "corp/other")
    mounted = await other.ask("POST", f"{other.uploads}?mount={DIGEST}&from={_NAME}")
    return [got.status, mounted.status]


async def settled(mirror: LiveMirror) -> None:
    """Returns once nothing waits to be written to the bucket."""
    cache = mirror.app.storage.bucket_cache
    assert cache is not None
    await mirror.idle()
    await until(lambda: not cache.uploads.waiting)


def in_cache(mirror: LiveMirror) -> bool:
    """Whether the cache has the private layer."""
    return has_blob(mirror.app.storage.store, DIGEST)


@pytest.mark.parametrize("how", ["pushed", "pulled", "exported"])
async def test_a_digest_opens_no_private_layer(
    tmp_path: Path, bucket: MemoryBucket, registry: FakeRegistry, how: str
) -> None:
    """However its copy came to the disk: by a push, by a flight, by a thread that reads it; also after a restart."""
    async with site(tmp_path, bucket, registry) as mirror:
        client = PushClient(mirror)
        await client.push_image("v1", SECRET)
        if how != "pushed":
            evict(mirror, SECRET)
        if how == "pulled":
            assert (await client.blob(DIGEST)).body == SECRET
            await mirror.landed(DIGEST)
        if how == "exported":
            _, reader = await asyncio.to_thread(mirror.app.storage.contents.open, DIGEST)
            reader.close()
        assert mirror.blob_file(DIGEST).exists()
        assert await attack(mirror) == [404, 202]
        assert not in_cache(mirror)
        await settled(mirror)
        assert (await client.blob(DIGEST)).cache == "hit"
    async with site(tmp_path, bucket, registry) as mirror:
        assert await attack(mirror) == [404, 202]
        assert (await PushClient(mirror).blob(DIGEST)).cache == "hit"
        await settled(mirror)
    assert not [key for key in bucket.content() if key.startswith("cache/") and DIGEST.hex in key]


async def test_an_attack_during_a_flight(tmp_path: Path, bucket: MemoryBucket, registry: FakeRegistry) -> None:
    """A flight of the upstream for the same digest does not land from the copy."""
    async with site(tmp_path, bucket, registry) as mirror:
        client = PushClient(mirror)
        await client.push_image("v1", SECRET)
        assert (await mirror.ask(f"/v2/{_NAME}/manifests/v1")).status == 200
        for _ in range(3):
            evict(mirror, SECRET)
            mirror.clock.forward(3600)
            ours, theirs = await asyncio.gather(client.blob(DIGEST), mirror.ask(f"/v2/{_NAME}/blobs/{DIGEST}"))
            assert (ours.body, theirs.status) == (SECRET, 404)
            await mirror.landed(DIGEST)
        assert not in_cache(mirror)


async def test_a_private_manifest_is_no_cached_one(tmp_path: Path, bucket: MemoryBucket) -> None:
    """An index of an upstream may name it."""
    with FakeRegistry() as registry:
        async with site(tmp_path, bucket, registry) as mirror:
            client = PushClient(mirror)
            manifest = await client.push_image("v1", SECRET)
            child = registry.add_manifest(_NAME, manifest, json.loads(manifest)["mediaType"])
            registry.add_index(_NAME, "all", [child])
            del registry.repository(_NAME).manifests[child]
            assert (await mirror.ask(f"/v2/{_NAME}/manifests/all")).status == 200
            assert (await mirror.ask(f"/v2/{_NAME}/manifests/{child}")).status == 404
            assert (await client.manifest("v1")).body == manifest


async def test_what_upstream_has_serves_hosted_repositories_too(
    tmp_path: Path, bucket: MemoryBucket, registry: FakeRegistry
) -> None:
    """Bytes are shared, rights are not: once upstream sends the blob, the cache has it, and the copy goes."""
    registry.add_blob(_NAME, SECRET)
    async with site(tmp_path, bucket, registry) as mirror:
        client = PushClient(mirror)
        await client.push_image("v1", SECRET)
        assert (await mirror.ask(f"/v2/{_NAME}/manifests/v1")).status == 200
        got = await mirror.ask(f"/v2/{_NAME}/blobs/{DIGEST}")
        assert (got.status, got.body) == (200, SECRET)
        await until(lambda: in_cache(mirror))
        await mirror.idle()
        assert mirror.blob_file(DIGEST) == Path(mirror.app.storage.layout.blob(DIGEST))
        assert (await client.blob(DIGEST)).cache == "hit"
        other = PushClient(mirror, "corp/other")
        mounted = await other.ask("POST", f"{other.uploads}?mount={DIGEST}&from={_NAME}")
        assert mounted.status == 201
        usage = await mirror.app.storage.eviction.space.load()
        evict(mirror, SECRET)
        assert usage.present < 2 * len(SECRET)


async def test_copies_are_in_an_index_that_is_rebuilt(
    tmp_path: Path, bucket: MemoryBucket, registry: FakeRegistry
) -> None:
    """They are evicted as images, and the cached repository that names one gets no grant by it."""
    async with site(tmp_path, bucket, registry) as mirror:
        client, storage = PushClient(mirror), mirror.app.storage
        manifest = await client.push_image("v1", SECRET)
        await mirror.rebuilt()
        await storage.eviction.write_behind.flush()
        await storage.index.drop([DIGEST, Digest.of(manifest)])
        await storage.index.set_marker(INCOMPLETE)
        places = blob_places(mirror.config, storage)
        found = await reconcile(storage.evictable, storage.stored.evicted, storage.index, places=places)
        assert found.added >= 2
        assert (await storage.index.usage()).blobs == found.blobs
        mirror.clock.forward(3600)
        assert DIGEST in {victim.digest for victim in await storage.eviction.space.plan(1)}
        await storage.eviction.space.make_room(len(SECRET))
        assert not mirror.blob_file(DIGEST).exists()
        assert (await client.blob(DIGEST)).body == SECRET


async def test_a_damaged_copy_is_found_by_the_scrub(
    tmp_path: Path, bucket: MemoryBucket, registry: FakeRegistry
) -> None:
    """And fetched again from the bucket by the next pull."""
    async with site(tmp_path, bucket, registry) as mirror:
        client, storage = PushClient(mirror), mirror.app.storage
        await client.push_image("v1", SECRET)
        file = mirror.blob_file(DIGEST)
        file.chmod(0o600)
        file.write_bytes(SECRET[::-1])
        await scrub_all(mirror.app.scrub(rate=None), storage.evictable, scrub_records(storage.layout))
        assert [blob.digest for blob in storage.store.quarantined()] == [DIGEST]
        assert (await client.blob(DIGEST)).body == SECRET


async def test_an_erased_image_is_erased_although_a_stranger_names_it(
    tmp_path: Path, bucket: MemoryBucket, registry: FakeRegistry
) -> None:
    """A manifest of an upstream keeps what the cache has, and no copy."""
    async with site(tmp_path, bucket, registry) as mirror:
        await PushClient(mirror).push_image("v1", SECRET)
        assert await attack(mirror) == [404, 202]
        hosted = mirror.app.admin.hosted
        repo, image = hosted.parse("corp/app:v1", repository=False)
        await hosted.delete(repo, image, "me", at_once=True)
        assert not mirror.blob_file(DIGEST).exists()

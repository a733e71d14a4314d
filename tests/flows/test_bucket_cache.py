"""A mirror that keeps what it caches in a bucket: its disk, or its upstream, may be lost."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from mirror.app.storage import make_purge
from mirror.bucket_cache.cached_keys import CachedRecord, blob_key
from mirror.config import routing_table
from mirror.errors import StoreError
from mirror.eviction.cached_copies import CachedCopies
from mirror.eviction.purge import Purged
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.image_names import Image
from mirror.policy.records import Pin
from tests.support.bucket_mirror import bucket_opened
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import LiveMirror, live_mirror, noise, until
from tests.support.memory_bucket import MemoryBucket

_APP: Final = Repo("docker.io", "library/app")
_AT: Final = "/v2/library/app"
_LAYER: Final = noise(300_000)
#: Two replicas. Nobody listens there.
_HERE: Final = "http://127.0.0.1:9"
_AWAY: Final = "http://127.0.0.1:11"


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    """The upstream."""
    with FakeRegistry() as running:
        yield running


@pytest.fixture
def bucket() -> Iterator[MemoryBucket]:
    """That of every mirror of the test."""
    bucket = MemoryBucket()
    with bucket_opened(bucket):
        yield bucket


class Site:
    """Where mirrors run with one disk, one upstream and one bucket."""

    def __init__(self, root: Path, registry: FakeRegistry, bucket: MemoryBucket) -> None:
        self.root = root
        self.registry = registry
        self.bucket = bucket

    @asynccontextmanager
    async def mirror(
        self, *, store: dict[str, Any] | None = None, upstream: dict[str, Any] | None = None, **settings: Any
    ) -> AsyncIterator[LiveMirror]:
        """A mirror, once the records of the bucket are listed."""
        kept = {"bucket": "s3://bucket", "cache_in_bucket": True, **(store or {})}
        settings = {"bucket": {"region": "test"}, **settings}
        upstreams = {"docker.io": {"url": self.registry.url, **(upstream or {})}}
        async with live_mirror(self.root, upstreams, store=kept, **settings) as mirror:
            used = mirror.app.storage.bucket
            assert used is not None
            if not self.bucket.down:
                await until(used.memory.is_complete)
            yield mirror

    def wipe(self) -> None:
        """Empties the disk."""
        shutil.rmtree(self.root)


@pytest.fixture
def site(tmp_path: Path, registry: FakeRegistry, bucket: MemoryBucket) -> Site:
    """Empty."""
    return Site(tmp_path / "store", registry, bucket)


def _kept(bucket: MemoryBucket) -> dict[str, bytes]:
    """The objects of the cache."""
    return {key: content for key, content in bucket.content().items() if key.startswith(("cache/", "cached/"))}


def _calls(bucket: MemoryBucket) -> list[tuple[str, tuple[str, ...]]]:
    """The calls that were about the cache."""
    return [call for call in bucket.log if any(key.startswith(("cache/", "cached/")) for key in call[1])]


def _asked(registry: FakeRegistry) -> int:
    """Requests for content that came to upstream."""
    return sum(registry.count(kind) for kind in ("manifests", "blobs", "tags", "referrers"))


async def _purge(mirror: LiveMirror) -> Purged:
    """As `mirror purge` does."""
    app = mirror.app
    return await make_purge(mirror.config, app.storage, app.shared.forget)(Image(_APP, "v1"))


async def _settled(mirror: LiveMirror) -> None:
    """Returns once nothing waits to be written to the bucket."""
    cache = mirror.app.storage.bucket_cache
    assert cache is not None
    await mirror.idle()
    await until(lambda: not cache.uploads.waiting)


async def _fill_bucket(site: Site) -> None:
    """A mirror pulls the image, and writes what it has to the bucket."""
    async with site.mirror() as mirror:
        await _pull(mirror)
        await _settled(mirror)


async def _pull(mirror: LiveMirror, tag: str = "v1") -> list[str]:
    """Pulls an image as clients do; returns how each part was answered."""
    manifest = await mirror.ask(f"{_AT}/manifests/{tag}")
    assert manifest.status == 200, manifest
    answers = [manifest.cache]
    for blob in (manifest.json["config"], *manifest.json["layers"]):
        answer = await mirror.ask(f"{_AT}/blobs/{blob['digest']}")
        assert answer.status == 200, answer
        assert answer.whole
        answers.append(answer.cache)
    return answers


async def test_a_sealed_mirror_serves_from_the_bucket_what_its_disk_has_lost(site: Site, bucket: MemoryBucket) -> None:
    """Manifests by tag and digest, blobs, lists of tags and referrers; and no more."""
    digest = site.registry.add_image(_APP.name, "v1", [_LAYER])
    async with site.mirror() as mirror:
        await _pull(mirror)
        await _settled(mirror)
    assert {key.partition("/")[0] for key in _kept(bucket)} == {"cache", "cached"}
    site.wipe()
    asked = _asked(site.registry)
    async with site.mirror(offline=True) as mirror:
        layer = Digest.of(_LAYER)
        head = await mirror.ask(f"{_AT}/manifests/v1", method="HEAD")
        assert head.headers["Docker-Content-Digest"] == str(digest)
        assert (await mirror.ask(f"{_AT}/blobs/{layer}", method="HEAD")).status == 200
        assert not mirror.blob_file(layer).exists()
        await _pull(mirror)
        await mirror.landed(layer)
        assert (await mirror.ask(f"{_AT}/manifests/{digest}")).status == 200
        assert (await mirror.ask(f"{_AT}/tags/list")).json["tags"] == ["v1"]
        assert (await mirror.ask(f"{_AT}/manifests/v2")).code == "MANIFEST_UNKNOWN"
        assert (await mirror.ask(f"{_AT}/blobs/{Digest.of(b'unknown')}")).code == "BLOB_UNKNOWN"
        assert (await mirror.ask("/v2/library/other/tags/list")).code == "NAME_UNKNOWN"
    assert _asked(site.registry) == asked


async def test_a_blob_alone_is_granted_by_a_manifest_that_the_bucket_has(site: Site) -> None:
    """Clients that have the manifest ask for a layer only; another repository gets nothing."""
    site.registry.add_image(_APP.name, "v1", [_LAYER])
    await _fill_bucket(site)
    site.wipe()
    async with site.mirror(offline=True) as mirror:
        layer = Digest.of(_LAYER)
        assert (await mirror.ask(f"/v2/library/other/blobs/{layer}")).code == "BLOB_UNKNOWN"
        assert (await mirror.ask(f"{_AT}/blobs/{layer}")).body == _LAYER


async def test_referrers_come_back(site: Site) -> None:
    """A sealed site checks signatures, too."""
    digest = site.registry.add_image(_APP.name, "v1", [_LAYER])
    subject = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": str(digest), "size": 1}
    signature = site.registry.add_image(_APP.name, "sig", [b"signature"], subject=subject)
    async with site.mirror() as mirror:
        await _pull(mirror)
        await _pull(mirror, "sig")
        await _settled(mirror)
    site.wipe()
    async with site.mirror(offline=True) as mirror:
        listed = (await mirror.ask(f"{_AT}/referrers/{digest}")).json["manifests"]
        assert [each["digest"] for each in listed] == [str(signature)]


async def test_a_mirror_that_is_cut_off_goes_on(site: Site, registry: FakeRegistry) -> None:
    """Its tags are as fresh as before; nothing is asked of an upstream for blobs and manifests."""
    registry.add_image(_APP.name, "v1", [_LAYER])
    await _fill_bucket(site)
    site.wipe()
    asked = _asked(registry)
    async with site.mirror() as mirror:
        await _pull(mirror)
    assert _asked(registry) == asked


async def test_old_answers_are_served_while_upstream_is_away(site: Site, registry: FakeRegistry) -> None:
    """The age of a tag is that of its record, which the bucket has kept."""
    registry.add_image(_APP.name, "v1", [_LAYER])
    await _fill_bucket(site)
    site.wipe()
    registry.away()
    async with site.mirror() as mirror:
        mirror.clock.forward(7200)
        manifest = await mirror.ask(f"{_AT}/manifests/v1")
        assert "Warning" in manifest.headers
        assert (await mirror.ask(f"{_AT}/blobs/{Digest.of(_LAYER)}")).body == _LAYER


async def test_what_is_not_there_is_asked_of_upstream(site: Site, registry: FakeRegistry) -> None:
    """And goes behind."""
    registry.add_image(_APP.name, "v1", [_LAYER])
    async with site.mirror() as mirror:
        await _pull(mirror)
        await _settled(mirror)
        registry.add_image(_APP.name, "v2", [b"another"])
        assert "miss" in (await _pull(mirror, "v2"))[0]


async def test_113_the_bucket_is_down_all_the_while(site: Site, bucket: MemoryBucket) -> None:
    """Pulls go on, from upstream and from the disk, and nothing is acknowledged that is not there."""
    site.registry.add_image(_APP.name, "v1", [_LAYER])
    async with site.mirror() as mirror:
        bucket.down = True
        await _pull(mirror)
        await mirror.idle()
        assert all("hit" in each for each in await _pull(mirror))
        assert (await mirror.ask(f"{_AT}/tags/list")).status == 200
    assert _kept(bucket) == {}
    async with site.mirror(offline=True) as mirror:
        assert all("hit" in each for each in await _pull(mirror))
        assert (await mirror.ask(f"{_AT}/tags/list")).json["tags"] == ["v1"]
        missing = await mirror.ask(f"{_AT}/manifests/v2")
        assert (missing.status, missing.code) == (503, "UNAVAILABLE")


async def test_hits_touch_no_bucket(site: Site, bucket: MemoryBucket) -> None:
    """Neither of memory nor of the disk."""
    site.registry.add_image(_APP.name, "v1", [_LAYER])
    await _fill_bucket(site)
    async with site.mirror() as mirror:
        await _settled(mirror)
        await until(lambda: ("list", ("cached/",)) in bucket.log)
        calls = _calls(bucket)
        for _ in range(3):
            await _pull(mirror)
        await _settled(mirror)
        assert _calls(bucket) == calls


async def test_evicted_content_comes_from_the_bucket(site: Site, registry: FakeRegistry) -> None:
    """The disk is the smaller cache."""
    registry.add_image(_APP.name, "v1", [_LAYER])
    async with site.mirror() as mirror:
        await _pull(mirror)
        await _settled(mirror)
        storage = mirror.app.storage
        asked = registry.count("blobs")
        await storage.eviction.evictor.drop([Digest.of(_LAYER)])
        await _pull(mirror)
        assert registry.count("blobs") == asked


async def test_119_wrong_bytes_in_the_bucket_are_never_served_whole(
    site: Site, registry: FakeRegistry, bucket: MemoryBucket
) -> None:
    """They come from upstream, and the object goes."""
    registry.add_image(_APP.name, "v1", [_LAYER])
    await _fill_bucket(site)
    site.wipe()
    key = blob_key(Digest.of(_LAYER))
    bucket.damage(key, b"x" * len(_LAYER))
    async with site.mirror() as mirror:
        await mirror.ask(f"{_AT}/manifests/v1")
        answer = await mirror.ask(f"{_AT}/blobs/{Digest.of(_LAYER)}")
        if not answer.whole:
            answer = await mirror.ask(f"{_AT}/blobs/{Digest.of(_LAYER)}")
        assert answer.body == _LAYER
        await _settled(mirror)
    assert bucket.content()[key] == _LAYER


async def test_120_an_object_that_is_gone_comes_from_upstream(
    site: Site, registry: FakeRegistry, bucket: MemoryBucket
) -> None:
    """And is there again afterwards."""
    registry.add_image(_APP.name, "v1", [_LAYER])
    async with site.mirror() as mirror:
        await _pull(mirror)
        await _settled(mirror)
        await mirror.app.storage.eviction.evictor.drop([Digest.of(_LAYER)])
        bucket.lose(blob_key(Digest.of(_LAYER)))
        asked = registry.count("blobs")
        await _pull(mirror)
        assert registry.count("blobs") == asked + 1
        await _settled(mirror)
        assert bucket.content()[blob_key(Digest.of(_LAYER))] == _LAYER


async def test_a_purged_image_is_gone_from_both(site: Site, bucket: MemoryBucket) -> None:
    """Also one that only the bucket has."""
    site.registry.add_image(_APP.name, "v1", [_LAYER])
    for is_wiped in (False, True):
        async with site.mirror() as mirror:
            await _pull(mirror)
            await _settled(mirror)
        if is_wiped:
            site.wipe()
        async with site.mirror(offline=True) as mirror:
            purged = await _purge(mirror)
            assert purged.tags == ("v1",)
            assert not [key for key in _kept(bucket) if "_history" not in key]
            assert (await mirror.ask(f"{_AT}/manifests/v1")).code == "MANIFEST_UNKNOWN"


async def test_a_purge_while_it_is_written(site: Site, bucket: MemoryBucket) -> None:
    """What the writer brings to an end afterwards is deleted by it."""
    site.registry.add_image(_APP.name, "v1", [_LAYER])
    async with site.mirror() as mirror:
        bucket.down = True
        await _pull(mirror)
        await mirror.idle()
        bucket.down = False
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def purge() -> None:
            try:
                asyncio.run_coroutine_threadsafe(_purge(mirror), loop).result()
            finally:
                loop.call_soon_threadsafe(done.set)

        bucket.before("upload", purge)
        await done.wait()
        await _settled(mirror)
        assert not [key for key in _kept(bucket) if "_history" not in key]


async def test_a_purge_without_the_bucket_changes_nothing(site: Site, bucket: MemoryBucket) -> None:
    """Otherwise it would come back from there."""
    site.registry.add_image(_APP.name, "v1", [_LAYER])
    async with site.mirror() as mirror:
        await _pull(mirror)
        await _settled(mirror)
        bucket.down = True
        with pytest.raises(StoreError, match="not purged"):
            await _purge(mirror)
        bucket.down = False
        assert all("hit" in each for each in await _pull(mirror))


async def test_content_that_is_erased_is_erased_there_too(site: Site, bucket: MemoryBucket) -> None:
    """Unless a cached image needs it."""
    site.registry.add_image(_APP.name, "v1", [_LAYER])
    digest = site.registry.add_image(_APP.name, "v2", [b"erased"])
    async with site.mirror() as mirror:
        for tag in ("v1", "v2"):
            await _pull(mirror, tag)
        await _settled(mirror)
        storage = mirror.app.storage
        assert storage.bucket_cache is not None
        storage.catalog.drop_tag(_APP, "v2")
        storage.catalog.drop_manifest(_APP, digest)
        copies = CachedCopies(
            storage.store,
            storage.catalog,
            storage.evictable,
            storage.eviction.evictor,
            routing_table(mirror.config),
            storage.bucket_cache.purge,
        )
        stay = await copies.drop([Digest.of(_LAYER), Digest.of(b"erased")])
        assert stay == {Digest.of(_LAYER): (_APP,)}
        assert blob_key(Digest.of(_LAYER)) in bucket.content()
        assert blob_key(Digest.of(b"erased")) not in bucket.content()


async def test_two_workers_write_once(site: Site, bucket: MemoryBucket) -> None:
    """However many have pulled."""
    site.registry.add_image(_APP.name, "v1", [_LAYER])
    async with site.mirror() as one, site.mirror() as two:
        await asyncio.gather(_pull(one), _pull(two))
        await _settled(one)
        await _settled(two)
        await _pull(one)
        await _pull(two)
        await _settled(one)
        await _settled(two)
    uploads = [keys for verb, keys in bucket.log if verb == "upload"]
    assert len(uploads) == len(set(uploads)) == 3


async def test_the_capacity_of_the_bucket_is_kept(site: Site, registry: FakeRegistry, bucket: MemoryBucket) -> None:
    """What was not used for longest goes; a pull brings it back."""
    for number in range(4):
        registry.add_image(_APP.name, f"v{number}", [noise(300_000, seed=number)])
    async with site.mirror(store={"bucket_capacity": "800kB"}) as mirror:
        cache = mirror.app.storage.bucket_cache
        assert cache is not None
        for number in range(4):
            await _pull(mirror, f"v{number}")
            await _settled(mirror)
            mirror.clock.forward(100_000)
        storage = mirror.app.storage
        await cache.upkeep(storage.eviction.pinned.digests, storage.pins, storage.freezes).evict()
        assert cache.book.totals().bytes <= 680_000
        layers = [blob_key(Digest.of(noise(300_000, seed=number))) for number in range(4)]
        assert [key in bucket.content() for key in layers] == [False, False, True, True]


async def test_a_pinned_image_stays_although_the_disk_has_lost_it(site: Site, bucket: MemoryBucket) -> None:
    """What it consists of comes from the bucket before anything is deleted there."""
    for number in range(4):
        site.registry.add_image(_APP.name, f"v{number}", [noise(300_000, seed=number)])
    layers = [blob_key(Digest.of(noise(300_000, seed=number))) for number in range(4)]
    async with site.mirror() as mirror:
        mirror.app.storage.pins.put(Pin(_APP, "v0", "needed", mirror.clock()))
        for number in range(4):
            await _pull(mirror, f"v{number}")
            await _settled(mirror)
            mirror.clock.forward(100_000)
    site.wipe()
    async with site.mirror(store={"bucket_capacity": "800kB"}) as mirror:
        await until(lambda: mirror.events("bucket cache listed"))
        await until(lambda: layers[3] not in bucket.content() or layers[1] not in bucket.content())
        assert layers[0] in bucket.content()
        assert mirror.app.storage.catalog.get_tag(_APP, "v0") is not None


async def test_upstreams_that_must_allow_each_caller_stay_out(site: Site, bucket: MemoryBucket) -> None:
    """Their content is nobody's to keep."""
    site.registry.add_image(_APP.name, "v1", [_LAYER])
    async with site.mirror(upstream={"access": "verify"}) as mirror:
        await _pull(mirror)
        await _settled(mirror)
    assert _kept(bucket) == {}


async def test_a_replica_restores_nothing_that_not_all_have_purged(
    site: Site, bucket: MemoryBucket, tmp_path: Path
) -> None:
    """A replica with a new disk carries the purge out. Another one, which has not, writes the image to the bucket
    again: it is not served from there. What is pulled is kept in the bucket as ever.
    """
    for tag in ("v1", "v2"):
        site.registry.add_image(_APP.name, tag, [tag.encode()])
    async with site.mirror() as mirror:
        for tag in ("v1", "v2"):
            await _pull(mirror, tag)
        await _settled(mirror)
    site.wipe()
    before = _kept(bucket)
    order = {"at": time.time(), "registry": "docker.io", "name": _APP.name, "reference": "v1", "waiting": [_AWAY]}
    await asyncio.to_thread(bucket.write, "purges/orders.json", json.dumps({"order": order}).encode())
    secret = tmp_path / "secret"
    secret.write_text("of no use to anybody: 0123456789abcdef\n")
    secret.chmod(0o600)
    cluster = {"members": [_HERE, _AWAY], "address": _HERE, "secret_file": secret}
    async with site.mirror(cluster=cluster, offline=True) as mirror:
        await _pull(mirror, "v2")
        known = mirror.app.storage.purges
        assert known is not None
        await until(lambda: "order" in known.carried_out())
        assert CachedRecord.of_tag(_APP, "v1").key not in bucket.content()
        # as the other one does, which does not know of the purge yet
        for key, content in before.items():
            await asyncio.to_thread(bucket.write, key, content)
        assert (await mirror.ask(f"{_AT}/manifests/v1")).code == "MANIFEST_UNKNOWN"
    async with site.mirror(cluster=cluster) as mirror:
        site.registry.add_image(_APP.name, "v3", [b"v3"])
        await _pull(mirror, "v3")
        await _settled(mirror)
    assert CachedRecord.of_tag(_APP, "v3").key in bucket.content()

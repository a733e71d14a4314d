"""Tags of upstreams that nobody has asked for in a long time: the mirror forgets them, and answers as if it had never
known them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from mirror.app.housekeeping import open_forgetting
from mirror.app.object_storage.bucket_cache import BucketCache
from mirror.app.routes import forgetting_rule
from mirror.bucket_cache.cached_keys import CachedRecord, blob_key
from mirror.config import Config
from mirror.eviction.forgetting import Forgotten
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from tests.support.bucket_mirror import bucket_opened
from tests.support.bucket_replicas import bucket_replicas
from tests.support.command import mirror as command
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import Clock, LiveMirror, live_mirror, until
from tests.support.memory_bucket import MemoryBucket
from tests.support.mirror_process import write_config

_APP: Final = Repo("docker.io", "library/app")
_AT: Final = "/v2/library/app/manifests"
_DAY: Final = 86400.0
_STORE: Final[dict[str, Any]] = {"forget_after": "30d"}


@pytest.fixture
async def mirror(registry: FakeRegistry, tmp_path: Path) -> AsyncIterator[LiveMirror]:
    """It forgets after 30 days."""
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, store=_STORE) as running:
        yield running


async def _pull(mirror: LiveMirror, tag: str) -> Digest:
    answer = await mirror.ask(f"{_AT}/{tag}")
    assert answer.status == 200
    for blob in (answer.json["config"], *answer.json["layers"]):
        assert (await mirror.ask(f"/v2/library/app/blobs/{blob['digest']}")).whole
    await mirror.idle()
    return Digest.parse(answer.headers["Docker-Content-Digest"])


async def _evict(mirror: LiveMirror, digest: Digest) -> None:
    """Of the manifest alone; also from memory, as by a restart."""
    assert (await mirror.app.storage.eviction.evictor.drop([digest]))[0] == 1
    mirror.app.shared.caches.forget(_APP, [], [digest])


async def _walk(mirror: LiveMirror) -> Forgotten:
    return await open_forgetting(mirror.config, mirror.app.storage, mirror.app.shared.histories.clocks.earlier).walk()


def _files(mirror: LiveMirror) -> list[str]:
    root = mirror.root / "repositories"
    return sorted(str(path.relative_to(root / str(_APP))) for path in root.rglob("*") if not path.is_dir())


async def test_forgotten_and_asked_for_again(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Only what was evicted and is not asked for; the next pull is like the first one."""
    for tag in ("old", "asked", "here"):
        registry.add_image(_APP.name, tag, [tag.encode()])
    old, asked, _ = [await _pull(mirror, tag) for tag in ("old", "asked", "here")]
    await _evict(mirror, old)
    await _evict(mirror, asked)
    mirror.clock.forward(20 * _DAY)
    assert (await mirror.ask(f"{_AT}/asked", method="HEAD")).status == 200
    mirror.clock.forward(20 * _DAY)
    mirror.clear_log()
    assert (await _walk(mirror)).tags == 1
    assert (await _walk(mirror)).manifests == 1
    assert not (await _walk(mirror)).is_any
    assert [line["tags"] for line in mirror.events("records forgotten")] == [1, 0]
    assert {name.rpartition("/")[2] for name in _files(mirror) if "_manifests" not in name} == {"asked", "here"}
    assert len([name for name in _files(mirror) if "_manifests" in name]) == 2
    before = registry.count("manifests")
    assert await _pull(mirror, "old") == old
    assert registry.count("manifests") > before
    [sighting] = mirror.app.storage.catalog.get_history(_APP, "old")
    assert sighting.first_seen == mirror.clock()


async def test_the_repository_goes_with_its_last_record(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Its folders, too; after the next pull it is listed again."""
    registry.add_image(_APP.name, "v1", [b"layer"])
    await _evict(mirror, await _pull(mirror, "v1"))
    mirror.clock.forward(40 * _DAY)
    await _walk(mirror)
    assert (await _walk(mirror)).repositories == 1
    assert list((mirror.root / "repositories").iterdir()) == []
    await _pull(mirror, "v1")
    assert list(mirror.app.storage.catalog.repositories()) == [_APP]


async def test_what_the_commands_say_of_it(registry: FakeRegistry, tmp_path: Path) -> None:
    """The history is gone, which does not mean that nobody has ever asked for the tag."""
    upstreams = {"docker.io": registry.url}
    config = write_config(tmp_path, upstreams)
    registry.add_image(_APP.name, "v1", [b"layer"])
    async with live_mirror(tmp_path / "store", upstreams, store=_STORE) as mirror:
        await _evict(mirror, await _pull(mirror, "v1"))
        mirror.clock.forward(40 * _DAY)
        assert (await _walk(mirror)).tags == 1
    done = await asyncio.to_thread(command, "history", "--config", config, "app:v1")
    assert (done.status, done.out) == (1, "")
    assert "never seen that tag, or has forgotten it" in done.err
    done = await asyncio.to_thread(command, "why", "--config", config, "app:v1")
    assert (done.status, done.err) == (0, "")
    assert "no answer about this tag is stored here" in done.out


async def test_an_outage_that_lasts_longer(registry: FakeRegistry, tmp_path: Path) -> None:
    """What is here is served as before, and what is not here stays for as long as the old answer may be given."""
    route = [{"match": "docker.io/**", "stale_while_down": "365d"}]
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, store=_STORE, route=route) as mirror:
        for tag in ("here", "evicted"):
            registry.add_image(_APP.name, tag, [tag.encode()])
            digest = await _pull(mirror, tag)
        await _evict(mirror, digest)
        registry.away()
        mirror.clock.forward(300 * _DAY)
        assert not (await _walk(mirror)).is_any
        for tag in ("here", "evicted"):
            answer = await mirror.ask(f"{_AT}/{tag}", method="HEAD")
            assert (answer.status, "Warning" in answer.headers) == (200, True)
        mirror.clock.forward(100 * _DAY)
        assert (await _walk(mirror)).tags == 1
        assert "_tags/here" in _files(mirror)


async def test_a_running_mirror_forgets_by_itself(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A while after its start."""
    monkeypatch.setattr("mirror.app.housekeeping._FORGET_FIRST", 0.0)
    clock, upstreams = Clock(), {"docker.io": registry.url}
    registry.add_image(_APP.name, "v1", [b"layer"])
    async with live_mirror(tmp_path / "store", upstreams, clock=clock, store=_STORE) as mirror:
        await _evict(mirror, await _pull(mirror, "v1"))
    clock.forward(40 * _DAY)
    async with live_mirror(tmp_path / "store", upstreams, clock=clock, store=_STORE) as mirror:
        [line] = await mirror.logged("records forgotten")
        assert (line["tags"], line["manifests"], line["repositories"]) == (1, 0, 0)
        assert [name for name in _files(mirror) if "_manifests" not in name] == []


async def test_turned_off(registry: FakeRegistry, tmp_path: Path) -> None:
    """With 0 nothing is ever forgotten."""
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, store={"forget_after": 0}) as mirror:
        registry.add_image(_APP.name, "v1", [b"layer"])
        await _evict(mirror, await _pull(mirror, "v1"))
        mirror.clock.forward(4000 * _DAY)
        assert not (await _walk(mirror)).is_any


# --------------------------------------------------------------------------------------------------- which ones


def test_which_repositories_are_forgotten(tmp_path: Path) -> None:
    """Those of upstreams, by the first route that matches: not hosted, virtual, sealed or unknown ones, nor those with
    a minimum age.
    """
    content: dict[str, Any] = {
        "store": {"root": tmp_path, "forget_after": "30d"},
        "upstream": [{"name": "docker.io"}, {"name": "*.example.com"}],
        "hosted": [{"name": "corp"}],
        "virtual": [{"name": "all", "members": ["corp", "docker.io"]}],
        "route": [
            {"match": "docker.io/sealed/**", "offline": True},
            {"match": "docker.io/aged/**", "minimum_age": "3d"},
            {"match": "docker.io/stale/**", "stale_while_down": "365d", "tag_ttl": "0s"},
            {"match": "docker.io/**", "tag_ttl": "1h"},
        ],
    }
    config = Config(**content)
    after = forgetting_rule(config)

    def of(registry: str, name: str) -> float | None:
        return after(Repo(registry, name))

    assert of("docker.io", "library/app") == 30 * _DAY + 10 * 3600
    assert of("eu.example.com", "app") == 30 * _DAY + 3000
    assert of("docker.io", "stale/app") == 365 * _DAY
    for registry, name in (
        ("docker.io", "sealed/app"),
        ("docker.io", "aged/app"),
        ("corp", "app"),
        ("all", "app"),
        ("ghcr.io", "app"),
    ):
        assert of(registry, name) is None, registry
    sealed = config.model_copy(update={"offline": True})
    assert forgetting_rule(sealed)(Repo("eu.example.com", "app")) is None
    assert forgetting_rule(sealed)(Repo("docker.io", "library/app")) is None


# ----------------------------------------------------------------------------------------------------- a bucket


@pytest.fixture
def bucket() -> Iterator[MemoryBucket]:
    """That of the mirror."""
    bucket = MemoryBucket()
    with bucket_opened(bucket):
        yield bucket


async def test_what_the_bucket_has_keeps_its_names(
    registry: FakeRegistry, bucket: MemoryBucket, tmp_path: Path
) -> None:
    """Once it has gone from there as well, the disk forgets; the bucket keeps its own small records, for others."""
    store = {**_STORE, "bucket": "s3://bucket", "cache_in_bucket": True}
    upstreams = {"docker.io": registry.url}
    async with live_mirror(tmp_path / "store", upstreams, store=store, bucket={"region": "test"}) as mirror:
        cache, used = mirror.app.storage.bucket_cache, mirror.app.storage.bucket
        assert cache is not None
        assert used is not None
        await until(used.memory.is_complete)
        await until(lambda: cache.book.completed_at() is not None)
        registry.add_image(_APP.name, "v1", [b"layer"])
        digest = await _pull(mirror, "v1")
        await until(lambda: not cache.uploads.waiting)
        await _evict(mirror, digest)
        mirror.clock.forward(40 * _DAY)
        assert not (await _walk(mirror)).is_any
        bucket.delete([blob_key(digest)])
        cache.book.drop([digest])
        assert (await _walk(mirror)).tags == 1
        assert (await _walk(mirror)).manifests == 1
        assert not cache.uploads.waiting
        record = CachedRecord.of_tag(_APP, "v1").key
        assert record in bucket.content()
        assert await _pull(mirror, "v1") == digest


async def _is_written(mirror: LiveMirror) -> BucketCache:
    """Once the bucket has all that the mirror has cached."""
    cache = mirror.app.storage.bucket_cache
    assert cache is not None
    await until(lambda: cache.book.completed_at() is not None and not cache.uploads.waiting)
    return cache


async def test_two_replicas_of_one_bucket(registry: FakeRegistry, bucket: MemoryBucket, tmp_path: Path) -> None:
    """What one forgets on its disk, the other and the bucket have as before; the next pull by the first finds it."""
    clock = Clock()
    store, pulled = {**_STORE, "cache_in_bucket": True}, {"docker.io": registry.url}
    async with bucket_replicas(tmp_path, bucket, clock, 2, upstreams=pulled, store=store) as (first, second):
        registry.add_image(_APP.name, "v1", [b"layer"])
        digest = await _pull(second, "v1")
        await _is_written(second)
        assert await _pull(first, "v1") == digest
        for mirror in (first, second):
            await _evict(mirror, digest)
            (await _is_written(mirror)).book.drop([digest])
        bucket.delete([blob_key(digest)])
        clock.forward(40 * _DAY)
        # somebody asks the second replica alone
        assert (await second.ask(f"{_AT}/v1", method="HEAD")).status == 200
        assert (await _walk(first)).tags == 1
        assert (await _walk(second)).tags == 0
        assert second.app.storage.catalog.get_tag(_APP, "v1") is not None
        assert CachedRecord.of_tag(_APP, "v1").key in bucket.content()
        assert await _pull(first, "v1") == digest
        [sighting] = first.app.storage.catalog.get_history(_APP, "v1")
        assert sighting.first_seen < clock() - 39 * _DAY

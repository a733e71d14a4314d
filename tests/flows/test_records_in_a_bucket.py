"""The records of a whole mirror whose hosted content is in a bucket: tags, deletions, referrers, names, pins, freezes
and robots outlive the disk, and no other mirror can spoil them.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from mirror.errors import BucketUnavailable, BucketUnfit, StoreError
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.oci.reference import Repo
from mirror.policy.records import Freeze, Pin
from mirror.store.local.bucket_note import BucketNote
from mirror.store.local.layout import Layout
from tests.support.bucket_mirror import bucket_mirror, bucket_opened, wipe
from tests.support.command import CommandSite
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import live_mirror, until
from tests.support.memory_bucket import MemoryBucket
from tests.support.push_client import PushClient, descriptor, hosting_mirror, image

APP = Repo("corp", "app")
TYPO = Repo("corp", "typo")
_VIRTUAL = {"name": "all", "members": ["corp", "docker.io"]}
_CONFIG = """
[store]
root = "{root}"
bucket = "s3://memory/site"
[bucket]
region = "eu-central-1"
[[hosted]]
name = "corp"
keep_deleted = "7d"
[[virtual]]
name = "all"
members = ["corp", "docker.io"]
[[upstream]]
name = "docker.io"
url = "http://127.0.0.1:9"
"""


@pytest.fixture
def bucket() -> MemoryBucket:
    """Empty."""
    return MemoryBucket()


async def test_a_new_disk_knows_all_that_was_decided(tmp_path: Path, bucket: MemoryBucket) -> None:
    """Tags and what is deleted, referrers, the catalog, pins, freezes, and that a name was taken."""
    async with bucket_mirror(tmp_path, bucket, hosted={"keep_deleted": "7d"}) as mirror:
        client, other = PushClient(mirror), PushClient(mirror, "corp/team/other")
        first = await client.push_image("v1", b"one")
        second = await client.push_image("v2", b"two")
        config = b"{}"
        await client.push_blob(config)
        signature = image(config, subject=descriptor(first, OCI_MANIFEST))
        assert (await client.put(signature, Digest.of(signature))).status == 201
        await other.push_image("v1", b"other")
        assert (await client.ask("DELETE", f"/v2/corp/app/manifests/{Digest.of(second)}")).status == 202
        assert (await other.ask("DELETE", "/v2/corp/team/other/manifests/v1")).status == 202
        storage = mirror.app.storage
        await asyncio.to_thread(storage.pins.put, Pin(APP, "v1", "needed", mirror.clock()))
        frozen = Freeze(APP, "v1", Digest.of(first), OCI_MANIFEST, len(first), "held", mirror.clock())
        await asyncio.to_thread(storage.freezes.put, frozen)
    wipe(tmp_path)
    async with bucket_mirror(tmp_path, bucket, hosted={"keep_deleted": "7d"}) as mirror:
        client = PushClient(mirror)
        assert (await mirror.ask("/v2/corp/app/tags/list")).json["tags"] == ["v1"]
        assert (await mirror.ask("/v2/_catalog")).json["repositories"] == ["corp/app", "corp/team/other"]
        assert [each["digest"] for each in (await client.referrers(Digest.of(first))).json["manifests"]] == [
            str(Digest.of(signature))
        ]
        assert (await client.manifest(Digest.of(second))).status == 404
        storage = mirror.app.storage
        assert [pin.reason for pin in storage.pins.all()] == ["needed"]
        assert storage.freezes.get(APP, "v1") == frozen
        answer = await client.put(image(config, b"new"), "v1")
        assert answer.status in (400, 403, 404), "the tag is frozen"
        assert (await client.manifest("v1")).body == first
        records = storage.hosted.records
        assert records.is_taken(Repo("corp", "team/other"))
        assert list(records.deleted_manifests(APP)) == [Digest.of(second)]


async def test_113_no_name_is_asked_upstream_while_nobody_knows_whether_it_is_taken(
    tmp_path: Path, bucket: MemoryBucket
) -> None:
    """A new disk, and a bucket that is down: 503, and never the image of somebody else. One read is enough then."""
    with FakeRegistry() as hub:
        hub.add_image("app", "v1", [b"from the public registry"])
        settings: dict[str, Any] = {"virtual": [_VIRTUAL], "upstreams": {"docker.io": hub.url}}
        async with bucket_mirror(tmp_path, bucket, **settings) as mirror:
            ours = await PushClient(mirror).push_image("v1", b"ours")
        wipe(tmp_path)
        bucket.down = True
        async with bucket_mirror(tmp_path, bucket, **settings) as mirror:
            answer = await mirror.ask("/v2/all/app/manifests/v1")
            assert answer.status == 503
            assert hub.requests == []
            bucket.down = False
            assert (await mirror.ask("/v2/all/app/manifests/v1")).body == ours
            assert hub.requests == []


async def test_113_tags_and_referrers_are_answered_without_the_bucket(tmp_path: Path, bucket: MemoryBucket) -> None:
    """From what is remembered; what changes something is refused and changes nothing."""
    async with bucket_mirror(tmp_path, bucket) as mirror:
        client = PushClient(mirror)
        manifest = await client.push_image("v1", b"one")
        before = bucket.content()
        bucket.down = True
        mirror.clock.forward(3600)
        assert (await mirror.ask("/v2/corp/app/tags/list")).json["tags"] == ["v1"]
        assert (await client.referrers(Digest.of(manifest))).json["manifests"] == []
        assert (await client.manifest("v1")).body == manifest
        assert (await client.manifest("never")).status == 404
        assert (await mirror.ask("/v2/_catalog")).json["repositories"] == ["corp/app"]
        for method, target in (
            ("DELETE", "/v2/corp/app/manifests/v1"),
            ("DELETE", f"/v2/corp/app/manifests/{Digest.of(manifest)}"),
            ("PUT", "/v2/corp/app/manifests/v2"),
        ):
            answer = await client.ask(method, target, body=manifest, headers={"Content-Type": OCI_MANIFEST})
            assert answer.status == 503
            assert answer.headers["Retry-After"]
        assert bucket.content() == before
        bucket.down = False
        assert (await client.ask("DELETE", "/v2/corp/app/manifests/v1")).status == 202
        assert (await mirror.ask("/v2/corp/app/tags/list")).json["tags"] == []


async def test_a_mirror_that_is_overtaken_only_reads(tmp_path: Path, bucket: MemoryBucket) -> None:
    """Another one with the same bucket takes over; the first notices, says so, and pushes nothing any more."""
    async with bucket_mirror(tmp_path / "old", bucket) as old:
        manifest = await PushClient(old).push_image("v1", b"one")
        async with bucket_mirror(tmp_path / "new", bucket) as new:
            moved = await PushClient(new).push_image("v1", b"two")
            use = old.app.storage.bucket
            assert use is not None
            assert not await asyncio.to_thread(use.owner.watch)
            # the log of this process
            assert new.events("bucket taken over by another mirror")
            assert new.events("bucket taken over from another mirror")
            answer = await PushClient(old).put(manifest, "v3")
            assert answer.status == 503
            with pytest.raises(BucketUnavailable):
                await asyncio.to_thread(old.app.storage.check_bucket)
            old.clock.forward(3600)
            assert (await PushClient(old).manifest("v1")).body == moved
            assert (await PushClient(new).put(manifest, "v3")).status == 201


async def test_a_mirror_does_not_start_with_another_bucket(tmp_path: Path, bucket: MemoryBucket) -> None:
    """Nor without the one that has its hosted content, nor with content that is in none."""
    async with bucket_mirror(tmp_path, bucket) as mirror:
        await PushClient(mirror).push_image("v1", b"one")
    with pytest.raises(BucketUnfit, match="look at"):
        async with bucket_mirror(tmp_path, MemoryBucket()):
            pass
    with pytest.raises(StoreError, match="migrate --to-disk"):
        async with hosting_mirror(tmp_path):
            pass
    async with hosting_mirror(tmp_path / "disk") as mirror:
        await PushClient(mirror).push_image("v1", b"one")
    with pytest.raises(StoreError, match="migrate --to-bucket"):
        async with bucket_mirror(tmp_path / "disk", bucket):
            pass


async def test_a_start_while_the_bucket_is_down(tmp_path: Path, bucket: MemoryBucket) -> None:
    """The mirror starts, serves what it caches, and has everything once the bucket answers."""
    with FakeRegistry() as hub:
        hub.add_image("library/app", "v1", [b"cached"])
        settings: dict[str, Any] = {"upstreams": {"docker.io": hub.url}}
        async with bucket_mirror(tmp_path, bucket, **settings) as mirror:
            manifest = await PushClient(mirror).push_image("v1", b"one")
            assert (await mirror.ask("/v2/docker.io/library/app/manifests/v1")).status == 200
        bucket.down = True
        async with bucket_mirror(tmp_path, bucket, **settings) as mirror:
            assert mirror.events("bucket not confirmed yet")
            assert (await mirror.ask("/v2/docker.io/library/app/manifests/v1")).status == 200
            assert (await PushClient(mirror).manifest("v1")).status == 503
            bucket.down = False
            assert (await PushClient(mirror).manifest("v1")).body == manifest
            use = mirror.app.storage.bucket
            assert use is not None
            await until(use.memory.is_complete)


async def test_commands_read_and_write_the_bucket(tmp_path: Path, bucket: MemoryBucket) -> None:
    """Beside a disk that knows nothing yet, without a server: the same lists, and the same changes."""
    async with bucket_mirror(tmp_path, bucket, virtual=[_VIRTUAL]) as mirror:
        manifest = await PushClient(mirror).push_image("v1", b"one")
        await PushClient(mirror, "corp/typo").push_blob(b"one")
        await asyncio.to_thread(mirror.app.storage.hosted.records.drop_link, TYPO, Digest.of(b"one"))
    wipe(tmp_path)
    async with bucket_mirror(tmp_path, bucket, virtual=[_VIRTUAL]) as mirror:
        assert mirror.app.storage.hosted.records.is_taken(TYPO)
    site = CommandSite(tmp_path, _CONFIG)

    def run(*words: str) -> str:
        done = site.run(*words)
        assert done.status == 0, done.err
        return done.out

    def all_commands() -> None:
        with bucket_opened(bucket):
            assert "corp/app:v1" in run("ls")
            run("pin", "docker.io/library/app:v1", "--reason", "needed")
            assert "needed" in run("pins")
            run("freeze", "all/app:v1", "--at", str(Digest.of(manifest)))
            assert str(Digest.of(manifest)) in run("freezes")
            assert "secret" in run("token", "create", "ci", "--allow", "pull", "corp/**", "--json")
            assert "ci" in run("token", "list")
            run("status")
            run("check")
            run("release", "corp/typo")
            assert site.run("release", "corp/app").status != 0
            run("unfreeze", "corp/app:v1")
            run("unpin", "docker.io/library/app:v1")
            run("token", "revoke", "ci")
            assert "frozen tags: 0" in run("freezes")

    await asyncio.to_thread(all_commands)
    kinds = {key.split("/")[1] for key in bucket.content() if key.startswith("state/")}
    assert kinds >= {"pins", "freezes", "robots"}
    assert not kinds & {entry.name for entry in os.scandir(site.root)}
    assert BucketNote(Layout(site.root)).read()


async def test_a_hosted_registry_that_became_an_upstream(
    tmp_path: Path, bucket: MemoryBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its names mean the images that were pushed, and never those of a stranger. If the bucket is down, the disk
    remembers them; a new disk does not, and stops serving the name when the bucket is back.
    """
    monkeypatch.setattr("mirror.app.object_storage.bucket_upkeep._RETRY", 0.01)
    async with bucket_mirror(tmp_path, bucket) as mirror:
        await PushClient(mirror).push_image("v1", b"ours")
    bucket.down = True
    with FakeRegistry() as registry, bucket_opened(bucket):
        registry.add_image("app", "v1", [b"a stranger's"])
        upstreams, store = {"corp": registry.url, "other": registry.url}, {"bucket": "s3://memory/site"}
        with pytest.raises(BucketUnfit, match="corp is an upstream"):
            async with live_mirror(tmp_path / "store", upstreams, store=store):
                pass
        wipe(tmp_path)
        async with live_mirror(tmp_path / "store", upstreams, store=store) as mirror:
            assert (await mirror.ask("/v2/app/manifests/v1?ns=corp")).status != 404
            bucket.down = False
            await until(lambda: any("corp is" in one["reason"] for one in mirror.events("bucket records not listed")))
            for what in ("manifests/v1", "tags/list"):
                assert (await mirror.ask(f"/v2/app/{what}?ns=corp")).status == 503
            assert (await mirror.ask("/v2/app/tags/list?ns=other")).status == 200


async def test_a_bucket_that_was_made_again(tmp_path: Path, bucket: MemoryBucket) -> None:
    """The store answers from an empty one: no pull of hosted content is 404, no push is acknowledged, and upstream is
    not asked under a hosted name, from the first request on.
    """
    with FakeRegistry() as registry:
        registry.add_image("app", "v1", [b"a stranger's"])
        virtual = {"name": "all", "members": ["corp", "docker.io"]}
        async with bucket_mirror(tmp_path, bucket, upstreams={"docker.io": registry.url}, virtual=[virtual]) as mirror:
            client = PushClient(mirror)
            await client.push_image("v1", b"ours")
            for key in bucket.content():
                bucket.lose(key)
            assert (await client.ask("POST", f"{client.uploads}?digest={Digest.of(b'new')}", body=b"new")).status == 503
            for name in ("corp/app", "all/app"):
                for tag in ("v1", "v2"):
                    assert (await mirror.ask(f"/v2/{name}/manifests/{tag}")).status == 503
            manifest = image(b"ours")
            assert (await client.put(manifest, "v2")).status == 503
            assert registry.count("manifests") == 0
            assert mirror.events("bucket is another one")


async def test_a_freeze_that_cannot_be_read_stops_tags(tmp_path: Path, bucket: MemoryBucket) -> None:
    """Of upstreams, on a disk that has never seen the bucket. One that has remembers freezes, and serves tags while the
    bucket is down.
    """
    hub, tag = Repo("docker.io", "library/app"), "/v2/library/app/manifests/v1?ns=docker.io"
    with FakeRegistry() as registry:
        upstreams = {"docker.io": registry.url}
        trusted = registry.add_image(hub.name, "v1", [b"trusted"])
        content = registry.manifest(hub.name, trusted)
        async with bucket_mirror(tmp_path, bucket, upstreams=upstreams) as mirror:
            frozen = Freeze(hub, "v1", trusted, OCI_MANIFEST, len(content), "taken over", 1000.0)
            await asyncio.to_thread(mirror.app.storage.freezes.put, frozen)
        registry.add_image(hub.name, "v1", [b"a stranger's"])
        registry.add_image(hub.name, "v2", [b"second"])
        bucket.down = True
        async with bucket_mirror(tmp_path, bucket, upstreams=upstreams) as mirror:
            assert (await mirror.ask(tag)).body == content
            assert (await mirror.ask(tag.replace("v1", "v2"))).status == 200
        wipe(tmp_path)
        async with bucket_mirror(tmp_path, bucket, upstreams=upstreams) as mirror:
            refused = await mirror.ask(tag)
            assert (refused.status, "Retry-After" in refused.headers) == (503, True)
            assert (await mirror.ask(tag.replace("v1", str(trusted)))).body == content
            bucket.down = False
            assert (await mirror.ask(tag)).body == content

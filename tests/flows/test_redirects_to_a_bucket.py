"""A whole mirror that sends its clients to the bucket for blobs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from tests.support.bucket_mirror import bucket_mirror
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import LiveMirror, until
from tests.support.memory_bucket import MemoryBucket
from tests.support.push_client import PushClient

LAYER = bytes(range(251)) * 8_000
DIGEST = Digest.of(LAYER)
REDIRECTS = {"redirect_to": ["127.0.0.0/8"], "redirect_from": "100KB", "redirect_for": "60s"}


@pytest.fixture
def bucket() -> MemoryBucket:
    """Empty."""
    return MemoryBucket()


@pytest.fixture
async def mirror(tmp_path: Path, bucket: MemoryBucket) -> AsyncIterator[LiveMirror]:
    """Redirects everybody for large blobs. Has an image with one."""
    async with bucket_mirror(
        tmp_path,
        bucket,
        table=REDIRECTS,
        access={"audit_log": str(tmp_path / "audit.jsonl")},
        virtual=[{"name": "all", "members": ["corp"]}],
        content={"deny": ["corp/secret"]},
    ) as running:
        await PushClient(running).push_image("v1", LAYER)
        yield running


async def test_a_hosted_blob_is_read_from_the_bucket(mirror: LiveMirror, bucket: MemoryBucket, tmp_path: Path) -> None:
    """By its own name and by a virtual one; the manifest and the config come from the mirror."""
    client = PushClient(mirror)
    got = await client.blob(DIGEST)
    assert (got.status, got.body) == (307, b"")
    assert bucket.fetch(got.headers["Location"]) == LAYER
    assert got.headers["Location"].endswith("life=60")
    assert (await PushClient(mirror, "all/app").blob(DIGEST)).status == 200, "asked again, from the same address"
    manifest = await client.manifest("v1")
    assert manifest.status == 200
    config = Digest.parse(json.loads(manifest.body)["config"]["digest"])
    assert (await client.blob(config)).status == 200
    assert (await client.blob(DIGEST, method="HEAD")).status == 200
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [line["redirected"] for line in lines if line["status"] == 307] == [len(LAYER)]
    assert "signature" not in (tmp_path / "audit.jsonl").read_text() + json.dumps(mirror.log)


async def test_under_a_virtual_name(mirror: LiveMirror, bucket: MemoryBucket) -> None:
    got = await PushClient(mirror, "all/app").blob(DIGEST)
    assert got.status == 307
    assert bucket.fetch(got.headers["Location"]) == LAYER


async def test_a_right_that_was_taken_away_redirects_nobody(mirror: LiveMirror) -> None:
    """Also within the seconds for which the mirror remembers that it was there."""
    client = PushClient(mirror)
    assert (await client.blob(DIGEST)).status == 307
    manifest = Digest.of((await client.manifest("v1")).body)
    assert (await client.ask("DELETE", f"/v2/corp/app/manifests/{manifest}")).status == 202
    assert (await client.ask("DELETE", f"/v2/corp/app/blobs/{DIGEST}")).status == 202
    assert (await client.blob(DIGEST)).status == 404


async def test_another_repository_is_not_redirected(mirror: LiveMirror) -> None:
    """The bucket has the blob, and this repository has no right to it."""
    assert (await PushClient(mirror, "corp/other").blob(DIGEST)).status == 404


async def test_what_the_rules_deny_is_not_in_reach(mirror: LiveMirror) -> None:
    client = PushClient(mirror, "corp/secret")
    assert (await client.push_image("v1", LAYER)) is not None
    assert (await client.blob(DIGEST)).status == 403


async def test_an_object_that_is_gone_is_not_named(mirror: LiveMirror, bucket: MemoryBucket) -> None:
    """The copy on the disk is sent instead."""
    for key in list(bucket.content()):
        if key.startswith("hosted/sha256/") and DIGEST.hex in key:
            bucket.lose(key)
    got = await PushClient(mirror).blob(DIGEST)
    assert (got.status, got.body) == (200, LAYER)


async def test_while_the_bucket_is_down_the_disk_serves(mirror: LiveMirror, bucket: MemoryBucket) -> None:
    bucket.down = True
    got = await PushClient(mirror).blob(DIGEST)
    assert (got.status, got.body) == (200, LAYER)
    assert [line["event"] for line in mirror.log].count("redirects to bucket suspended") == 1
    bucket.down = False


async def test_without_the_setting_nobody_is_redirected(tmp_path: Path, bucket: MemoryBucket) -> None:
    async with bucket_mirror(tmp_path, bucket) as mirror:
        client = PushClient(mirror)
        await client.push_blob(LAYER)
        assert (await client.blob(DIGEST)).status == 200
        assert not bucket.calls["sign"]


@pytest.mark.parametrize("access", ["shared", "verify"])
async def test_cached_blobs_are_read_from_the_bucket_unless_callers_are_verified(
    tmp_path: Path, bucket: MemoryBucket, registry: FakeRegistry, access: str
) -> None:
    """Once it is there; a repository without a manifest that names the blob redirects nobody."""
    registry.add_image("library/app", "v1", [LAYER])
    upstreams = {"docker.io": {"url": registry.url, "access": access}}
    store = {"cache_in_bucket": True}
    async with bucket_mirror(tmp_path, bucket, table=REDIRECTS, upstreams=upstreams, store=store) as mirror:
        client = PushClient(mirror, "library/app")
        assert (await client.manifest("v1")).status == 200
        assert (await client.blob(DIGEST)).body == LAYER
        await mirror.landed(DIGEST)
        if access == "shared":
            kept = mirror.app.storage.bucket_cache
            assert kept is not None
            await until(lambda: kept.objects.source(DIGEST) is not None)
        got = await client.blob(DIGEST)
        assert got.status == (307 if access == "shared" else 200)
        if access == "shared":
            assert bucket.fetch(got.headers["Location"]) == LAYER
        assert (await PushClient(mirror, "library/other").blob(DIGEST)).status == 404

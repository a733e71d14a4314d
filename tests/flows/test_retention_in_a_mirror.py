"""Retention in a whole mirror: rules, pushes, a dry run, a round, and the images back again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST
from tests.support.bucket_mirror import bucket_mirror
from tests.support.eviction_world import until
from tests.support.live_mirror import Clock
from tests.support.memory_bucket import MemoryBucket
from tests.support.push_client import PushClient, hosting_mirror

_DAY = 86400
#: No round by schedule.
_BY_HAND = {"retention": {"every": 0}}
_RULES: dict[str, Any] = {
    "retention": [
        {
            "repositories": ["app"],
            "keep": [{"tags": ["ci-*"], "newest": 2}, {"tags": ["v*"], "newest_of_each_minor": 1}],
            "delete": [{"tags": ["*"]}],
            "delete_untagged_after": "1d",
        }
    ]
}


def _index(*children: bytes) -> bytes:
    listed = [{"mediaType": OCI_MANIFEST, "digest": str(Digest.of(each)), "size": len(each)} for each in children]
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}).encode()


async def test_rules_pushes_a_dry_run_a_round_and_back(tmp_path: Path) -> None:
    """As the page about retention tells it; also an index with its platforms, and a signature."""
    async with hosting_mirror(tmp_path, hosted=_RULES, hosting=_BY_HAND, clock=Clock()) as mirror:
        client = PushClient(mirror)
        for number in range(4):
            mirror.clock.forward(1)
            await client.push_image(f"ci-{number}", b"build %d" % number)
        for version in ("v1.0.0", "v1.0.1", "v1.1.0"):
            await client.push_image(version, version.encode())
        platforms = [await client.make_image(b"platform %d" % number) for number in range(2)]
        for platform in platforms:
            assert (await client.put(platform, Digest.of(platform))).status == 201
        index = _index(*platforms)
        assert (await client.put(index, "nightly")).status == 201
        assert (await client.put(index, "v2.0.0")).status == 201
        old = await client.push_image("old", b"old")
        signature = await client.make_image(
            b"signature", subject={"mediaType": OCI_MANIFEST, "digest": str(Digest.of(index)), "size": len(index)}
        )
        assert (await client.put(signature, Digest.of(signature))).status == 201

        app = mirror.app
        retention = app.admin.hosted.retention
        plan = await retention.plan({"repository": "corp/app"})
        [planned] = plan["repositories"]
        going = {each["name"]: each["reason"] for each in planned["tags"] if each["goes"]}
        assert going == dict.fromkeys(["ci-0", "ci-1", "v1.0.0", "nightly", "old"], "delete: tags *")
        reasons = {each["name"]: each["reason"] for each in planned["manifests"]}
        assert reasons[str(Digest.of(platforms[0]))] == f"named by {Digest.of(index)}"
        assert reasons[str(Digest.of(signature))] == f"about {Digest.of(index)}"
        assert (await client.manifest("old")).status == 200

        done = await retention.run({}, "user:admin")
        assert (done["tags"], done["manifests"], done["complete"]) == (5, 4, True)
        answers = {tag: (await client.manifest(tag)).status for tag in ("ci-1", "old", "nightly", "ci-2", "ci-3")}
        assert answers == {"ci-1": 404, "old": 404, "nightly": 404, "ci-2": 200, "ci-3": 200}
        for kept in (index, *platforms, signature):
            assert (await client.manifest(Digest.of(kept))).body == kept
        assert (await retention.last())["last"] == done

        undeleted = await app.admin.hosted.undelete(*app.admin.hosted.parse("corp/app:old", repository=False), "user:a")
        assert undeleted["manifests"] == [str(Digest.of(old))]
        assert (await client.manifest("old")).body == old
        assert (await retention.run({}, "user:admin"))["tags"] == 0
        assert (await client.manifest("old")).status == 200


async def test_pulls_count_by_tag_by_digest_and_by_head(tmp_path: Path) -> None:
    """Of the repositories about which a rule asks, also those before a restart."""
    rules = {"retention": [{"repositories": ["app"], "delete": [{"tags": ["*"], "not_pulled_within": "10d"}]}]}
    clock = Clock()
    async with hosting_mirror(tmp_path, hosted=rules, hosting=_BY_HAND, clock=clock) as mirror:
        client, other = PushClient(mirror), PushClient(mirror, "corp/other")
        images = {tag: await client.push_image(tag, tag.encode()) for tag in ("got", "head", "digest", "never")}
        await other.push_image("got", b"other")
        pulls = mirror.app.storage.records("pulls")
        await until(lambda: pulls.get("recorded") is not None)
        retention = mirror.app.admin.hosted.retention
        assert (await retention.run({}, "user:admin"))["tags"] == 0
        clock.forward(9 * _DAY)
        assert (await client.manifest("got")).status == 200
        assert (await client.manifest("head", method="HEAD")).status == 200
        assert (await client.manifest(Digest.of(images["digest"]))).status == 200
        assert (await other.manifest("got")).status == 200
    clock.forward(2 * _DAY)
    async with hosting_mirror(tmp_path, hosted=rules, hosting=_BY_HAND, clock=clock) as mirror:
        pulls = mirror.app.storage.records("pulls")
        assert pulls.get("corp/other") is None
        retention = mirror.app.admin.hosted.retention
        assert (await retention.run({}, "user:admin"))["tags"] == 1
        client = PushClient(mirror)
        assert (await client.manifest("never")).status == 404
        assert [(await client.manifest(tag)).status for tag in ("got", "head", "digest")] == [200, 200, 200]


async def test_pulls_are_written_to_a_bucket_when_the_mirror_ends(tmp_path: Path) -> None:
    """In a thread: the fixture `no_bucket_on_a_loop` sees to that."""
    rules = {"retention": [{"repositories": ["app"], "delete": [{"tags": ["*"], "not_pulled_within": "10d"}]}]}
    bucket = MemoryBucket()
    async with bucket_mirror(tmp_path, bucket, hosted=rules, hosting=_BY_HAND) as mirror:
        client = PushClient(mirror)
        await client.push_image("v1", b"content")
        assert (await client.manifest("v1")).status == 200
    written = [content for key, content in bucket.content().items() if key.startswith("state/pulls/")]
    assert any(b'"v1"' in content for content in written)

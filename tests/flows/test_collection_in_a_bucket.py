"""A whole mirror with a bucket gives back what nothing needs, and finds what was forgotten or is gone."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Final
from unittest import mock

import pytest

from mirror.app.collecting import open_sweeper
from mirror.collection.sweep_report import SweepReport
from mirror.errors import StoreError
from mirror.oci.digest import Digest
from mirror.ports import Expected, Version
from tests.support.bucket_mirror import bucket_mirror, evict, wipe
from tests.support.live_mirror import LiveMirror
from tests.support.memory_bucket import MemoryBucket
from tests.support.push_client import PushClient

LAYER = b"a layer"
SHARED = b"a layer of two images"
#: Rounds and sweeps come when the test does them.
BY_HAND: Final = {"hosting": {"collect_every": "0s", "sweep_every": "0s"}}
#: Without a grace time, whatever nothing needs goes after a few rounds.
AT_ONCE: Final = {"hosted": {"keep_deleted": "0s"}, "hosting": {**BY_HAND["hosting"], "grace": "0s"}}
DAY = 86400.0


@pytest.fixture
def bucket() -> MemoryBucket:
    """Empty."""
    return MemoryBucket()


def objects_of(bucket: MemoryBucket, content: bytes) -> list[str]:
    """The keys of the bytes of a blob."""
    return [key for key in bucket.content() if key.startswith("hosted/") and Digest.of(content).hex in key]


async def collected(mirror: LiveMirror) -> None:
    """So many rounds that what nothing needs has waited twice."""
    for _ in range(4):
        report = await mirror.app.admin.hosted.collect()
        assert report["complete"]
        mirror.clock.forward(0.5)


async def swept(mirror: LiveMirror, bucket: MemoryBucket) -> SweepReport:
    """A sweep of objects that are old by the clock of the store."""
    bucket_time = time.time()
    for key in bucket.content():
        bucket.date(key, bucket_time - 3 * DAY)
    sweeper = open_sweeper(mirror.config, mirror.app.storage, mirror.clock, mirror.clock.steady)
    assert sweeper
    report = await sweeper.run()
    assert report
    return report


async def test_what_no_image_needs_goes(tmp_path: Path, bucket: MemoryBucket) -> None:
    """The manifest, and with one call its blobs; what another image has stays, also for a machine with a new disk."""
    async with bucket_mirror(tmp_path, bucket, **AT_ONCE) as mirror:
        client = PushClient(mirror)
        gone = await client.push_image("gone", LAYER, SHARED)
        kept = await client.push_image("kept", SHARED)
        assert (await client.ask("DELETE", f"/v2/corp/app/manifests/{Digest.of(gone)}")).status == 202
        await collected(mirror)
        assert not objects_of(bucket, LAYER) + objects_of(bucket, gone)
        assert len(objects_of(bucket, SHARED)) == len(objects_of(bucket, kept)) == 1
        assert [len(keys) for verb, keys in bucket.log if verb == "delete" and keys[0].startswith("hosted/")] == [1, 2]
        again = await client.push_image("gone", LAYER, SHARED)
        assert again == gone
    wipe(tmp_path)
    async with bucket_mirror(tmp_path, bucket, **BY_HAND) as mirror:
        client = PushClient(mirror)
        assert (await client.manifest("kept")).body == kept
        assert (await client.blob(Digest.of(LAYER))).body == LAYER


async def test_what_is_erased_goes_at_once(tmp_path: Path, bucket: MemoryBucket) -> None:
    """From the bucket and from the disk; if the bucket does not delete it, the operator is informed."""
    async with bucket_mirror(tmp_path, bucket, **BY_HAND) as mirror:
        client, hosted = PushClient(mirror), mirror.app.admin.hosted
        for failing in (False, True):
            await client.push_image("secret", LAYER)
            repo, image = hosted.parse("corp/app:secret", repository=False)
            if not failing:
                await hosted.delete(repo, image, "me", at_once=True)
                assert not objects_of(bucket, LAYER)
                assert not mirror.blob_file(Digest.of(LAYER)).exists()
            else:
                bucket.fail("delete")
                with pytest.raises(StoreError, match="stay in the bucket"):
                    await hosted.delete(repo, image, "me", at_once=True)
        assert objects_of(bucket, LAYER)
        report = await swept(mirror, bucket)
        assert report.deleted
        assert not objects_of(bucket, LAYER)


async def test_120_a_walk_over_a_manifest_whose_object_is_gone(tmp_path: Path, bucket: MemoryBucket) -> None:
    """Row 120: it may name anything. Its layers stay, however long that lasts, and a push repairs it."""
    async with bucket_mirror(tmp_path, bucket, **AT_ONCE) as mirror:
        client = PushClient(mirror)
        manifest = await client.push_image("v1", LAYER)
        [key] = objects_of(bucket, manifest)
        bucket.lose(key)
        evict(mirror, manifest)
        for _ in range(5):
            report = await mirror.app.admin.hosted.collect()
            assert report["unread_count"]
            mirror.clock.forward(0.5)
        assert len(objects_of(bucket, LAYER)) == 1
        assert await client.push_image("v1", LAYER) == manifest
        await collected(mirror)
        assert (await client.manifest("v1")).body == manifest
        assert len(objects_of(bucket, LAYER)) == 1


async def test_a_sweep_finds_what_is_gone_and_what_was_forgotten(tmp_path: Path, bucket: MemoryBucket) -> None:
    """The admin API, the metrics and the list of damaged blobs show it."""
    async with bucket_mirror(tmp_path, bucket, **BY_HAND) as mirror:
        client = PushClient(mirror)
        await client.push_image("v1", LAYER, SHARED)
        [key] = objects_of(bucket, LAYER)
        bucket.lose(key)
        bucket.write(f"{key[:-16]}{'0' * 16}", LAYER)
        report = await swept(mirror, bucket)
        assert (report.lost, report.deleted) == (1, 1)
        shown = await mirror.app.admin.hosted.collection()
        assert shown["sweep"]
        assert (shown["sweep"]["lost"], shown["sweep"]["done"]) == (1, 1.0)
        damaged = await mirror.app.admin.hosted.damaged({})
        assert [blob["digest"] for blob in damaged["damaged"]] == [str(Digest.of(LAYER))]
        assert damaged["damaged"][0]["repositories"] == ["corp/app"]
        await client.push_blob(LAYER)
        assert not (await mirror.app.admin.hosted.damaged({}))["damaged"]
        assert (await swept(mirror, bucket)).lost == 0


async def test_another_mirror_took_the_bucket_over(tmp_path: Path, bucket: MemoryBucket) -> None:
    """Neither collection nor a sweep judges what it may not know."""
    async with bucket_mirror(tmp_path / "one", bucket, **BY_HAND) as first:
        await PushClient(first).push_image("v1", LAYER)
        async with bucket_mirror(tmp_path / "two", bucket, **BY_HAND) as second:
            with pytest.raises(StoreError):
                await first.app.admin.hosted.collect()
            with pytest.raises(StoreError):
                await swept(first, bucket)
            assert (await second.app.admin.hosted.collect())["complete"]
    assert len(objects_of(bucket, LAYER)) == 1


async def test_operators_wait_for_the_bucket_in_threads_of_their_own(tmp_path: Path) -> None:
    """Whatever they ask about hosted content: nothing else, pulls least of all, waits behind it."""
    writers: list[str] = []

    class Named(MemoryBucket):
        def write(self, key: str, content: bytes, *, expect: Expected = None) -> Version:
            writers.append(threading.current_thread().name)
            return super().write(key, content, expect=expect)

    async with bucket_mirror(tmp_path, Named(), **BY_HAND) as mirror:
        await PushClient(mirror).push_image("v1", LAYER)
        hosted, use = mirror.app.admin.hosted, mirror.app.storage.bucket
        assert use
        repo, image = hosted.parse("corp/app:v1", repository=False)
        submit = use.threads.admin.submit
        with mock.patch.object(use.threads.admin, "submit", side_effect=submit) as submitted:
            for ask in (
                lambda: hosted.deleted({}),
                lambda: hosted.damaged({}),
                hosted.collection,
                lambda: hosted.repositories.page({}),
                hosted.retention.last,
                lambda: hosted.retention.plan({"repository": "corp/app"}),
                lambda: hosted.delete(repo, image, "me", dry_run=True),
            ):
                submitted.reset_mock()
                await ask()
                submitted.assert_called()
            writers.clear()
            await hosted.delete(repo, image, "me")
            await hosted.undelete(repo, image, "me")
        assert writers
        assert {name.partition("_")[0] for name in writers} == {"admin"}

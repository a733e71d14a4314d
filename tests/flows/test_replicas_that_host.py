"""Three replicas over one bucket, of which none hears of the others: a client sees what any of them has acknowledged.
Rows 124, 127, 131 and 132 of the table of faults, as far as they are about hosted content.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from mirror.app.clusters.journal_following import catches_up
from mirror.errors import BucketUnavailable
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.oci.reference import Repo
from mirror.policy.records import Freeze
from tests.support.bucket_mirror import wipe
from tests.support.bucket_replicas import bucket_replica, bucket_replicas
from tests.support.live_mirror import Clock, LiveMirror, noise
from tests.support.memory_bucket import MemoryBucket
from tests.support.push_client import PushClient, descriptor, index

LAYER = b"a layer"


@pytest.fixture
def clock() -> Clock:
    """That of all replicas and of the bucket."""
    return Clock()


@pytest.fixture
def bucket(clock: Clock) -> MemoryBucket:
    """Empty."""
    return MemoryBucket(now=clock)


async def tags(mirror: LiveMirror, name: str = "corp/app") -> list[str]:
    """The tags that a client sees."""
    got = await mirror.ask(f"/v2/{name}/tags/list")
    found: list[str] = got.json["tags"] if got.status == 200 else []
    return found


async def catalog(mirror: LiveMirror) -> list[str]:
    """The repositories that a client sees."""
    found: list[str] = (await mirror.ask("/v2/_catalog")).json["repositories"]
    return found


def clients(mirrors: Sequence[LiveMirror]) -> list[PushClient]:
    """One for each replica."""
    return [PushClient(mirror) for mirror in mirrors]


async def test_132_a_change_at_one_replica_is_seen_by_the_next_request_at_all(
    tmp_path: Path, bucket: MemoryBucket, clock: Clock
) -> None:
    """A push, a moved tag, a deleted tag, a manifest with its tags, and a tag that comes back; each at another replica,
    by pulls, lists and referrers.
    """
    async with bucket_replicas(tmp_path, bucket, clock) as mirrors:
        one, two, three = clients(mirrors)
        for each in (one, two, three):
            assert (await each.manifest("v1")).status == 404
            assert await tags(each.mirror) == []
        first = await one.push_image("v1", LAYER)
        for each in (one, two, three):
            assert (await each.manifest("v1")).body == first
            assert (await each.blob(Digest.of(LAYER))).body == LAYER
            assert await tags(each.mirror) == ["v1"]
            assert await catalog(each.mirror) == ["corp/app"]
        second = await two.push_image("v1", b"another layer")
        await three.push_image("v2", LAYER, b"a third")
        for each in (one, two, three):
            assert (await each.manifest("v1")).body == second
            assert await tags(each.mirror) == ["v1", "v2"]
        assert (await three.ask("DELETE", "/v2/corp/app/manifests/v2")).status == 202
        for each in (one, two, three):
            assert (await each.manifest("v2")).status == 404
            assert await tags(each.mirror) == ["v1"]
        assert (await one.ask("DELETE", f"/v2/corp/app/manifests/{Digest.of(second)}")).status == 202
        for each in (one, two, three):
            assert (await each.manifest("v1")).status == 404
            assert (await each.manifest(Digest.of(second))).status == 404
            assert await tags(each.mirror) == []
        again = await two.push_image("v1", LAYER, b"a fourth")
        for each in (one, two, three):
            assert (await each.manifest("v1")).body == again


async def test_132_also_once_the_journals_name_the_changes(tmp_path: Path, bucket: MemoryBucket, clock: Clock) -> None:
    """As if some seconds had passed since each change; then a pull costs one request to the bucket."""
    async with bucket_replicas(tmp_path, bucket, clock) as mirrors:
        pushing = clients(mirrors)
        for number in range(6):
            client = pushing[number % 3]
            manifest = await client.push_image("v1", LAYER, b"number %d" % number)
            await settle(client.mirror)
            for each in pushing:
                assert (await each.manifest("v1")).body == manifest
                assert await tags(each.mirror) == ["v1"]
        before = len(bucket.log)
        assert (await pushing[0].manifest("v1")).body == manifest
        read = [key for verb, [key, *_] in bucket.log[before:] if verb == "read" and "corp" in key]
        assert read == ["journals/names/corp/app"]


async def settle(mirror: LiveMirror) -> None:
    """Let a replica say at once what it has written."""
    use = mirror.app.storage.bucket
    assert use
    assert use.journals
    assert await asyncio.to_thread(use.journals.settle_all, 0.0)


async def test_131_replicas_with_empty_disks_have_everything(
    tmp_path: Path, bucket: MemoryBucket, clock: Clock
) -> None:
    """They read it from the bucket, and what one pushes then, the others see."""
    async with bucket_replicas(tmp_path, bucket, clock) as mirrors:
        one, two, _ = clients(mirrors)
        first = await one.push_image("v1", LAYER)
        await two.push_image("v2", LAYER)
    for number in range(3):
        wipe(tmp_path / f"replica{number}")
    async with bucket_replicas(tmp_path, bucket, clock) as mirrors:
        for each in clients(mirrors):
            assert (await each.manifest("v1")).body == first
            assert (await each.blob(Digest.of(LAYER))).body == LAYER
            assert await tags(each.mirror) == ["v1", "v2"]
        one, _, three = clients(mirrors)
        third = await three.push_image("v1", b"another layer")
        assert (await one.manifest("v1")).body == third


async def test_many_lists_of_repositories_leave_the_threads_of_pulls_alone(
    tmp_path: Path, bucket: MemoryBucket, clock: Clock
) -> None:
    """Those who ask at the same time share what is asked of the bucket, and see what was there when they asked."""
    async with bucket_replicas(tmp_path, bucket, clock, 2) as mirrors:
        await PushClient(mirrors[0]).push_image("v1", LAYER)
        use = mirrors[1].app.storage.bucket
        assert use
        catch_up = catches_up(use)
        bucket.log.clear()
        await asyncio.gather(*(catch_up() for _ in range(200)))
        listings = [keys for verb, keys in bucket.log if verb == "list" and keys == ("journals/",)]
        # the replica follows the journals by itself, too
        assert len(listings) <= 3
        assert await catalog(mirrors[1]) == ["corp/app"]


async def test_131_a_copy_of_a_disk_is_another_replica(tmp_path: Path, bucket: MemoryBucket, clock: Clock) -> None:
    """Also on the machine of the first one: each sees that the other one writes."""
    async with bucket_replica(tmp_path, bucket, clock, 0) as mirror:
        await PushClient(mirror).push_image("v1", LAYER)
    (tmp_path / "replica1").mkdir()
    shutil.copytree(tmp_path / "replica0" / "store", tmp_path / "replica1" / "store", symlinks=True)
    async with bucket_replicas(tmp_path, bucket, clock, 2) as mirrors:
        one, two = clients(mirrors)
        for layer in (b"second", b"third"):
            pushed = await one.push_image("v1", layer)
            for each in (two, one):
                assert (await each.manifest("v1")).body == pushed
            await settle(mirrors[0])
            assert (await two.manifest("v1")).body == pushed


async def test_124_times_of_the_day_decide_nothing(tmp_path: Path, bucket: MemoryBucket, clock: Clock) -> None:
    """A replica whose clock is two minutes slow sees what another one pushes, and the other way round."""
    slow = Clock()
    slow.set(-120)
    async with bucket_replica(tmp_path, bucket, clock, 0) as right, bucket_replica(tmp_path, bucket, slow, 1) as wrong:
        one, two = clients([right, wrong])
        for number in range(4):
            client = (one, two)[number % 2]
            manifest = await client.push_image("v1", LAYER, b"number %d" % number)
            for each in (one, two):
                assert (await each.manifest("v1")).body == manifest
        assert (await two.ask("DELETE", "/v2/corp/app/manifests/v1")).status == 202
        assert (await one.manifest("v1")).status == 404


async def test_127_pulls_go_on_at_a_replica_that_is_cut_off_the_bucket(
    tmp_path: Path, bucket: MemoryBucket, clock: Clock
) -> None:
    """With what it saw last; it takes no pushes, and sees the others' changes once it reaches the bucket again."""
    own = CutOff(bucket)
    async with bucket_replica(tmp_path, bucket, clock, 0) as mirror, bucket_replica(tmp_path, own, clock, 1) as cut:
        one, two = clients([mirror, cut])
        first = await one.push_image("v1", LAYER)
        await settle(mirror)
        assert (await two.manifest("v1")).body == first
        assert (await two.blob(Digest.of(LAYER))).body == LAYER
        own.down = True
        clock.forward(60)
        second = await one.push_image("v1", b"another layer")
        for _ in range(2):
            got = await two.manifest("v1")
            assert (got.body, got.headers["Warning"][:3]) == (first, "299")
            assert "the bucket is unavailable" in got.headers["Warning"]
            assert got.headers["Cache-Status"] == "mirror; hit; detail=bucket-unavailable"
            assert (await two.blob(Digest.of(LAYER))).body == LAYER
            assert (await tags(cut)) == ["v1"]
            # another replica may have pushed it since
            assert (await two.manifest("v2")).status == 503
        refused = await two.ask("POST", two.uploads)
        if refused.status == 202:
            refused = await two.finish(refused.headers["Location"], Digest.of(b"new"), b"new")
        assert refused.status == 503
        own.down = False
        await reached(cut)
        assert (await two.manifest("v1")).body == second


async def test_127_a_push_elsewhere_takes_nothing_from_what_a_replica_can_answer(
    tmp_path: Path, bucket: MemoryBucket, clock: Clock
) -> None:
    """Images that it has served, also while they were being pushed, and also if others were pushed since."""
    own = CutOff(bucket)
    async with bucket_replica(tmp_path, bucket, clock, 0) as mirror, bucket_replica(tmp_path, own, clock, 1) as cut:
        one, two = clients([mirror, cut])
        pushed = [await one.push_image(f"v{number}", LAYER, b"number %d" % number) for number in range(2)]
        for number, manifest in enumerate(pushed):
            assert (await two.manifest(f"v{number}")).body == manifest
        await settle(mirror)
        await one.push_image("v2", LAYER, b"another")
        await settle(mirror)
        use = cut.app.storage.bucket
        assert use
        # what a replica does every few seconds
        await asyncio.to_thread(use.tree.catch_up)
        await asyncio.to_thread(use.tree.read_doubted, 100, 60.0)
        own.down = True
        clock.forward(60)
        for number, manifest in enumerate(pushed):
            got = await two.manifest(f"v{number}")
            assert (got.status, got.body) == (200, manifest)
            assert "the bucket is unavailable" in got.headers["Warning"]
        assert (await two.manifest("v2")).status == 503


async def test_the_log_says_once_that_the_journals_cannot_be_followed(
    tmp_path: Path, bucket: MemoryBucket, clock: Clock
) -> None:
    """However often it is tried, and for whatever reasons; and once that they can be again."""
    own = CutOff(bucket)
    async with bucket_replica(tmp_path, own, clock, 0) as mirror:
        use = mirror.app.storage.bucket
        assert use
        assert use.journals
        catch_up = catches_up(use)
        for _ in range(2):
            before = len(mirror.events("journals not followed"))
            again = len(mirror.events("journals followed again"))
            own.down = True
            for _ in range(3):
                await catch_up()
                use.journals.following.failed(BucketUnavailable("another reason"))
            own.down = False
            await catch_up()
            assert len(mirror.events("journals not followed")) == before + 1
            assert len(mirror.events("journals followed again")) == again + 1


async def reached(mirror: LiveMirror) -> None:
    """As if the bucket had not been asked for some seconds."""
    use = mirror.app.storage.bucket
    assert use
    assert use.journals
    await asyncio.to_thread(use.journals.look, "journals/operators")


class CutOff(MemoryBucket):
    """The same bucket, reached by another way, which breaks while `down`."""

    def __init__(self, bucket: MemoryBucket) -> None:
        super().__init__()
        self._lock, self._objects = bucket._lock, bucket._objects
        self._now = bucket._now


async def test_a_deletion_and_a_push_that_meet_leave_nothing_half(
    tmp_path: Path, bucket: MemoryBucket, clock: Clock
) -> None:
    """At two replicas, again and again: what is tagged in the end can be pulled whole at each of them."""
    async with bucket_replicas(tmp_path, bucket, clock, 2) as mirrors:
        one, two = clients(mirrors)
        for number in range(8):
            manifest = await one.push_image("v1", LAYER, b"layer %d" % number)
            digest = Digest.of(manifest)
            put, deleted = await asyncio.gather(
                one.put(manifest, "v2"), two.ask("DELETE", f"/v2/corp/app/manifests/{digest}")
            )
            assert put.status in (201, 404)
            assert deleted.status in (202, 404)
            for each in (one, two):
                listed = await tags(each.mirror)
                for tag in listed:
                    got = await each.manifest(tag)
                    assert (got.status, got.body) == (200, manifest)
                    assert (await each.blob(Digest.of(b"layer %d" % number))).status == 200
            if put.status == 201 and deleted.status == 404:
                assert (await two.manifest("v2")).body == manifest


async def test_referrers_are_seen_everywhere(tmp_path: Path, bucket: MemoryBucket, clock: Clock) -> None:
    """By the next request."""
    async with bucket_replicas(tmp_path, bucket, clock, 2) as mirrors:
        one, two = clients(mirrors)
        subject = await one.push_image("v1", LAYER)
        assert (await two.referrers(Digest.of(subject))).json["manifests"] == []
        attached = index(subject=descriptor(subject, OCI_MANIFEST))
        assert (await two.put(attached, "att")).status == 201
        for each in (one, two):
            found = (await each.referrers(Digest.of(subject))).json["manifests"]
            assert [entry["digest"] for entry in found] == [str(Digest.of(attached))]


async def test_132_a_freeze_at_one_replica_holds_at_all(tmp_path: Path, bucket: MemoryBucket, clock: Clock) -> None:
    """By the next pull and the next push; so does its end."""
    async with bucket_replicas(tmp_path, bucket, clock, 2) as mirrors:
        one, two = clients(mirrors)
        first = await one.push_image("v1", LAYER)
        second = await one.push_image("v1", b"another layer")
        for each in (one, two):
            assert (await each.manifest("v1")).body == second
        repo, freezes = Repo("corp", "app"), mirrors[0].app.storage.freezes
        for settles in (False, True):
            freeze = Freeze(repo, "v1", Digest.of(first), OCI_MANIFEST, len(first), "", 0.0)
            await asyncio.to_thread(freezes.put, freeze)
            if settles:
                await settle(mirrors[0])
            for each in (one, two):
                assert (await each.manifest("v1")).body == first
                assert (await each.put(second, "v1")).status == 403
            await asyncio.to_thread(freezes.drop, repo, "v1")
            if settles:
                await settle(mirrors[0])
            for each in (one, two):
                assert (await each.manifest("v1")).body == second


async def test_what_one_replica_has_deleted_makes_room_at_the_others(
    tmp_path: Path, bucket: MemoryBucket, clock: Clock
) -> None:
    """By the next push, although nobody has told the other one, which has counted what it was sent."""
    async with bucket_replicas(tmp_path, bucket, clock, 2, hosted={"quota": "150KB"}) as mirrors:
        one, two = clients(mirrors)
        first, second = noise(100_000, 1), noise(100_000, 2)
        await two.push_blob(first)
        assert (await one.ask("DELETE", f"/v2/corp/app/blobs/{Digest.of(first)}")).status == 202
        await two.push_blob(second)
        again = await two.ask("POST", f"/v2/corp/app/blobs/uploads/?digest={Digest.of(first)}", body=first)
        assert (again.status, again.code) == (403, "DENIED")

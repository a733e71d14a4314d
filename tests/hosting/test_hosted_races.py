"""Pushes, deletions and the collector at the same time: each at the exact point where it hurts most."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from mirror.errors import BlobReferenced, BlobUnknown, Denied, ManifestBlobUnknown, ManifestUnknown, StoreError
from mirror.hosting.pushing import ManifestPut
from mirror.oci.digest import Digest
from mirror.policy.hosted.push_checks import HostedRules, read_pushed
from mirror.policy.hosted_records import LinkState, QueuedBlob
from mirror.repository.hosted import HostedRepository, HostedVerbs
from tests.support.hooked import Hooked
from tests.support.hosted_world import OTHER, TEAM, Caller, HostedWorld, image, push, push_image, read_blob, upload

ALICE = Caller("user:alice", TEAM)
IMAGE = image(b"{}", b"layer")
LAYER = Digest.of(b"layer")


@pytest.fixture
def world() -> Iterator[HostedWorld]:
    """With ports at which something else can happen."""
    with HostedWorld() as world:
        world.catalog, world.records, world.blobs = Hooked(world.catalog), Hooked(world.records), Hooked(world.blobs)
        yield world


@pytest.fixture
def here(world: HostedWorld) -> HostedRepository:
    return world.open(TEAM)[0]


@pytest.fixture
def elsewhere(world: HostedWorld) -> HostedVerbs:
    """Another process, whose work blocks."""
    return world.verbs()


def _delete(verbs: HostedVerbs, *, keep: bool = True) -> Callable[[], None]:
    return lambda: verbs.deleting.delete_manifest(TEAM, Digest.of(IMAGE), "user:bob", keep=keep)


def _collect_link(world: HostedWorld) -> Callable[[], None]:
    """A collector that has found a link unnamed, and drops it by the version that it has seen."""
    seen = world.records.link(TEAM, LAYER)
    return lambda: world.records.drop_link(TEAM, LAYER, expect=seen.version)


async def _consistent(world: HostedWorld) -> None:
    """Whatever can be pulled is whole: no tag without its manifest, no manifest without its blobs."""
    [repository] = world.open(TEAM)
    for tag in (await repository.tags("", 100)).items:
        manifest = (await repository.manifest(tag)).read()
        for blob in manifest.blobs:
            (await repository.blob(blob.digest)).close()


# ------------------------------------------------------------------------------------------------ push and deletion


async def test_a_manifest_is_deleted_while_it_is_pushed_again(
    world: HostedWorld, here: HostedRepository, elsewhere: HostedVerbs
) -> None:
    """After its record was written: the tag that comes then is dropped by the deletion, or by the push that finds it
    gone.
    """
    await push_image(here, ALICE, "1", b"{}", b"layer")
    world.catalog.after("put_tag", _delete(elsewhere))
    with pytest.raises(ManifestUnknown, match="while it was pushed"):
        await push(here, IMAGE, ALICE, "2")
    assert (await here.tags("", 10)).items == ()
    await push(here, IMAGE, ALICE, "3")
    assert (await here.tags("", 10)).items == ("3",)
    await _consistent(world)


async def test_a_tag_comes_while_its_manifest_is_deleted(world: HostedWorld, here: HostedRepository) -> None:
    """After the tags were listed: it goes with the others, and an undelete brings back both."""
    pushed = await push_image(here, ALICE, "1", b"{}", b"layer")
    other = world.verbs()

    def tag() -> None:
        record = world.catalog.get_tag(TEAM, "1")
        other.pushing._placing.put_tag(TEAM, replace(record, tag="late"), may_overwrite=True)

    world.records.after("put_deleted_manifest", tag)
    await here.delete_manifest(pushed.digest, ALICE)
    assert (await here.tags("", 10)).items == ()
    await here.undelete(pushed.digest, ALICE)
    assert (await here.tags("", 10)).items == ("1", "late")


async def test_a_manifest_is_pushed_again_while_it_is_deleted(world: HostedWorld, here: HostedRepository) -> None:
    """Before its record is dropped: the deletion begins anew, and takes the new tags, too."""
    pushed = await push_image(here, ALICE, "1", b"{}", b"layer")
    other = world.verbs()
    world.catalog.before("drop_manifest", lambda: _push_again(world, other, "2"))
    await here.delete_manifest(pushed.digest, ALICE)
    assert (await here.tags("", 10)).items == ()
    assert world.records.deleted_manifest(TEAM, pushed.digest).record.tags == ("1", "2")


def _push_again(world: HostedWorld, verbs: HostedVerbs, tag: str, *, may_overwrite: bool = True) -> None:
    put = ManifestPut(read_pushed(IMAGE, None, tag), tag)
    world.clock.time += 1
    verbs.pushing.put(TEAM, HostedRules(), put, "user:bob", may_overwrite=may_overwrite)


async def test_a_deletion_dies_before_it_drops_the_tags(world: HostedWorld, here: HostedRepository) -> None:
    """They count as absent, and do not come back when the manifest is pushed again."""
    pushed = await push_image(here, ALICE, "1", b"{}", b"layer")

    def die() -> None:
        raise KeyboardInterrupt

    world.catalog.after("drop_manifest", die)
    with pytest.raises(KeyboardInterrupt):
        world.verbs().deleting.delete_manifest(TEAM, pushed.digest, "user:bob", keep=False)
    assert world.catalog.tags(TEAM) == ["1"]
    world.clock.time += 60
    for repository in (here, *world.open(TEAM)):
        with pytest.raises(ManifestUnknown):
            await repository.manifest("1")
        assert (await repository.tags("", 10)).items == ()
    await push(here, IMAGE, ALICE, "2")
    assert (await here.tags("", 10)).items == ("2",)
    assert world.records.deleted_manifest(TEAM, pushed.digest) is None


async def test_two_pushes_bring_a_deleted_manifest_back(world: HostedWorld, here: HostedRepository) -> None:
    """The one that clears up after the deletion does not drop the tag of the other, which has the same name."""
    pushed = await push_image(here, ALICE, "1", b"{}", b"layer")
    other = world.verbs()
    world.catalog.fail("drop_tag", OSError("the process is killed"))
    with pytest.raises(OSError, match="killed"):
        await here.delete_manifest(pushed.digest, ALICE)
    world.catalog.fail("drop_tag", None)
    # the stale tag is about to be dropped, when another push of the same manifest writes it
    world.catalog.before("drop_tag", lambda: _push_again(world, other, "1"))
    await push(here, IMAGE, ALICE, "2")
    assert world.catalog.pending == []
    assert (await here.tags("", 10)).items == ("1", "2")
    await _consistent(world)


async def test_two_new_tags_race(world: HostedWorld, here: HostedRepository) -> None:
    """One comes first; the other would overwrite it, and may not. The history has no move that was not made."""
    await push_image(here, ALICE, "mine", b"{}", b"layer")
    await upload(here, b"other", ALICE)
    bob = Caller("user:bob", TEAM, overwrite=False)
    world.catalog.before("put_tag", lambda: _push_again(world, world.verbs(), "1", may_overwrite=False))
    with pytest.raises(Denied):
        await push(here, image(b"{}", b"other"), bob, "1")
    assert (await here.manifest("1")).digest == Digest.of(IMAGE)
    assert [each.digest for each in world.catalog.get_history(TEAM, "1")] == [Digest.of(IMAGE)]


# ------------------------------------------------------------------------------------------- push and the collector


@pytest.mark.parametrize("point", ["before put_manifest", "after put_manifest"])
async def test_95_a_link_is_collected_while_a_manifest_is_pushed(
    world: HostedWorld, here: HostedRepository, point: str
) -> None:
    """Row 95: by a collector whose walk began before: the push is refused, and succeeds once the layer is back."""
    for blob in (b"{}", b"layer"):
        await upload(here, blob, ALICE)
    when, _, call = point.partition(" ")
    getattr(world.catalog, when)(call, _collect_link(world))
    with pytest.raises(ManifestBlobUnknown) as caught:
        await push(here, IMAGE, ALICE)
    assert caught.value.digests == (str(LAYER),)
    assert world.catalog.get_manifest(TEAM, Digest.of(IMAGE)) is None
    with pytest.raises(ManifestUnknown):
        await here.manifest("1")
    await upload(here, b"layer", ALICE)
    await push(here, IMAGE, ALICE)
    await _consistent(world)


async def test_a_link_that_waits_is_taken_out_of_the_queue(world: HostedWorld, here: HostedRepository) -> None:
    """Whether it was queued before the push or in the middle of it; a drop by the old version then fails."""
    for blob in (b"{}", b"layer"):
        await upload(here, blob, ALICE)

    def queue() -> None:
        found = world.records.link(TEAM, LAYER)
        world.records.put_link(TEAM, replace(found.record, queued_at=world.clock()), expect=found.version)

    queue()
    waiting = world.records.link(TEAM, LAYER)
    world.catalog.after("put_manifest", queue)
    world.clock.time += 1
    await push(here, IMAGE, ALICE)
    found = world.records.link(TEAM, LAYER)
    assert found.record.queued_at is None
    assert found.version != waiting.version


async def test_bytes_are_collected_while_a_link_is_made(world: HostedWorld, here: HostedRepository) -> None:
    """A collector that was faster than the second look: the upload is not acknowledged, and no link stays."""

    def collect() -> None:
        version = world.blobs.queue(QueuedBlob(LAYER, world.clock()))
        world.blobs.collect(LAYER, version)

    world.records.after("put_link", collect)
    with pytest.raises(StoreError, match="collected"):
        await upload(here, b"layer", ALICE)
    assert world.records.link(TEAM, LAYER) is None
    await upload(here, b"layer", ALICE)
    assert await read_blob(here, LAYER) == b"layer"


async def test_queued_bytes_are_rescued_by_whoever_links_them(world: HostedWorld, here: HostedRepository) -> None:
    """An upload, and a HEAD of a pusher whose link waits: the collector finds another version."""
    await upload(here, b"layer", ALICE)
    version = world.blobs.queue(QueuedBlob(LAYER, world.clock()))
    await upload(here, b"layer", ALICE)
    assert world.blobs.queued(LAYER) is None
    version = world.blobs.queue(QueuedBlob(LAYER, world.clock()))
    world.clock.time += 80_000
    assert (await here.stat_for_push(LAYER, ALICE)).size == 5
    with pytest.raises(Exception, match="changed"):
        world.blobs.collect(LAYER, version)
    assert world.records.link(TEAM, LAYER).record.since == world.clock()


async def test_96_a_mount_while_the_source_is_deleted(world: HostedWorld, here: HostedRepository) -> None:
    """Row 96: linked, or the client must upload: never a link without bytes."""
    await upload(here, b"layer", ALICE)
    [other] = world.open(OTHER)

    def collect() -> None:
        world.records.drop_link(TEAM, LAYER)
        world.blobs.collect(LAYER, world.blobs.queue(QueuedBlob(LAYER, world.clock())))

    world.records.after("put_link", collect)
    assert not await other.mount(LAYER, TEAM, Caller("user:bob", TEAM, OTHER))
    assert world.records.link(OTHER, LAYER) is None


async def test_an_undelete_while_a_link_is_collected(world: HostedWorld, here: HostedRepository) -> None:
    """It is refused and says what is gone; nothing of it can be pulled."""
    pushed = await push_image(here, ALICE, "1", b"{}", b"layer")
    await here.delete_manifest(pushed.digest, ALICE)
    world.catalog.after("put_manifest", _collect_link(world))
    with pytest.raises(ManifestBlobUnknown):
        await here.undelete(pushed.digest, ALICE)
    with pytest.raises(ManifestUnknown):
        await here.manifest("1")
    await upload(here, b"layer", ALICE)
    await here.undelete(pushed.digest, ALICE)
    await _consistent(world)


# -------------------------------------------------------------------------------------- push and deletion of a blob


async def test_a_blob_is_deleted_while_a_manifest_that_names_it_is_pushed(
    world: HostedWorld, here: HostedRepository
) -> None:
    """One of the two is refused: the deletion, if the manifest came before its second look."""
    for blob in (b"{}", b"layer"):
        await upload(here, blob, ALICE)
    other = world.verbs()
    world.records.before("put_link", lambda: _push_again(world, other, "1"))
    with pytest.raises(BlobReferenced):
        await here.delete_blob(LAYER, ALICE)
    assert world.records.link(TEAM, LAYER).record.state is LinkState.LINKED
    await _consistent(world)


async def test_a_manifest_is_pushed_while_a_blob_that_it_names_is_deleted(
    world: HostedWorld, here: HostedRepository, elsewhere: HostedVerbs
) -> None:
    """Or the push, if the deletion was finished before its second look."""
    for blob in (b"{}", b"layer"):
        await upload(here, blob, ALICE)
    world.catalog.before("put_manifest", lambda: elsewhere.deleting.delete_blob(TEAM, LAYER, "user:bob"))
    with pytest.raises(ManifestBlobUnknown):
        await push(here, IMAGE, ALICE)
    with pytest.raises(BlobUnknown):
        await here.blob(LAYER)
    with pytest.raises(ManifestUnknown):
        await here.manifest("1")


# ---------------------------------------------------------------------------------------------------- other workers


async def test_a_reader_that_began_before_a_change_is_not_believed_after_it(
    world: HostedWorld, here: HostedRepository
) -> None:
    """A record that was read while it was deleted answers that request, and none that comes later."""
    pushed = await push_image(here, ALICE, "1", b"{}", b"layer")
    [reader] = world.open(TEAM)
    world.catalog.after("get_tag", lambda: world.verbs().deleting.delete_tag(TEAM, "1", "user:bob", keep=False))
    # the tag was read before it was deleted, the manifest afterwards, which is still there
    assert (await reader.manifest("1")).digest == pushed.digest
    with pytest.raises(ManifestUnknown):
        await reader.manifest("1")


async def test_a_process_dies_between_a_change_and_its_count(world: HostedWorld, here: HostedRepository) -> None:
    """Others believe what they remember for some seconds, not for ever."""
    await push_image(here, ALICE, "1", b"{}", b"layer")
    assert (await here.manifest("1")).size == len(IMAGE)
    world.catalog.drop_tag(TEAM, "1")
    assert (await here.manifest("1")).size == len(IMAGE)
    world.clock.time += 10
    with pytest.raises(ManifestUnknown):
        await here.manifest("1")


async def test_a_count_that_cannot_be_read_is_not_remembered(world: HostedWorld, here: HostedRepository) -> None:
    """Every request then reads the records."""
    await push_image(here, ALICE, "1", b"{}", b"layer")
    world.records.changes = lambda repo: -1
    [reader] = world.open(TEAM)
    await reader.manifest("1")
    world.catalog.drop_tag(TEAM, "1")
    with pytest.raises(ManifestUnknown):
        await reader.manifest("1")

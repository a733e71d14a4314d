"""What is deleted at once: the manifests and links of a repository, and the bytes that no other one has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mirror.errors import BlobUnknown, StoreError
from mirror.hosting.operator_deletions import OperatorDeletions
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.policy.hosted_records import LinkState
from mirror.policy.records import ManifestRecord
from tests.support.hooked import Hooked
from tests.support.hosted_world import TEAM, Caller, HostedWorld, image, push, push_image, read_blob

ALICE = Caller("user:alice", TEAM)


@pytest.fixture
def world() -> Iterator[HostedWorld]:
    with HostedWorld() as world:
        world.contents, world.catalog = Hooked(world.contents), Hooked(world.catalog)
        yield world


def _deletions(world: HostedWorld) -> OperatorDeletions:
    verbs = world.verbs()
    return OperatorDeletions(verbs.parts, verbs.deleting, ["corp"])


def _layers(count: int) -> list[bytes]:
    return [f"layer {number}".encode() for number in range(count)]


async def _reads(world: HostedWorld, layers: int) -> int:
    """How often content is read to erase an image of so many layers, in a repository with ten more."""
    [repository] = world.open(TEAM)
    pushed = await push_image(repository, ALICE, "1", b"{}", *_layers(layers))
    for number in range(10):
        await push_image(repository, ALICE, f"other-{number}", b"{}", f"other {number}".encode())
    deletions = _deletions(world)
    plan = deletions.plan_image(TEAM, pushed.digest)
    before = world.contents.calls["read"]
    erased = deletions.erase(plan, "user:root")
    assert set(erased.blobs) == {pushed.digest, *map(Digest.of, _layers(layers))}
    return int(world.contents.calls["read"] - before)


async def test_each_manifest_is_read_as_often_for_many_layers_as_for_one() -> None:
    """In a large repository, the number of layers does not multiply the work."""
    counts = []
    for layers in (1, 50):
        with HostedWorld() as world:
            world.contents = Hooked(world.contents)
            counts.append(await _reads(world, layers))
    assert counts[0] == counts[1] > 0


async def test_what_a_manifest_names_that_comes_meanwhile_stays(world: HostedWorld) -> None:
    """It may have come before the link was removed: then the link is put back."""
    [repository] = world.open(TEAM)
    pushed = await push_image(repository, ALICE, "1", b"{}", b"layer", b"loose")
    await repository.delete_manifest(pushed.digest, ALICE)
    late = image(b"{}", b"layer")

    def arrive() -> None:
        world.blobs.put(Digest.of(late), late)
        world.catalog.put_manifest(TEAM, ManifestRecord(Digest.of(late), OCI_MANIFEST, len(late), 1.0))

    # after the first look at the manifests, so that only the second one can meet it
    world.catalog.after("manifest_digests", arrive)
    named = [Digest.of(b"{}"), Digest.of(b"layer"), Digest.of(b"loose")]
    world.verbs().deleting.delete_blobs(TEAM, named, "user:root")
    states = [world.records.link(TEAM, digest).record.state for digest in named]
    assert states == [LinkState.LINKED, LinkState.LINKED, LinkState.REMOVED]
    assert await read_blob(repository, Digest.of(b"layer")) == b"layer"


def test_what_is_gone_counts_no_more_if_the_rest_fails(world: HostedWorld) -> None:
    """The disk fails between two of several links."""
    world.records = Hooked(world.records)
    verbs, blobs = world.verbs(), [Digest.of(each) for each in _layers(2)]
    for digest, layer in zip(blobs, _layers(2), strict=True):
        world.blobs.put(digest, layer)
        verbs.links.make(TEAM, digest, len(layer))
    calls_left = 3

    def written() -> None:
        nonlocal calls_left
        calls_left -= 1
        if calls_left:
            world.records.after("put_link", written)
        else:
            world.records.fail("put_link", StoreError("the disk cannot be written"))

    # two links wait, and one has become a mark
    world.records.after("put_link", written)
    with pytest.raises(StoreError):
        verbs.deleting.delete_blobs(TEAM, blobs, "user:root")
    states = {digest: world.records.link(TEAM, digest).record.state for digest in blobs}
    assert set(states.values()) == {LinkState.LINKED, LinkState.REMOVED}
    assert {digest for _, digest in world.accounts.noted} == {
        digest for digest, state in states.items() if state is LinkState.LINKED
    }


async def test_a_manifest_that_cannot_be_read_keeps_all_links(world: HostedWorld) -> None:
    """It may name any of them."""
    [repository] = world.open(TEAM)
    await push_image(repository, ALICE, "1", b"{}", b"layer")
    world.contents.fail("stat", StoreError("the disk cannot be read"))
    with pytest.raises(StoreError):
        world.verbs().deleting.delete_blobs(TEAM, [Digest.of(b"layer")], "user:root")
    world.contents.fail("stat", None)
    assert await read_blob(repository, Digest.of(b"layer")) == b"layer"
    await repository.delete_manifest(Digest.of(image(b"{}", b"layer")), ALICE)
    world.verbs().deleting.delete_blobs(TEAM, [Digest.of(b"layer"), Digest.of(b"unknown")], "user:root")
    with pytest.raises(BlobUnknown):
        await repository.blob(Digest.of(b"layer"))
    await push_image(repository, ALICE, "1", b"{}", b"layer")
    await push(repository, image(b"{}", b"layer"), ALICE, "2")

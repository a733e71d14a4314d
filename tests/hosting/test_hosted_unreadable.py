"""What cannot be read is never taken for absent: 503, and nothing moves, nothing is lost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from mirror.errors import BlobUnknown, ManifestUnknown, RecordDamaged, StoreError, answer_for
from mirror.oci.digest import Digest
from mirror.repository.hosted import HostedRepository
from tests.support.hooked import Hooked
from tests.support.hosted_world import (
    OTHER,
    TEAM,
    Caller,
    HostedWorld,
    descriptor,
    image,
    index,
    manifest,
    push,
    push_image,
    read_blob,
    upload,
)

ALICE = Caller("user:alice", TEAM)
BOB = Caller("user:bob", TEAM, overwrite=False)
IMAGE = image(b"{}", b"layer")
LAYER = Digest.of(b"layer")

Verb = Callable[[HostedRepository], Awaitable[Any]]


@pytest.fixture
def world() -> Iterator[HostedWorld]:
    with HostedWorld() as world:
        world.catalog, world.records, world.blobs = Hooked(world.catalog), Hooked(world.records), Hooked(world.blobs)
        world.contents = Hooked(world.contents)
        world.freezes = Hooked(world.freezes)  # type: ignore[assignment]
        yield world


async def _push(repository: HostedRepository) -> object:
    return await push(repository, image(b"{}", b"other"), ALICE, "2")


async def _overwrite(repository: HostedRepository) -> object:
    """By a caller who may not: that must not depend on whether the disk can be read."""
    return await push(repository, image(b"{}", b"other"), BOB, "1")


VERBS: dict[str, Verb] = {
    "GET a tag": lambda it: it.manifest("1"),
    "GET a manifest": lambda it: it.manifest(Digest.of(IMAGE)),
    "GET a blob": lambda it: it.blob(LAYER),
    "HEAD of a pusher": lambda it: it.stat_for_push(LAYER, ALICE),
    "GET of a pusher": lambda it: it.blob_for_push(LAYER, ALICE),
    "tags": lambda it: it.tags("", 10),
    "referrers": lambda it: it.referrers(Digest.of(IMAGE)),
    "PUT a manifest": _push,
    "PUT over a tag": _overwrite,
    "PUT the same": lambda it: push(it, IMAGE, ALICE, "1"),
    "PUT an index": lambda it: push(it, index(IMAGE), ALICE, "2"),
    "DELETE a tag": lambda it: it.delete_tag("1", ALICE),
    "DELETE a manifest": lambda it: it.delete_manifest(Digest.of(IMAGE), ALICE),
    "DELETE a blob": lambda it: it.delete_blob(LAYER, ALICE),
    "undelete a tag": lambda it: it.undelete("old", ALICE),
    "undelete a manifest": lambda it: it.undelete(Digest.of(image(b"{}", b"gone")), ALICE),
}


@pytest.mark.parametrize(
    ("port", "call", "verbs"),
    [
        ("catalog", "tag", ["PUT a manifest", "PUT the same", "DELETE a tag", "undelete a tag"]),
        ("catalog", "get_tag", ["GET a tag", "PUT a manifest", "PUT over a tag", "PUT the same", "referrers"]),
        ("catalog", "manifest", ["GET a tag", "GET a manifest", "DELETE a manifest"]),
        (
            "catalog",
            "get_manifest",
            [
                *("referrers", "PUT a manifest", "PUT over a tag", "PUT the same", "PUT an index"),
                *("DELETE a tag", "undelete a tag", "undelete a manifest"),
            ],
        ),
        ("catalog", "tags", ["tags", "DELETE a manifest"]),
        ("catalog", "manifest_digests", ["DELETE a blob"]),
        (
            "records",
            "link",
            [
                *("GET a blob", "HEAD of a pusher", "GET of a pusher", "PUT a manifest", "PUT the same"),
                *("DELETE a blob", "undelete a manifest"),
            ],
        ),
        ("records", "referrer", ["referrers"]),
        ("records", "referrer_digests", ["referrers"]),
        ("records", "deleted_manifest", ["PUT a manifest", "undelete a manifest"]),
        ("records", "deleted_manifests", ["tags"]),
        ("records", "deleted_tag", ["undelete a tag"]),
        ("blobs", "hosted", ["HEAD of a pusher", "PUT a manifest", "PUT the same", "undelete a manifest"]),
        ("contents", "open", ["GET a blob", "GET of a pusher"]),
        ("contents", "stat", ["GET a tag", "GET a manifest", "DELETE a blob", "undelete a manifest"]),
        ("freezes", "get", ["GET a tag", "PUT a manifest", "PUT over a tag", "DELETE a tag", "DELETE a manifest"]),
    ],
)
async def test_102_an_unreadable_record_is_503(world: HostedWorld, port: str, call: str, verbs: list[str]) -> None:
    """Row 102, for each kind of record and each verb that reads it: afterwards everything is as before."""
    [repository] = world.open(TEAM)
    await push_image(repository, ALICE, "1", b"{}", b"layer")
    gone = await push_image(repository, ALICE, "gone", b"{}", b"gone")
    await push(repository, IMAGE, ALICE, "old")
    await repository.delete_tag("old", ALICE)
    signature = manifest(config=descriptor(b"{}"), layers=[], subject=descriptor(IMAGE))
    await push(repository, signature, ALICE, Digest.of(signature))
    await repository.delete_manifest(gone.digest, ALICE)
    await upload(repository, b"other", ALICE)
    for name in verbs:
        [fresh] = world.open(TEAM)
        getattr(world, port).fail(call, StoreError("the disk cannot be read"))
        with pytest.raises(StoreError) as caught:
            await VERBS[name](fresh)
        assert answer_for(caught.value).status == 503, name
        getattr(world, port).fail(call, None)
        [fresh] = world.open(TEAM)
        assert (await fresh.manifest("1")).digest == Digest.of(IMAGE), name
        assert await read_blob(fresh, LAYER) == b"layer", name
    await repository.undelete(gone.digest, ALICE)
    assert (await repository.manifest(gone.digest)).digest == gone.digest


async def test_a_source_that_cannot_be_read_is_no_answer(world: HostedWorld) -> None:
    """503, because the caller may have a right to the blob."""
    team, other = world.open(TEAM, OTHER)
    await push_image(team, ALICE, "1", b"{}", b"layer")
    bob = Caller("user:bob", TEAM, OTHER)
    world.contents.fail("stat", StoreError("the disk cannot be read"))
    with pytest.raises(StoreError):
        await other.stat_for_push(LAYER, bob)
    with pytest.raises(StoreError):
        await other.mount(LAYER, TEAM, bob)


async def test_a_damaged_tag_can_be_deleted(world: HostedWorld) -> None:
    """It cannot be moved, since nobody can say whether that would overwrite something; deleting it repairs that."""
    [repository] = world.open(TEAM)
    await push_image(repository, ALICE, "1", b"{}", b"layer")
    version = world.catalog.tag(TEAM, "1").version
    world.catalog.fail("tag", RecordDamaged("the record is damaged", version))
    with pytest.raises(RecordDamaged):
        await push(repository, IMAGE, ALICE, "1")
    await repository.delete_tag("1", ALICE)
    world.catalog.fail("tag", None)
    with pytest.raises(ManifestUnknown):
        await repository.manifest("1")


async def test_damaged_content_is_unknown_until_it_is_pushed_again(world: HostedWorld) -> None:
    """To GET, HEAD and the check of a manifest: so clients push it again, which repairs it."""
    [repository] = world.open(TEAM)
    await push_image(repository, ALICE, "1", b"{}", b"layer")
    world.blobs.names.damage(LAYER, b"lay")
    for ask in (repository.blob(LAYER), repository.stat_blob(LAYER), repository.stat_for_push(LAYER, ALICE)):
        with pytest.raises(BlobUnknown):
            await ask
    await upload(repository, b"layer", ALICE)
    assert await read_blob(repository, LAYER) == b"layer"
    world.blobs.names.damage(Digest.of(IMAGE), b"{}")
    [fresh] = world.open(TEAM)
    with pytest.raises(ManifestUnknown):
        await fresh.manifest("1")
    await push(fresh, IMAGE, ALICE, "1")
    assert (await fresh.manifest("1")).content == IMAGE


async def test_a_failure_in_the_middle_of_a_push_is_seen_by_all(world: HostedWorld) -> None:
    """The tag has moved, but is not durable: the client is told that it failed, and every worker reads the record."""
    here, there = world.open(TEAM)[0], world.open(TEAM)[0]
    await push_image(here, ALICE, "1", b"{}", b"layer")
    await upload(here, b"other", ALICE)
    await there.manifest("1")
    world.catalog.fail("flush", StoreError("the disk does not sync"))
    with pytest.raises(StoreError):
        await push(here, image(b"{}", b"other"), ALICE, "1")
    assert (await there.manifest("1")).content == image(b"{}", b"other")

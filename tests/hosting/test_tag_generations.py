"""The generation of a tag: what orders all that happens to it, and who moved it last."""

from __future__ import annotations

import pytest

from mirror.policy.records import TagRecord
from mirror.repository.hosted import HostedRepository
from tests.support.hosted_world import TEAM, Caller, HostedWorld, image, push, push_image, upload

ALICE, BOB = Caller("user:alice", TEAM), Caller("user:bob", TEAM)
IMAGE, OTHER = image(b"{}", b"layer"), image(b"{}", b"other")


@pytest.fixture
async def here(world: HostedWorld) -> HostedRepository:
    """`1` points to an image, pushed by alice; the layers of another one are there."""
    [repository] = world.open(TEAM)
    await push_image(repository, ALICE, "1", b"{}", b"layer")
    await upload(repository, b"other", ALICE)
    return repository


def _tag(world: HostedWorld) -> TagRecord:
    record: TagRecord = world.catalog.get_tag(TEAM, "1")
    return record


async def test_each_move_raises_it(world: HostedWorld, here: HostedRepository) -> None:
    """A push of the same image does not, and does not change who moved the tag; two moves may be at one moment."""
    first = _tag(world)
    await push(here, IMAGE, BOB, "1")
    assert (_tag(world).generation, _tag(world).by) == (first.generation, "user:alice")
    await push(here, OTHER, BOB, "1")
    second = _tag(world)
    await push(here, IMAGE, ALICE, "1")
    assert first.generation < second.generation < _tag(world).generation
    assert (first.by, second.by, _tag(world).by) == ("user:alice", "user:bob", "user:alice")


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("whole", [True, False], ids=["image", "tag"])
async def test_it_survives_a_deletion(world: HostedWorld, here: HostedRepository, keep: bool, whole: bool) -> None:
    """Also if nothing of the deletion is left, and the clock was set back meanwhile."""
    before, deleting = _tag(world), world.verbs().deleting
    if whole:
        deleting.delete_manifest(TEAM, before.digest, "user:alice", keep=keep)
    else:
        deleting.delete_tag(TEAM, "1", "user:alice", keep=keep)
    deleted = world.records.deleted_tag(TEAM, "1")
    world.clock.time -= 60
    [later] = world.open(TEAM)
    await push_image(later, BOB, "1", b"{}", b"layer")
    assert _tag(world).generation > (deleted.record.generation if deleted else before.generation)
    assert _tag(world).by == "user:bob"


async def test_an_undelete_is_a_move(world: HostedWorld, here: HostedRepository) -> None:
    """By whom it was undeleted, of a tag and of an image."""
    before = _tag(world)
    await here.delete_tag("1", ALICE)
    await here.undelete("1", BOB)
    again = _tag(world)
    world.clock.time += 1
    await here.delete_manifest(before.digest, ALICE)
    await here.undelete(before.digest, BOB)
    assert before.generation < again.generation < _tag(world).generation
    assert (again.by, _tag(world).by) == ("user:bob", "user:bob")

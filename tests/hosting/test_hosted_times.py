"""When a hosted tag was moved, and when something was undeleted: retention reads both."""

from __future__ import annotations

from mirror.oci.reference import Repo
from mirror.policy.records import TagRecord
from mirror.repository.hosted import HostedRepository
from tests.support.hosted_world import Caller, HostedWorld, push, push_image

_APP = Repo("corp", "team/app")


def _tag(world: HostedWorld) -> TagRecord:
    found = world.catalog.get_tag(_APP, "v1")
    assert isinstance(found, TagRecord)
    return found


async def _pushed(world: HostedWorld) -> tuple[HostedRepository, Caller]:
    [repository] = world.open(_APP)
    caller = Caller("user:ann")
    await push_image(repository, caller, "v1", b"config", b"layer")
    return repository, caller


async def test_a_push_of_the_same_image_moves_no_tag(world: HostedWorld) -> None:
    """It renews the record, but not since when the tag points there; another image does."""
    repository, caller = await _pushed(world)
    moved_at = _tag(world).tagged_at
    world.clock.time += 10
    await push_image(repository, caller, "v1", b"config", b"layer")
    again = _tag(world)
    assert (again.tagged_at, again.fetched_at) == (moved_at, moved_at + 10)
    await push_image(repository, caller, "v1", b"config", b"other")
    assert _tag(world).tagged_at == moved_at + 10


async def test_a_tag_that_was_deleted_and_pushed_again_is_new(world: HostedWorld) -> None:
    """Whatever its history says."""
    repository, caller = await _pushed(world)
    await repository.delete_tag("v1", caller)
    world.clock.time += 10
    await push_image(repository, caller, "v1", b"config", b"layer")
    assert (_tag(world).tagged_at, _tag(world).restored_at) == (world.clock(), None)


async def test_what_was_undeleted_says_so(world: HostedWorld) -> None:
    """Until it is pushed again; its date of push stays the old one."""
    repository, caller = await _pushed(world)
    digest, pushed_at = _tag(world).digest, world.clock()
    await repository.delete_manifest(digest, caller)
    world.clock.time += 10
    await repository.undelete(digest, caller)
    record = world.catalog.get_manifest(_APP, digest)
    assert (record.fetched_at, record.restored_at) == (pushed_at, pushed_at + 10)
    assert (_tag(world).tagged_at, _tag(world).restored_at) == (pushed_at + 10, pushed_at + 10)
    world.clock.time += 10
    await push(repository, world.contents.read(digest, 10_000), caller, "v1")
    assert world.catalog.get_manifest(_APP, digest).restored_at is None
    assert _tag(world).restored_at is None


async def test_an_undeleted_tag_says_so(world: HostedWorld) -> None:
    """Also if its manifest was never deleted."""
    repository, caller = await _pushed(world)
    await repository.delete_tag("v1", caller)
    world.clock.time += 10
    await repository.undelete("v1", caller)
    assert _tag(world).restored_at == world.clock()

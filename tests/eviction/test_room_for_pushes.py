"""How room for hosted content is made: the cache makes way for it."""

from __future__ import annotations

import pytest

from mirror.errors import NoRoomForPush, StoreError
from mirror.eviction.reconcile import MARK
from tests.support.eviction_world import World


async def full_world(blobs: int = 8) -> World:
    """A disk of 1,000 bytes, of which as many cached blobs take 100 each."""
    world = World(capacity=100_000, disk=1000)
    await world.index.index.set_marker(MARK)
    for number in range(blobs):
        await world.add(number)
    return world


async def test_a_push_for_which_there_is_room_evicts_nothing() -> None:
    """Whatever the cache has."""
    world = await full_world()
    before = world.present()
    await world.space.make_room_for_push(200)
    assert world.present() == before


async def test_a_push_evicts_what_is_cached() -> None:
    """The least recently used first, and no more than needed."""
    world = await full_world(0)
    digests = [await world.add(number) for number in range(8)]
    await world.space.make_room_for_push(350)
    assert world.present() == set(digests[2:])


async def test_a_claimed_size_evicts_no_more_than_comes_next() -> None:
    """A client claims a size without sending a byte; what is cached makes way as the bytes come."""
    world = await full_world(0)
    digests = [await world.add(number) for number in range(8)]
    await world.space.make_room_for_push(900, at_once=250)
    assert world.present() == set(digests[1:])
    await world.space.make_room_for_push(900, at_once=250)
    assert world.present() == set(digests[1:])


async def test_a_claimed_size_that_can_never_fit_evicts_nothing() -> None:
    """It is refused before the client sends anything."""
    world = await full_world()
    before = world.present()
    with pytest.raises(NoRoomForPush, match=r"no room for 1\.2 kB: 200 B are missing even if everything"):
        await world.space.make_room_for_push(1200, at_once=250)
    assert world.present() == before


async def test_blobs_with_a_hosted_name_free_nothing() -> None:
    """They are dropped in their turn, and others after them, until the disk has the room."""
    world = await full_world(0)
    digests = [await world.add(number) for number in range(8)]
    world.store.hosted |= set(digests[:3])
    await world.space.make_room_for_push(300)
    assert world.store.free()[0] >= 300
    assert world.present() == set(digests[4:])


async def test_a_push_that_finds_only_hosted_blobs_is_refused() -> None:
    """The eviction ends, and does not take for free what it has not freed."""
    world = await full_world()
    world.store.hosted |= world.present()
    with pytest.raises(NoRoomForPush, match="no room for 300 B: 100 B are missing"):
        await world.space.make_room_for_push(300)


async def test_a_push_that_finds_only_pinned_images_is_refused() -> None:
    """Nothing is dropped in vain."""
    world = await full_world()
    before = world.present()
    world.pinned |= before
    with pytest.raises(NoRoomForPush):
        await world.space.make_room_for_push(300)
    assert world.present() == before


async def test_a_push_is_not_refused_for_what_cannot_be_told() -> None:
    """If it is not known what must stay, that is another error."""
    world = await full_world()

    def unreadable(_now: float) -> set[object]:
        raise StoreError("pins cannot be read")

    with pytest.raises(StoreError, match="pins cannot be read"):
        await world.another(pinned=unreadable).space.make_room_for_push(300)


async def test_the_cache_makes_way_for_hosted_content() -> None:
    """As the disk fills up with it, the rounds evict more, and end."""
    world = await full_world()
    world.store.hosted_bytes = 190
    await world.rounds.tick()
    free, _ = world.store.free()
    present = 100 * len(world.present())
    assert present <= 0.8 * (present + free)
    assert (await world.port.usage()).bytes == present


@pytest.mark.parametrize("with_index", [True, False])
async def test_rounds_end_although_nothing_is_freed(with_index: bool) -> None:
    """All that is cached has a hosted name as well: it is dropped down to the low water, and no round finds more."""
    world = await full_world()
    world.store.hosted |= world.present()
    world.store.hosted_bytes = 190
    world.index.down = not with_index
    for _ in range(10):
        await world.rounds.tick()
    left = len(world.present())
    await world.rounds.tick()
    assert len(world.present()) == left
    assert world.store.free()[0] == 10

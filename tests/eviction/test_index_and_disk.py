"""Evictions while index and disk do not agree, or what must stay cannot be read."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from mirror.errors import StoreError, StoreFull
from mirror.eviction.reconcile import INCOMPLETE, MARK
from mirror.oci.digest import Digest
from mirror.policy.records import Usage
from tests.support.eviction_world import World, until


async def test_a_crash_between_file_and_record(world: World) -> None:
    """Rows 41, 55: records without files are dropped when they are met, and count as the room that they were not."""
    digests = [await world.add(number) for number in range(12)]
    for digest in digests[:3]:
        world.store.delete(digest)
    await world.space.reserve(None)
    assert await world.port.usage() == Usage(8, 800)
    assert world.present() == set(digests[4:])


async def test_records_without_files_free_nothing_on_a_full_disk(world: World) -> None:
    """When the disk itself is full, only files that were there count."""
    digests = [await world.add(number) for number in range(6)]
    for digest in digests[:3]:
        world.store.delete(digest)
    await world.space.make_room(200)
    assert world.present() == set(digests[5:])
    assert await world.port.usage() == Usage(1, 100)


async def test_a_blob_that_comes_back_in_the_very_moment(world: World) -> None:
    """A blob that was fetched again after its file was dropped keeps its record."""
    digests = [await world.add(number) for number in range(10)]
    content = b"00000000".ljust(100, b".")
    assert Digest.of(content) == digests[0]
    world.index.before["drop"] = lambda: ignore(world.store.put(digests[0], content))
    await world.space.reserve(None)
    assert digests[0] in world.present()
    assert await world.port.get(digests[0]) is not None
    assert await world.port.usage() == Usage(9, 900)


def ignore(_: object) -> None:
    """Nothing."""


async def test_files_that_cannot_be_deleted(world: World) -> None:
    """Others go in their place, their records stay, and it comes to an end."""
    digests = [await world.add(number) for number in range(10)]
    world.store.stuck.update(digests[:3])
    await world.space.reserve(None)
    assert world.present() == {*digests[:3], *digests[5:]}
    world.store.stuck.update(digests)
    with pytest.raises(StoreFull):
        await world.space.make_room(100)
    assert await world.port.usage() == Usage(8, 800)


async def test_an_empty_index_deletes_nothing(world: World) -> None:
    """Row 49: after FLUSHALL nothing is dropped for it, and the index is rebuilt from the disk."""
    digests = [await world.add(number) for number in range(8)]
    await world.port.clear()
    await world.rounds.tick()
    await until(lambda: "set_marker" in world.index.calls)
    assert world.present() == set(digests)
    assert await world.port.usage() == Usage(8, 800)
    assert await world.port.marker() == MARK
    assert world.rebuilds == 1
    await world.rounds.tick()
    assert world.rebuilds == 1


async def test_an_index_lost_while_the_store_is_full(world: World) -> None:
    """Row 49: with the index flushed, room is made by what the disk knows, the coldest first."""
    digests = [await world.add(number) for number in range(9)]
    await world.port.clear()
    await world.space.reserve(100)
    assert world.present() == set(digests[2:])


async def test_pins_hold_without_a_whole_index(world: World) -> None:
    """Pins are on the disk: an index that is not whole, is empty or is down makes no difference to them."""
    digests = [await world.add(number, pin=number < 2) for number in range(9)]
    await world.port.set_marker(INCOMPLETE)
    await world.space.reserve(100)
    assert world.present() == {*digests[:2], *digests[4:]}
    await world.port.clear()
    await world.space.make_room(200)
    assert world.present() == {*digests[:2], *digests[6:]}
    world.index.down = True
    await world.space.make_room(200)
    assert world.present() == {*digests[:2], digests[8]}


async def test_pins_that_cannot_be_read(world: World) -> None:
    """Nobody knows what must stay, so nothing goes: what fits into the limit may come, the pull that wants more is
    told, and counts no longer.
    """
    digests = [await world.add(number) for number in range(9)]

    def fail(_: float) -> Collection[Digest]:
        raise StoreError("no descriptor left")

    space = world.another(pinned=fail).space
    reserved = await space.reserve(100)
    for _ in range(2):
        with pytest.raises(StoreError, match="descriptor"):
            await space.reserve(1)
    reserved.release()
    (await space.reserve(100)).release()
    with pytest.raises(StoreError, match="descriptor"):
        await space.make_room(1)
    assert world.present() == set(digests)


async def test_victims_that_are_pinned_meanwhile_stay(world: World) -> None:
    """Pins are read once more before each deletion."""
    digests = [await world.add(number) for number in range(9)]
    world.index.before["least_recently_used"] = lambda: world.pinned.add(digests[0])
    await world.space.reserve(100)
    assert digests[0] in world.present()


async def test_blobs_that_the_index_missed(world: World) -> None:
    """Where the index has too little to drop, the disk is looked at, and the index rebuilt."""
    digests = [await world.add(number) for number in range(9)]
    await world.port.drop(digests[1:])
    await world.space.make_room(400)
    assert world.present() == set(digests[4:])
    assert await world.port.marker() == INCOMPLETE
    await world.rounds.tick()
    await until(lambda: world.index.calls[-1] == "set_marker")
    assert await world.port.usage() == Usage(5, 500)
    assert await world.port.marker() == MARK


async def test_pins_alone_do_not_cause_walks_again_and_again(world: World) -> None:
    """A store that pins have filled is walked once, not for every pull that finds no room."""
    for number in range(10):
        await world.add(number, pin=True)
    for _ in range(5):
        with pytest.raises(StoreFull):
            await world.space.reserve(100)
        await world.port.set_marker(MARK)
        world.clock.time += 10
    assert world.store.walks <= 2

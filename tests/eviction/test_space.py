"""How room is reserved for fills, and made. Row numbers are those of the list of faults."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from mirror.errors import BlobTooLarge, StoreFull
from mirror.eviction.reconcile import MARK
from mirror.oci.digest import Digest
from mirror.policy.records import Usage
from mirror.ports import Deleted
from tests.support.eviction_world import World, growing, until
from tests.support.memory_store import MemoryStore
from tests.support.store_suite import filled


async def test_nothing_goes_while_there_is_room(world: World) -> None:
    """A fill that ends within the high water evicts nothing."""
    digests = [await world.add(number) for number in range(8)]
    reservation = await world.space.reserve(100)
    assert world.present() == set(digests)
    reservation.release()


async def test_the_coldest_go_down_to_the_low_water(world: World) -> None:
    """A fill that goes beyond the high water makes room down to the low water, least recently used first."""
    digests = [await world.add(number) for number in range(9)]
    await world.space.reserve(100)
    assert world.present() == set(digests[2:])
    assert await world.port.usage() == Usage(7, 700)


async def test_a_use_saves_a_blob(world: World) -> None:
    """What was used a moment ago is not the coldest any more, though the index has not been told yet."""
    digests = [await world.add(number) for number in range(9)]
    world.write_behind.touch(digests[0])
    await world.space.reserve(100)
    assert world.present() == {digests[0], *digests[3:]}


async def test_pinned_blobs_stay(world: World) -> None:
    """However cold."""
    digests = [await world.add(number, pin=number < 3) for number in range(9)]
    await world.space.reserve(100)
    assert world.present() == {*digests[:3], *digests[5:]}


async def test_pins_that_leave_no_room(world: World) -> None:
    """Where even all that may go is too little, `StoreFull`, and nothing is dropped in vain."""
    digests = [await world.add(number, pin=number < 8) for number in range(9)]
    with pytest.raises(StoreFull, match="pinned or in use"):
        await world.space.reserve(300)
    assert world.present() == set(digests)
    # the 200 that can be had are given, although the low water cannot be reached
    await world.space.reserve(200)
    assert world.present() == set(digests[:8])


async def test_a_blob_that_is_too_large(world: World) -> None:
    """More than the capacity is refused at once; nothing is dropped for it, and nothing stays reserved."""
    digests = [await world.add(number) for number in range(8)]
    with pytest.raises(BlobTooLarge, match="1 kB"):
        await world.space.reserve(1001)
    await world.space.reserve(100)
    assert world.present() == set(digests)


async def test_a_disk_that_other_data_fills() -> None:
    """The blob is not too large: it fits once the disk has space. Whoever is on duty is told that, not to raise the
    capacity. Nothing is dropped in vain.
    """
    world = World(disk=2000)
    digests = [await world.add(number) for number in range(3)]
    world.store.hosted_bytes = 1650
    with pytest.raises(StoreFull, match="no room for 900 B: the disk has 50 B free") as refused:
        await world.space.reserve(900)
    assert not isinstance(refused.value, BlobTooLarge)
    assert world.present() == set(digests)
    world.store.hosted_bytes = 0
    await world.space.reserve(300)


async def test_a_refused_blob_is_not_counted_as_stored() -> None:
    """While the index does not know the whole and the disk was summed up, a refusal must not fill the sum."""
    world = World()
    digests = [await world.add(number) for number in range(3)]
    await world.space.reserve(100)
    for _ in range(5):
        with pytest.raises(StoreFull):
            await world.space.reserve(5000)
    await world.space.reserve(100)
    assert world.present() == set(digests)


async def test_interrupted_downloads_go_before_anyone_is_refused() -> None:
    """Where blobs that may go are not enough, partials that nobody fills are asked for, once. If that is not enough
    either, what clients read parts of goes as well.
    """
    world = World()
    await world.index.index.set_marker(MARK)
    await world.add(1, 300, pin=True)
    content = b"left behind".ljust(600, b".")
    filled(world.store, content, upto=300).close()
    asked: list[int] = []
    in_use: list[bool] = []

    def reclaim(also_in_use: bool) -> int:
        in_use.append(also_in_use)
        asked.append(world.store.growing().get(Digest.of(content), 0))
        ingest = world.store.ingest(Digest.of(content), "docker.io")
        assert ingest.try_lock()
        ingest.abort(keep=False)
        ingest.close()
        return asked[-1]

    space = world.another(lambda: (), reclaim=reclaim).space
    await space.reserve(500)
    assert (asked, in_use) == ([300], [False])
    with pytest.raises(StoreFull):
        await space.reserve(500)
    assert (asked, in_use) == ([300, 0, 0], [False, False, True])


@pytest.mark.parametrize("fills", [(100, 100, 100), (50, 400, 300), (900, 90), (300, 300, 300, 100)])
async def test_138_one_worker_never_exceeds_the_limit(world: World, fills: Sequence[int]) -> None:
    """Row 138: whatever it fills at once, what it holds and has reserved stays within the limit of 1,000 bytes, or the
    fill is refused."""
    for number in range(8):
        await world.add(number)
    for number, size in enumerate(fills):
        try:
            await world.space.reserve(size)
        except StoreFull:
            continue
        stored = sum(info.size for info in MemoryStore.walk(world.store))
        assert stored + world.space.reserved <= 1000, number


async def test_138_two_workers_exceed_it_by_what_is_reserved(world: World) -> None:
    """Row 138: two that reserve at the same moment do not know of each other. Together they exceed the limit by at most
    what the other one has reserved, and the next round brings them back."""
    for number in range(6):
        await world.add(number)
    another = world.another()
    first, second = await world.space.reserve(300), await another.space.reserve(300)
    for seed, reservation in ((101, first), (102, second)):
        await world.add(seed, size=300)
        reservation.release()
    stored = sum(info.size for info in MemoryStore.walk(world.store))
    assert 1000 < stored <= 1000 + 300
    await another.rounds.tick()
    assert sum(info.size for info in MemoryStore.walk(world.store)) <= 900


async def test_138_a_fill_that_has_begun_is_known_to_others(world: World) -> None:
    """Row 138: from its first bytes on, another worker counts what it will have."""
    for number in range(6):
        await world.add(number)
    await world.space.reserve(300)
    ingest = growing(world.store, b"x" * 300, 300)
    await world.another().space.reserve(300)
    assert sum(info.size for info in MemoryStore.walk(world.store)) + 600 <= 1000
    ingest.abort(keep=False)


async def test_a_turn_that_is_cancelled_ends_with_its_last_file(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that deletes cannot be cancelled: whoever has the next turn, as a pin has, sees no file go that was
    chosen in the one before.
    """
    digests = [await world.add(number) for number in range(3)]
    deleting, go_on = threading.Event(), threading.Event()
    delete = world.store.delete

    def slow(digest: Digest) -> Deleted:
        deleting.set()
        assert go_on.wait(30)
        return delete(digest)

    monkeypatch.setattr(world.store, "delete", slow)
    dropping = asyncio.create_task(world.evictor.drop(digests))
    assert await asyncio.to_thread(deleting.wait, 30)
    dropping.cancel()
    # the next turn, in another process
    present: list[set[Digest]] = []

    async def look() -> None:
        async with world.another().evictor.turn():
            present.append(world.present())

    looking = asyncio.create_task(look())
    for _ in range(20):
        await asyncio.sleep(0)
    assert present == []
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await dropping
    await looking
    assert present == [set()]


async def test_blobs_in_flight_stay(world: World) -> None:
    """Rows 61, 62: what is protected is passed over."""
    digests = [await world.add(number) for number in range(9)]
    world.flying.update(digests[:4])
    await world.space.reserve(100)
    assert world.present() == {*digests[:4], *digests[6:]}


async def test_reservations_are_counted(world: World) -> None:
    """Fills that are about to begin count, until they are released, and a release twice counts once."""
    digests = [await world.add(number) for number in range(5)]
    first = await world.space.reserve(200)
    await world.space.reserve(200)
    assert world.present() == set(digests)
    first.release()
    first.release()
    await world.space.reserve(200)
    assert world.present() == set(digests)
    await world.space.reserve(100)
    assert world.present() == set(digests[2:])


async def test_reservations_at_once_do_not_overlook_each_other(world: World) -> None:
    """Many that reserve at the same moment get room for all of them."""
    for number in range(9):
        await world.add(number)
    await asyncio.gather(*(world.space.reserve(100) for _ in range(5)))
    assert len(world.present()) * 100 + 500 <= 900


async def test_fills_of_others_are_counted(world: World) -> None:
    """What grows in another process takes room, with the size that it will have."""
    digests = [await world.add(number) for number in range(5)]
    growing(world.store, b"another's", 300)
    await world.space.reserve(100)
    assert world.present() == set(digests)
    await world.space.reserve(100)
    assert world.present() == set(digests[2:])


async def test_fills_of_our_own_are_not_counted_twice(world: World) -> None:
    """A fill that has reserved and has begun counts once."""
    digests = [await world.add(number) for number in range(5)]
    await world.space.reserve(300)
    ours = growing(world.store, b"ours", 300)
    world.flying.add(ours.digest)
    await world.space.reserve(100)
    assert world.present() == set(digests)


async def test_an_unknown_size(world: World) -> None:
    """Reserves nothing, but makes room where the store is too full already."""
    digests = [await world.add(number) for number in range(10)]
    reservation = await world.space.reserve(None)
    assert reservation.size == 0
    assert world.present() == set(digests[2:])


async def test_a_disk_that_others_fill(world: World) -> None:
    """The limit is what the disk allows, where that is less than the capacity."""
    small = World(disk=500)
    await small.index.index.set_marker(MARK)
    digests = [await small.add(number) for number in range(4)]
    await small.space.reserve(100)
    assert small.present() == set(digests[1:])
    with pytest.raises(StoreFull):
        await small.space.reserve(501)


async def test_a_full_disk_in_mid_write(world: World) -> None:
    """Row 34: `make_room` drops at least what it is asked for, however little is counted."""
    digests = [await world.add(number) for number in range(4)]
    await world.space.make_room(150)
    assert world.present() == set(digests[2:])
    with pytest.raises(StoreFull):
        await world.space.make_room(201)
    assert world.present() == set(digests[2:])


async def test_a_reservation_that_is_cancelled_is_given_back(world: World) -> None:
    """Row 63: a task that ends while it waits for room leaves nothing reserved and no lock held."""
    digests = [await world.add(number) for number in range(8)]
    async with world.lock:
        waiting = asyncio.ensure_future(world.space.reserve(500))
        await until(lambda: "usage" in world.index.calls)
        for _ in range(20):
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    await world.space.reserve(100)
    assert world.present() == set(digests)


async def test_two_processes_evict_one_after_the_other(world: World) -> None:
    """The second finds the room that the first has made, and drops nothing more for itself than it needs."""
    digests = [await world.add(number) for number in range(10)]
    other = world.another()
    await asyncio.gather(world.space.reserve(None), other.space.reserve(None))
    assert world.present() == set(digests[2:])


async def test_a_dry_run_lists_each_victim_and_why(world: World) -> None:
    """The list is what would be dropped, with sizes and reasons; nothing is."""
    digests = [await world.add(number, used=1000 - 86400 * (10 - number)) for number in range(10)]
    assert [(each.digest, each.size, each.reason) for each in await world.space.plan()] == [
        (digests[0], 100, "no cached manifest names it: last used 10 days ago"),
        (digests[1], 100, "no cached manifest names it: last used 9 days ago"),
    ]
    assert [each.digest for each in await world.space.plan(250)] == digests[:3]
    assert world.present() == set(digests)


async def test_collecting_by_hand(world: World) -> None:
    """Comes down to the low water, also from below the high water, and says what went; then there is nothing to do."""
    digests = [await world.add(number) for number in range(9)]
    assert [each.digest for each in await world.space.collect()] == digests[:1]
    assert world.present() == set(digests[1:])
    assert await world.space.collect() == []

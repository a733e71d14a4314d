"""How full the store is while no index says so."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

import pytest

from mirror.errors import IndexUnavailable
from mirror.eviction.reconcile import MARK
from mirror.eviction.usage import StoreUsage
from mirror.eviction.write_behind import WriteBehind
from mirror.oci.digest import Digest
from mirror.ports import BlobInfo
from tests.support.clock import Clock
from tests.support.eviction_world import World
from tests.support.memory_index import MemoryIndex
from tests.support.memory_store import MemoryStore

T = TypeVar("T")


async def test_without_an_index_two_processes_do_not_evict_twice(world: World) -> None:
    """Row 47: what another process has dropped is not dropped once more for a sum that is out of date."""
    other = world.another()
    for number in range(10):
        await world.add(number)
    world.index.down = True
    for space in (world.space, other.space):
        await space.fullness()
    for rounds in (world.rounds, other.rounds):
        await rounds.tick()
    assert len(world.present()) == 8


async def test_a_dead_index_does_not_let_the_disk_fill_up(world: World) -> None:
    """Row 47: the coldest by the disk's own times go, and uses that the index was not told of count."""
    digests = [await world.add(number) for number in range(9)]
    world.index.down = True
    world.write_behind.touch(digests[1])
    await world.space.reserve(100)
    assert world.present() == {digests[1], *digests[3:]}


async def test_a_dead_index_and_a_thousand_fills(world: World) -> None:
    """Row 47: pull after pull, the store stays within its capacity, and the disk is not walked for each."""
    world.index.down = True
    for number in range(300):
        reservation = await world.space.reserve(10)
        await world.add(number, 10)
        reservation.release()
        assert len(world.present()) * 10 <= 1000
    assert world.store.walks < 100


async def test_a_dead_index_and_fills_of_several_processes(world: World) -> None:
    """Row 47: none of them is told what the others bring, and together they stay within the capacity all the same."""
    world.index.down = True
    evictors = [world.another(lambda: ()) for _ in range(4)]
    for number in range(300):
        reservation = await evictors[number % 4].space.reserve(10)
        await world.add(number, 10)
        reservation.release()
        world.clock.time += 0.03
        assert len(world.present()) * 10 <= 1000


async def test_a_large_store_without_an_index_is_not_walked_while_a_fill_waits() -> None:
    """Above ten thousand blobs the last sum does, and the next round walks."""
    world = World(capacity=1 << 30)
    world.index.down = True
    for number in range(10_001):
        world.store.put(Digest.of(content := b"%d" % number), content)
    await world.space.reserve(10)
    world.clock.time += 50
    await asyncio.gather(*(world.space.reserve(10) for _ in range(5)))
    assert world.store.walks == 1
    await world.rounds.tick()
    assert world.store.walks == 2


@pytest.mark.parametrize("set_by", [0.0, 1e9])
async def test_a_walk_that_takes_long_is_followed_by_a_long_rest(set_by: float) -> None:
    """Otherwise a large store would be walked most of the time, in each worker. The rest does not last for years if
    somebody sets the time of day during the walk.
    """
    clock, steady, index = Clock(), Clock(), MemoryIndex()

    walks = 0

    class Slow(MemoryStore):
        def walk(self) -> Iterator[BlobInfo]:
            nonlocal walks
            steady.time += 20
            clock.time += 20 + (0 if walks else set_by)
            walks += 1
            yield from super().walk()

    store = Slow()
    store.put(Digest.of(b"content"), b"content")
    usage = StoreUsage(store, index, WriteBehind(store, index, now=clock), now=clock, clock=steady)

    async def walks_after(seconds: float) -> int:
        clock.time += seconds
        assert await usage.bytes(store.free()[0], patient=True) == 7
        return walks

    assert [await walks_after(seconds) for seconds in (0, 175, 10)] == ([1, 2, 2] if set_by else [1, 1, 2])


async def test_only_a_walk_that_nobody_waits_for_gives_way() -> None:
    """A round's does; that of a fill or an eviction does not."""
    store, gave_way = MemoryStore(), list[object]()

    class Counting:
        async def __call__(self, _took: float, /) -> None:
            raise AssertionError

        def slices(self, items: Iterable[T]) -> Iterator[T]:
            for item in items:
                gave_way.append(item)
                yield item

    index = MemoryIndex()
    usage = StoreUsage(store, index, WriteBehind(store, index, now=lambda: 1.0), now=lambda: 1.0, give_way=Counting())
    store.put(Digest.of(b"content"), b"content")
    for patient in (False, True):
        usage.forget()
        assert await usage.bytes(store.free()[0], patient=patient) == 7
    assert gave_way == []
    usage.forget()
    assert await usage.bytes(store.free()[0], patient=True, gives_way=True) == 7
    assert len(gave_way) == 1


async def test_fills_that_begin_together_walk_once(world: World) -> None:
    """Without an index, they wait for one sum."""
    world.index.down = True
    await world.add(1)
    await asyncio.gather(*(world.space.reserve(10) for _ in range(5)))
    world.clock.time += 50
    await asyncio.gather(*(world.space.reserve(10) for _ in range(5)))
    assert world.store.walks == 2


async def test_a_large_store_is_not_read_for_a_short_plan() -> None:
    """Without an index, the first victims of a large store are refused, and a whole plan is made."""
    world = World(soon=60.0)
    await world.index.index.set_marker(MARK)
    world.index.down = True
    first = await world.add(1)
    assert [victim.digest for victim in await world.space.plan(1, short=True)] == [first]
    for number in range(10_001):
        world.store.put(Digest.of(content := b"%d" % number), content)
    world.clock.time += 50
    with pytest.raises(IndexUnavailable, match="too large"):
        await world.space.plan(1, short=True)
    assert await world.space.plan(1)


async def test_usage_may_not_be_known_in_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has little patience is told that a walk takes longer; it goes on, and is not begun again."""
    await world.add(1)
    world.index.down = True
    go, walk = threading.Event(), world.store.walk

    def slowly() -> Iterator[BlobInfo]:
        found = list(walk())
        assert go.wait(60)
        yield from found

    monkeypatch.setattr(world.store, "walk", slowly)
    try:
        while not world.store.walks:
            assert await world.space.fullness(0.01) is None
        assert await world.space.fullness(0.01) is None
    finally:
        go.set()
    assert await world.space.fullness() == (100, 1000)
    assert world.store.walks == 1


async def test_a_dead_index_and_blobs_of_other_processes(world: World) -> None:
    """Row 47: a process that walked the disk long ago keeps the capacity too, untold of what others fill."""
    for number in range(5):
        await world.add(number)
    world.index.down = True
    mine = world.another()
    await mine.space.reserve(0)
    for number in range(5, 10):
        await world.add(number)
    reservation = await mine.space.reserve(100)
    assert len(world.present()) * 100 + reservation.size <= 1000


async def test_a_dead_index_and_a_disk_that_others_write_on(world: World) -> None:
    """Row 47: space that went to files of others makes nothing go, and costs one more walk, not one for each fill."""
    digests = {await world.add(number) for number in range(5)}
    world.index.down = True
    await world.space.reserve(0)
    world.store.disk -= 1000
    for _ in range(20):
        (await world.space.reserve(1)).release()
    assert world.present() == digests
    assert world.store.walks <= 2

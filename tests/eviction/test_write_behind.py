"""What waits in memory until index and disk take it."""

from __future__ import annotations

import structlog

from mirror.eviction.reconcile import MARK
from mirror.oci.digest import Digest
from mirror.policy.records import References, Usage
from mirror.ports import BlobInfo
from tests.support.eviction_world import START, World


async def test_references_of_dropped_manifests_are_not_sent(world: World) -> None:
    """A manifest whose names waited for the index, and that was dropped meanwhile, is not counted once it answers."""
    layer = await world.add(1)
    manifest = await world.image(2.0, layer)
    world.index.down = True
    await world.write_behind.record_references(References(manifest, (), (layer,)), 600)
    world.store.delete(manifest)
    world.index.down = False
    await world.index.index.drop([manifest])
    await world.write_behind.flush()
    assert await world.index.index.get(manifest) is None
    assert (await world.index.index.usage()).blobs == 1


async def test_references_wait_for_the_index(world: World) -> None:
    """What a manifest names is told with the next flush that gets through, with the manifest itself."""
    manifest, layer = Digest.of(b"manifest"), await world.add(1)
    world.store.put(manifest, b"manifest")
    world.index.down = True
    await world.write_behind.record_references(References(manifest, (), (layer,)), 600)
    await world.write_behind.flush()
    world.index.down = False
    await world.write_behind.flush()
    assert {
        above: [each.record.digest for each in found]
        for above, found in (await world.port.successors([manifest])).items()
    } == {manifest: [layer]}
    world.index.calls.clear()
    await world.write_behind.flush()
    assert "record_references" not in world.index.calls


async def test_blobs_wait_for_the_index(world: World) -> None:
    """Row 47: what comes while the index is away is counted, and dropped in its turn, once it is back; what has gone by
    then is not.
    """
    world.index.down = True
    came = [await world.publish(number) for number in range(3)]
    world.store.delete(came[0].digest)
    await world.write_behind.flush()
    world.index.down = False
    await world.rounds.tick()
    await world.rounds.tick()
    assert await world.port.usage() == Usage(2, 200)
    world.index.calls.clear()
    await world.write_behind.flush()
    assert "put" not in world.index.calls


async def test_blobs_wait_without_end() -> None:
    """So many are remembered and no more; the rest is left to the comparison with the disk."""
    world = World(most_blobs=2)
    await world.index.index.set_marker(MARK)
    world.index.down = True
    for number in range(3):
        await world.publish(number)
    world.index.down = False
    await world.rounds.tick()
    await world.rounds.tick()
    assert await world.port.usage() == Usage(2, 200)


async def test_blobs_that_threads_have_stored_are_recorded(world: World) -> None:
    """By the next flush, if they are still there."""
    here, gone = Digest.of(b"put here by a thread"), Digest.of(b"dropped since")
    world.store.put(here, b"put here by a thread")
    world.write_behind.stored(BlobInfo(here, 1))
    world.write_behind.stored(BlobInfo(gone, 1))
    await world.write_behind.flush()
    assert await world.port.get(here) is not None
    assert await world.port.get(gone) is None


async def test_uses_wait_for_the_index(world: World) -> None:
    """While it is down uses are kept, the log says so once, and once more when it is back; later uses win."""
    digests = [await world.add(number) for number in range(3)]
    world.index.down = True
    with structlog.testing.capture_logs() as logged:
        for number in range(3):
            world.clock.time += 1
            world.write_behind.touch(digests[number])
            await world.write_behind.flush()
        world.clock.time += 1
        world.write_behind.touch(digests[0])
        world.index.down = False
        await world.write_behind.flush()
    assert [line["event"] for line in logged] == ["eviction runs without index", "eviction uses index again"]
    found = [await world.port.get(digest) for digest in digests]
    assert [each.last_used - START for each in found if each] == [4, 2, 3]
    world.index.calls.clear()
    await world.write_behind.flush()
    assert "touch" not in world.index.calls


async def test_uses_in_memory_are_bounded(world: World) -> None:
    """A hundred thousand are kept at most; the oldest go first."""
    digests = [Digest.of(str(number).encode()) for number in range(100_010)]
    world.index.down = True
    for digest in digests:
        world.write_behind.touch(digest)
    await world.write_behind.flush()
    for digest in digests[:5]:
        world.write_behind.touch(digest)
    await world.write_behind.flush()
    told: list[dict[Digest, float]] = []

    async def remember(seen: dict[Digest, float]) -> None:
        told.append(seen)

    world.index.down = False
    world.index.index.touch = remember  # type: ignore[method-assign, assignment]
    await world.write_behind.flush()
    assert len(told[0]) == 100_000
    assert set(digests[:5]) <= told[0].keys()
    assert digests[10] not in told[0]


async def test_uses_are_noted_on_disk_hourly(world: World) -> None:
    """The first use is noted, then none of the same blob for an hour, however often it is used."""
    first, second = [await world.add(number) for number in range(2)]
    for _ in range(60):
        world.write_behind.touch(first)
        await world.write_behind.flush()
        world.clock.time += 59
    world.write_behind.touch(second)
    await world.write_behind.flush()
    world.clock.time += 100
    world.write_behind.touch(first)
    await world.write_behind.flush()
    assert [set(each) for each in world.store.marked] == [{first}, {second}, {first}]
    assert world.store.stat(first).used_at == world.clock.time

"""How much room damaged blobs that were set aside may take, and for how long."""

from __future__ import annotations

from typing import Any

import pytest
import structlog

from mirror import telemetry
from mirror.errors import StoreError
from mirror.oci.digest import Digest
from mirror.policy.quarantine_limits import QuarantineLimits
from tests.support.eviction_world import World
from tests.support.store_suite import put_aside


def set_aside(world: World, number: int, size: int = 100, *, ago: float = 0.0) -> Digest:
    """A damaged blob in the quarantine, set aside so many seconds before now."""
    content = f"damaged {number}".encode().ljust(size, b".")
    world.store.put(digest := Digest.of(content), content)
    put_aside(world.store, digest)
    world.store.date_quarantined(digest, world.clock() - ago)
    return digest


async def test_quarantined_blobs_take_room(world: World) -> None:
    """The limit holds with a full quarantine, and within its bound it goes as little as any blob that was just used."""
    digests = [await world.add(number) for number in range(8)]
    damaged = set_aside(world, 1)
    await world.rounds.tick()
    assert world.present() == set(digests)
    await world.space.reserve(50)
    assert world.present() == set(digests[2:])
    assert [blob.digest for blob in world.store.quarantined()] == [damaged]
    assert await world.space.fullness() == (600, 1000)
    assert world.space.quarantined() == 100


async def test_the_quarantine_goes_before_anything_good(world: World) -> None:
    """Where there is no room at all, and where the disk was full in mid-write, good blobs stay for it."""
    digests = [await world.add(number) for number in range(8)]
    for _ in range(2):
        set_aside(world, 1)
        await world.space.make_room(100)
        assert world.present() == set(digests)
        assert list(world.store.quarantined()) == []
    set_aside(world, 1)
    # 800 + 100 + 150 is more than the limit; without the 100 it is more than the high water
    (await world.space.reserve(150)).release()
    assert list(world.store.quarantined()) == []
    assert world.present() == set(digests[2:])


async def test_the_quarantine_is_swept(world: World) -> None:
    """Each round drops what is too old, or more than a tenth of the store; the metric tells what is left."""
    old = set_aside(world, 1, 10, ago=7 * 86400.0)
    oldest, young = set_aside(world, 2, 60, ago=100.0), set_aside(world, 3, 50)
    with structlog.testing.capture_logs() as logs:
        await world.rounds.tick()
        await world.rounds.tick()
    assert [blob.digest for blob in world.store.quarantined()] == [young]
    assert {old, oldest}.isdisjoint(blob.digest for blob in world.store.quarantined())
    [told] = [line for line in logs if line["event"] == "quarantined blobs deleted"]
    assert (told["blobs"], told["bytes"]) == (2, 70)
    assert "mirror_store_quarantine_bytes 50.0" in telemetry.render_metrics().decode()


async def test_no_quarantine_at_all() -> None:
    """A size of 0 keeps nothing beyond the next round."""
    world = World()
    rounds = world.another(quarantine=QuarantineLimits(size=0)).rounds
    set_aside(world, 1)
    await rounds.tick()
    assert list(world.store.quarantined()) == []


async def test_a_quarantine_that_cannot_be_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops neither pulls nor eviction, and is said once; likewise what cannot be dropped."""

    def failing(*_: object) -> Any:
        raise StoreError("listing the quarantine: Input/output error")

    digests = [await world.add(number) for number in range(9)]
    set_aside(world, 1)
    monkeypatch.setattr(world.store, "drop_quarantined", failing)
    with structlog.testing.capture_logs() as logs:
        await world.space.make_room(100)
        monkeypatch.setattr(world.store, "quarantined", failing)
        for _ in range(3):
            await world.rounds.tick()
            (await world.space.reserve(100)).release()
    assert world.present() == set(digests[1:])
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["quarantine cannot be swept"]

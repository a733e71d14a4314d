"""Which blobs and images go first, and how little of the index is read for that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import pytest

from mirror.errors import BlobUnknown, StoreFull
from mirror.eviction.reconcile import MARK
from mirror.index.embedded import EmbeddedIndex
from mirror.index.redis import RedisIndex
from mirror.oci.digest import Digest
from mirror.policy.eviction import Watermarks
from mirror.policy.quarantine_limits import QuarantinedBlob
from mirror.policy.records import ContentRecord, References, Usage
from mirror.ports import ContentIndex, Deleted
from mirror.values.sizes import Capacity
from tests.support.clock import Clock
from tests.support.eviction_parts import make_eviction
from tests.support.eviction_world import START, Watched, World, locked
from tests.support.memory_store import MemoryCatalog
from tests.support.redis_server import RedisServer


@pytest.fixture(params=["index", "index down", "index flushed"])
async def images(request: pytest.FixtureRequest) -> World:
    """A large store, whose index is asked in one case and the disk in the others; `settle` it once it is filled."""
    world = World(capacity=100_000)
    await world.index.index.set_marker(MARK)

    async def settle() -> None:
        if request.param == "index flushed":
            await world.port.clear()
        world.index.down = request.param == "index down"

    world.settle = settle
    return world


async def test_loose_blobs_go_before_images(images: World) -> None:
    """What no cached manifest names goes first, however warm, and only then the coldest image."""
    layer = await images.add(1, used=-5000)
    cold = await images.image(-4000, layer)
    loose = [await images.add(number, used=number) for number in range(2, 5)]
    await images.settle()
    await images.space.make_room(200)
    assert images.present() == {layer, cold, loose[2]}
    await images.space.make_room(101)
    assert images.present() == set()


async def test_images_go_whole(images: World) -> None:
    """The coldest image goes with all its layers, though fewer would do and other images have colder ones."""
    layers = [await images.add(number, used=-number) for number in range(6)]
    warm = await images.image(50, *layers[3:])
    cold = await images.image(40, *layers[:3])
    await images.settle()
    victims = await images.space.collect() or await images.space.plan(1)
    assert {victim.digest for victim in victims} == {cold, *layers[:3]}
    assert {victim.images for victim in victims} == {(cold,)}
    await images.space.make_room(1)
    assert images.present() == {warm, *layers[3:]}


async def test_shared_layers_stay_with_the_warm_image(images: World) -> None:
    """A layer that a warmer image names too stays until that one goes."""
    own, shared, other = [await images.add(number) for number in range(3)]
    await images.image(10, own, shared)
    warm = await images.image(20, shared, other)
    await images.settle()
    await images.space.make_room(1)
    assert images.present() == {warm, shared, other}
    await images.space.make_room(1)
    assert images.present() == set()


async def test_the_use_of_a_manifest_alone_keeps_its_image(images: World) -> None:
    """A client that has all layers asks for the manifest, or by its digest for that of one platform."""
    layers = [await images.add(number) for number in range(3)]
    platforms = [await images.image(10, layers[0]), await images.image(11, layers[1])]
    index = await images.image(12, manifests=platforms)
    other = await images.image(500, layers[2])
    await images.settle()
    images.write_behind.touch(platforms[0])
    await images.space.make_room(1)
    assert images.present() == {index, *platforms, *layers[:2]}
    images.write_behind.touch(index)
    await images.space.make_room(1)
    assert images.present() == set()
    assert other not in images.present()


async def test_a_pinned_platform_of_a_cold_index(images: World) -> None:
    """The index goes with the other platform; what is pinned stays whole."""
    layers = [await images.add(number) for number in range(2)]
    platforms = [await images.image(10, layers[0]), await images.image(11, layers[1])]
    await images.image(12, manifests=platforms)
    images.pinned |= {platforms[0], layers[0]}
    await images.settle()
    await images.space.make_room(1)
    assert images.present() == {platforms[0], layers[0]}
    with pytest.raises(StoreFull, match="pinned"):
        await images.space.make_room(1)


async def test_new_blobs_are_not_dropped_first(images: World) -> None:
    """A blob without a manifest that was used a moment ago goes after images that are colder, and before others."""
    layers = [await images.add(number) for number in range(2)]
    await images.image(10, layers[0])
    warm = await images.image(990, layers[1])
    young = await images.add(7, used=700)
    await images.settle()
    await images.space.make_room(1)
    assert images.present() == {young, warm, layers[1]}
    await images.space.make_room(1)
    assert images.present() == {warm, layers[1]}


class Counted:
    """A store of a hundred thousand blobs of 1000 bytes that exist as a set of names."""

    def __init__(self, digests: Sequence[Digest]) -> None:
        self.names = set(digests)
        self.deleted: list[Digest] = []

    def delete(self, digest: Digest) -> Deleted:
        if digest not in self.names:
            return Deleted()
        self.names.remove(digest)
        self.deleted.append(digest)
        return Deleted(1000, 1000)

    def stat(self, digest: Digest) -> None:
        assert digest not in self.names
        raise BlobUnknown("gone")

    def growing(self) -> dict[Digest, int]:
        return {}

    def quarantined(self) -> tuple[QuarantinedBlob, ...]:
        return ()

    def free(self) -> tuple[int, int]:
        return 1 << 40, 1 << 41


@pytest.fixture(params=["embedded", "redis"])
async def index(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ContentIndex]:
    """Empty, with time enough for very many records."""
    if request.param == "embedded":
        async with aclosing(EmbeddedIndex(tmp_path / "index.sqlite3")) as embedded:
            yield embedded
        return
    with RedisServer() as server:
        async with aclosing(RedisIndex(server.address, store_id="many", budget=60.0, now=Clock(START))) as shared:
            yield shared


async def test_choosing_among_many_reads_few(index: ContentIndex) -> None:
    """Among 100,000 blobs, 300 of the coldest pinned, choosing victims reads about as many records as there are
    victims and pins, whatever the number of blobs, and the disk is not walked."""
    digests = [Digest.of(str(number).encode()) for number in range(100_000)]
    await index.put([ContentRecord(digest, 1000, START - 1e6 + number) for number, digest in enumerate(digests)])
    await index.set_marker(MARK)
    watched = Watched(index)
    store = Counted(digests)
    parts = make_eviction(
        cast(Any, store),
        MemoryCatalog(),
        cast(ContentIndex, watched),
        Watermarks(Capacity(bytes=101_000_000), 1.0, 0.99, reserve=0),
        protected=lambda: set(digests[300:310]),
        pinned=lambda _: set(digests[:300]),
        exclusive=lambda: locked(asyncio.Lock()),
        now=Clock(START),
    )
    assert [each.digest for each in await parts.space.plan(5000)] == digests[310:315]
    assert watched.records_read <= 64 + 4 * 310 * 2
    watched.records_read = 0
    await parts.space.reserve(1_500_000)
    assert store.deleted == digests[310 : 310 + 1510]
    assert watched.records_read <= 4 * 1510 + 64
    assert await index.usage() == Usage(100_000 - 1510, (100_000 - 1510) * 1000)
    # more than is looked at in one go
    watched.records_read = 0
    await parts.space.make_room(10_000_000)
    assert store.deleted == digests[310 : 310 + 11_510]
    assert watched.records_read <= 4 * 10_000


async def test_choosing_among_many_images_reads_few(index: ContentIndex) -> None:
    """Among 20,000 blobs of 1,000 images, choosing reads some cold manifests and what is below the victims."""
    digests = [Digest.of(str(number).encode()) for number in range(20_000)]
    await index.put([ContentRecord(digest, 1000, START - 1e6 + n) for n, digest in enumerate(digests)])
    await index.record_references(
        [References(digests[n], (), tuple(digests[n + 1 : n + 20])) for n in range(0, 20_000, 20)]
    )
    await index.set_marker(MARK)
    watched = Watched(index)
    store = Counted(digests)
    parts = make_eviction(
        cast(Any, store),
        MemoryCatalog(),
        cast(ContentIndex, watched),
        Watermarks(Capacity(bytes=1 << 30), 1.0, 0.99, reserve=0),
        protected=lambda: (),
        pinned=lambda _: digests[20:40],
        exclusive=lambda: locked(asyncio.Lock()),
        now=Clock(START),
    )
    await parts.space.make_room(35_000)
    assert set(store.deleted) == {*digests[:20], *digests[40:60]}
    assert watched.records_read <= 64 + 16 * 19

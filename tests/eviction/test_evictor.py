"""The evictor between a store, an index and a clock. Row numbers are those of the list of faults."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import structlog

from mirror import telemetry
from mirror.errors import BlobTooLarge, BlobUnknown, IndexUnavailable, StoreError, StoreFull
from mirror.eviction import space as space_module
from mirror.eviction import write_behind
from mirror.eviction.reconcile import INCOMPLETE, MARK, ensure
from mirror.index.embedded import EmbeddedIndex
from mirror.index.redis import RedisIndex
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST
from mirror.oci.reference import Repo
from mirror.policy.eviction import Watermarks
from mirror.policy.quarantine_limits import QuarantinedBlob, QuarantineLimits
from mirror.policy.records import ContentRecord, ManifestRecord, References, Usage
from mirror.ports import BlobInfo, ContentIndex
from mirror.values.sizes import Capacity
from tests.support.clock import Clock
from tests.support.eviction_parts import EvictionParts, make_eviction
from tests.support.memory_index import MemoryIndex
from tests.support.memory_store import MemoryCatalog, MemoryIngest, MemoryStore
from tests.support.redis_server import RedisServer
from tests.support.store_suite import filled, put_aside

START = 1_000_000.0
REPO = Repo("docker.io", "library/app")


class Watched:
    """An index that can be taken away. Counts the records that choosing reads, and tells when something is called."""

    def __init__(self, index: ContentIndex) -> None:
        self.index = index
        self.down = False
        self.records_read = 0
        self.calls: list[str] = []
        self.before: dict[str, Callable[[], None]] = {}

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.index, name)

        async def call(*arguments: Any) -> Any:
            self.calls.append(name)
            if self.down:
                raise IndexUnavailable("taken away by the test")
            self.before.get(name, lambda: None)()
            answer = await method(*arguments)
            if name == "least_recently_used":
                self.records_read += len(answer)
            if name == "successors":
                self.records_read += sum(map(len, answer.values()))
            return answer

        return call


class CountingStore(MemoryStore):
    """Counts walks and notes of use, and may refuse to delete."""

    def __init__(self, disk: int = 1 << 40) -> None:
        super().__init__(disk)
        self.walks = 0
        self.marked: list[dict[Digest, float]] = []
        self.stuck: set[Digest] = set()
        self.failing = False

    def walk(self) -> Any:
        self.walks += 1
        return super().walk()

    def mark_used(self, seen: Any) -> None:
        self.marked.append(dict(seen))
        super().mark_used(seen)

    def delete(self, digest: Digest) -> int:
        if digest in self.stuck:
            raise StoreError("read-only")
        return super().delete(digest)

    def free(self) -> tuple[int, int]:
        if self.failing:
            raise StoreError("the disk is gone")
        return super().free()


class World:
    """A store of 1000 bytes (high water 900, low water 800), its index, and an evictor."""

    def __init__(self, index: ContentIndex | None = None, *, capacity: int = 1000, disk: int = 1 << 40) -> None:
        self.store = CountingStore(disk)
        self.index = Watched(index or MemoryIndex())
        self.clock = Clock(START)
        self.flying: set[Digest] = set()
        self.pinned: set[Digest] = set()
        self.catalog = MemoryCatalog()
        self.lock = asyncio.Lock()
        self.rebuilds = 0
        self.water = Watermarks(Capacity(bytes=capacity), 0.9, 0.8, reserve=0)
        parts = self.another()
        self.write_behind, self.evictor = parts.write_behind, parts.evictor
        self.space, self.rounds = parts.space, parts.rounds
        self.settle: Callable[[], Awaitable[None]]

    @property
    def port(self) -> ContentIndex:
        """The watched index, as the port that it stands for."""
        return cast(ContentIndex, self.index)

    def another(self, protected: Callable[[], Collection[Digest]] | None = None, **more: Any) -> EvictionParts:
        """What another process has, with its own view of what is in flight."""
        given: dict[str, Any] = {"pinned": lambda _: self.pinned, "rebuild": self.rebuild, **more}
        return make_eviction(
            self.store,
            self.catalog,
            self.port,
            self.water,
            exclusive=self.exclusive,
            protected=protected or (lambda: self.flying),
            now=self.clock,
            **given,
        )

    def exclusive(self) -> AbstractAsyncContextManager[None]:
        """One lock for all evictors."""
        return held(self.lock)

    async def rebuild(self) -> None:
        """As `ensure` does it."""
        self.rebuilds += 1
        await ensure(self.store, self.catalog, self.port, exclusive=lambda: held(asyncio.Lock()))

    async def come(self, number: int) -> BlobInfo:
        """A blob that was just published; the index is told of it if it answers."""
        content = f"{number:08}".encode().ljust(100, b".")
        self.store.put(digest := Digest.of(content), content)
        info = self.store.stat(digest)
        await self.write_behind.record_blob(info)
        return info

    async def add(self, number: int, size: int = 100, *, used: float | None = None, pin: bool = False) -> Digest:
        """A blob in store and index; `used` in seconds after the start, by default its number."""
        content = f"{number:08}".encode().ljust(size, b".")
        digest = Digest.of(content)
        at = START - 1000 + (number if used is None else used)
        self.store.put(digest, content)
        MemoryStore.mark_used(self.store, {digest: at})
        await self.index.index.put([ContentRecord(digest, len(content), at)])
        if pin:
            self.pinned.add(digest)
        return digest

    async def image(self, used: float, *blobs: Digest, manifests: Sequence[Digest] = (), repo: Repo = REPO) -> Digest:
        """A manifest of 600 bytes that names these, or an index; `used` in seconds after the start."""
        listed = [{"mediaType": "x/y", "digest": str(digest), "size": 100} for digest in (*manifests, *blobs)]
        kind, field = (OCI_INDEX, "manifests") if manifests else (OCI_MANIFEST, "layers")
        body = {"schemaVersion": 2, "mediaType": kind, field: listed}
        content = json.dumps(body).encode().ljust(600)
        digest = Digest.of(content)
        self.store.put(digest, content)
        self.catalog.put_manifest(repo, ManifestRecord(digest, kind, len(content), 0.0))
        MemoryStore.mark_used(self.store, {digest: START - 1000 + used})
        await self.index.index.put([ContentRecord(digest, len(content), START - 1000 + used)])
        await self.index.index.record_references([References(digest, tuple(manifests), blobs)])
        return digest

    def present(self) -> set[Digest]:
        """What is on disk, without counting as a walk."""
        return {info.digest for info in MemoryStore.walk(self.store)}


@asynccontextmanager
async def held(lock: asyncio.Lock) -> AsyncIterator[None]:
    """The lock as a context of its own."""
    async with lock:
        yield


@pytest.fixture
async def world() -> World:
    """Whole and empty."""
    world = World()
    await world.index.index.set_marker(MARK)
    return world


def growing(store: MemoryStore, content: bytes, size: int) -> MemoryIngest:
    """A fill that has announced its size."""
    ingest = store.ingest(Digest.of(content), "docker.io")
    assert ingest.try_lock()
    ingest.expect(size)
    return ingest


# ------------------------------------------------------------------------------------------------------ room


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


async def test_a_refused_blob_is_not_counted_as_held() -> None:
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
    """Where blobs that may go are not enough, partials that nobody fills are asked for, once."""
    world = World()
    await world.index.index.set_marker(MARK)
    await world.add(1, 300, pin=True)
    content = b"left behind".ljust(600, b".")
    filled(world.store, content, upto=300).close()
    asked: list[int] = []

    def reclaim() -> int:
        asked.append(world.store.growing().get(Digest.of(content), 0))
        ingest = world.store.ingest(Digest.of(content), "docker.io")
        assert ingest.try_lock()
        ingest.abort(keep=False)
        ingest.close()
        return asked[-1]

    space = world.another(lambda: (), reclaim=reclaim).space
    await space.reserve(500)
    assert asked == [300]
    with pytest.raises(StoreFull):
        await space.reserve(500)
    assert asked == [300, 0]


async def test_names_of_what_is_gone_are_not_told(world: World) -> None:
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
        held = sum(info.size for info in MemoryStore.walk(world.store))
        assert held + world.space.reserved <= 1000, number


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
    held = sum(info.size for info in MemoryStore.walk(world.store))
    assert 1000 < held <= 1000 + 300
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

    def slow(digest: Digest) -> int:
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


# --------------------------------------------------------------------------------------------------- quarantine


def set_aside(world: World, number: int, size: int = 100, *, ago: float = 0.0) -> Digest:
    """A damaged blob in the quarantine, set aside so many seconds before now."""
    content = f"damaged {number}".encode().ljust(size, b".")
    world.store.put(digest := Digest.of(content), content)
    put_aside(world.store, digest)
    blob, _ = world.store._aside[digest]
    world.store._aside[digest] = blob, world.clock() - ago
    return digest


async def test_what_is_set_aside_takes_room(world: World) -> None:
    """The limit holds with a full quarantine, and within its bound it goes as little as any blob that was just used."""
    digests = [await world.add(number) for number in range(8)]
    damaged = set_aside(world, 1)
    await world.rounds.tick()
    assert world.present() == set(digests)
    await world.space.reserve(50)
    assert world.present() == set(digests[2:])
    assert [one.digest for one in world.store.quarantined()] == [damaged]
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
    assert [one.digest for one in world.store.quarantined()] == [young]
    assert {old, oldest}.isdisjoint(one.digest for one in world.store.quarantined())
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


async def test_a_quarantine_that_the_disk_does_not_give(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops neither pulls nor eviction, and is said once; likewise what cannot be dropped."""

    def failing(*_: object) -> Any:
        raise StoreError("listing the quarantine: Input/output error")

    digests = [await world.add(number) for number in range(9)]
    set_aside(world, 1)
    monkeypatch.setattr(world.store, "drop_quarantined", failing)
    with structlog.testing.capture_logs() as logs:
        await world.space.make_room(100)
        monkeypatch.setattr(world.store, "aside", failing)
        for _ in range(3):
            await world.rounds.tick()
            (await world.space.reserve(100)).release()
    assert world.present() == set(digests[1:])
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["quarantine cannot be swept"]


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


async def test_a_size_that_nobody_knows(world: World) -> None:
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


# ------------------------------------------------------------------------------------------------- by hand


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


# ---------------------------------------------------------------------------------------------------- images


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


async def test_what_has_just_come_is_not_dropped_first(images: World) -> None:
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


async def test_names_wait_for_the_index(world: World) -> None:
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
    came = [await world.come(number) for number in range(3)]
    world.store.delete(came[0].digest)
    await world.write_behind.flush()
    world.index.down = False
    await world.rounds.tick()
    await world.rounds.tick()
    assert await world.port.usage() == Usage(2, 200)
    world.index.calls.clear()
    await world.write_behind.flush()
    assert "put" not in world.index.calls


async def test_blobs_wait_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many are remembered and no more; the rest is left to the comparison with the disk."""
    monkeypatch.setattr(write_behind, "_MOST_BLOBS", 2)
    world = World()
    await world.index.index.set_marker(MARK)
    world.index.down = True
    for number in range(3):
        await world.come(number)
    world.index.down = False
    await world.rounds.tick()
    await world.rounds.tick()
    assert await world.port.usage() == Usage(2, 200)


async def test_without_an_index_nobody_evicts_twice(world: World) -> None:
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


# --------------------------------------------------------------------------------------- disk and index differ


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
    world.index.before["drop"] = lambda: void(world.store.put(digests[0], content))
    await world.space.reserve(None)
    assert digests[0] in world.present()
    assert await world.port.get(digests[0]) is not None
    assert await world.port.usage() == Usage(9, 900)


def void(_: object) -> None:
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


async def test_what_is_pinned_after_it_was_chosen(world: World) -> None:
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


# ------------------------------------------------------------------------------------------- without an index


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


async def test_fills_that_begin_together_walk_once(world: World) -> None:
    """Without an index, they wait for one sum."""
    world.index.down = True
    await world.add(1)
    await asyncio.gather(*(world.space.reserve(10) for _ in range(5)))
    world.clock.time += 50
    await asyncio.gather(*(world.space.reserve(10) for _ in range(5)))
    assert world.store.walks == 2


async def test_a_large_store_is_not_read_for_a_short_plan(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an index a plan of a large store is refused to who wants its beginning alone, and made in whole."""
    monkeypatch.setattr(space_module, "_SOON", 60.0)
    world.index.down = True
    first = await world.add(1)
    assert [victim.digest for victim in await world.space.plan(1, short=True)] == [first]
    for number in range(10_001):
        world.store.put(Digest.of(content := b"%d" % number), content)
    world.clock.time += 50
    with pytest.raises(IndexUnavailable, match="too large"):
        await world.space.plan(1, short=True)
    assert await world.space.plan(1)


async def test_how_full_it_is_may_not_be_known_yet(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_a_dead_index_and_what_others_have_stored_since(world: World) -> None:
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


async def test_uses_kept_in_memory_are_bounded(world: World) -> None:
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


# --------------------------------------------------------------------------------------------------- running


async def until(condition: Callable[[], bool]) -> None:
    """Let others work until it is so."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # what is waited for is told by nobody
            await asyncio.sleep(0.001)


class Turns:
    """A `sleep` that waits for the test."""

    def __init__(self) -> None:
        self.asked = 0
        self._go: asyncio.Queue[None] = asyncio.Queue()

    async def __call__(self, seconds: float) -> None:
        self.asked += 1
        await self._go.get()

    async def next(self) -> None:
        """One round; returns when it is over."""
        asked = self.asked
        self._go.put_nowait(None)
        await until(lambda: self.asked > asked)


async def test_it_runs_in_rounds(world: World) -> None:
    """Each round flushes uses and comes back below the high water; trouble with the disk does not end it."""
    turns = Turns()
    parts = world.another(lambda: (), sleep=turns)
    running = asyncio.ensure_future(parts.rounds.run())
    await until(lambda: turns.asked == 1)
    digests = [await world.add(number) for number in range(10)]
    parts.write_behind.touch(digests[0])
    await turns.next()
    assert world.present() == {digests[0], *digests[3:]}
    found = await world.port.get(digests[0])
    assert found is not None
    assert found.last_used == START
    world.store.failing = True
    await turns.next()
    world.store.failing = False
    await world.add(20, 200)
    await turns.next()
    assert world.present() == {digests[0], *digests[5:], *sized(world, 20, 200)}
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def sized(world: World, number: int, size: int) -> set[Digest]:
    """The digest of a blob that `add` made."""
    digest = Digest.of(f"{number:08}".encode().ljust(size, b"."))
    world.store.stat(digest)
    return {digest}


async def test_stopping_stops_a_rebuild(world: World) -> None:
    """A rebuild under way ends with `run`."""
    begun, never = asyncio.Event(), asyncio.Event()
    ended: list[str] = []

    async def rebuild() -> None:
        begun.set()
        try:
            await never.wait()
        finally:
            ended.append("rebuild")

    turns = Turns()
    parts = world.another(lambda: (), rebuild=rebuild, sleep=turns)
    await world.port.clear()
    running = asyncio.ensure_future(parts.rounds.run())
    await turns.next()
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended == ["rebuild"]


# ------------------------------------------------------------------------------------------------ many blobs


class Counted:
    """A store of a hundred thousand blobs of 1000 bytes that exist as a set of names."""

    def __init__(self, digests: Sequence[Digest]) -> None:
        self.names = set(digests)
        self.deleted: list[Digest] = []

    def delete(self, digest: Digest) -> int:
        if digest not in self.names:
            return 0
        self.names.remove(digest)
        self.deleted.append(digest)
        return 1000

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
        exclusive=lambda: held(asyncio.Lock()),
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
        exclusive=lambda: held(asyncio.Lock()),
        now=Clock(START),
    )
    await parts.space.make_room(35_000)
    assert set(store.deleted) == {*digests[:20], *digests[40:60]}
    assert watched.records_read <= 64 + 16 * 19

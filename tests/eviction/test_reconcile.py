"""The index made to agree with the disk. Row numbers are those of the list of faults."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog

from mirror.errors import IndexUnavailable, StoreError
from mirror.eviction.reconcile import MARK, Reconciled, drop_loose_links, reconcile
from mirror.graph.blob_places import BlobPlaces
from mirror.graph.manifests import has_blob
from mirror.index.embedded import EmbeddedIndex
from mirror.index.redis import RedisIndex
from mirror.intake.grants import Grants
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST
from mirror.oci.reference import Repo
from mirror.policy.records import BlobRole, ContentRecord, ManifestRecord, References, TagRecord, Usage
from mirror.ports import ContentIndex
from tests.support.hooked import Hooked
from tests.support.memory_hosting import MemoryContents, MemoryHostedBlobs
from tests.support.memory_index import MemoryIndex
from tests.support.memory_store import MemoryCatalog, MemoryStore
from tests.support.redis_server import RedisServer

ALPINE = Repo("docker.io", "library/alpine")
OTHER = Repo("ghcr.io", "owner/other")
CONFIG, LAYER, SHARED = b"config", b"layer" * 100, b"shared" * 50


class Disk:
    """A store and a catalog that a few pulls have filled."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.catalog = MemoryCatalog()
        self.image = self.manifest(ALPINE, OCI_MANIFEST, config=CONFIG, layers=[LAYER, SHARED])
        self.list = self.manifest(ALPINE, OCI_INDEX, manifests=[self.image])
        self.other = self.manifest(OTHER, OCI_MANIFEST, config=b"{}", layers=[SHARED])
        self.catalog.put_tag(ALPINE, TagRecord("latest", self.list, OCI_INDEX, 1, 1.0))
        for number, content in enumerate((CONFIG, LAYER, SHARED, b"{}")):
            self.add(content, used=1000.0 + number)

    def add(self, content: bytes, *, used: float = 0.0) -> Digest:
        """A blob."""
        digest = Digest.of(content)
        self.store.put(digest, content)
        self.store.mark_used({digest: used})
        return digest

    def manifest(self, repo: Repo, media_type: str, **named: Any) -> Digest:
        """A manifest of a repository that names other content; its blobs are not added."""

        def descriptor(content: bytes | Digest) -> dict[str, Any]:
            if isinstance(content, Digest):
                size = self.store.stat(content).size
                return {"mediaType": OCI_MANIFEST, "digest": str(content), "size": size}
            return {"mediaType": "x/y", "digest": str(Digest.of(content)), "size": len(content)}

        body = {"schemaVersion": 2, "mediaType": media_type} | {
            name: [descriptor(each) for each in value] if isinstance(value, list) else descriptor(value)
            for name, value in named.items()
        }
        content = json.dumps(body).encode()
        digest = self.add(content, used=500.0)
        self.catalog.put_manifest(repo, ManifestRecord(digest, media_type, len(content), 1.0))
        return digest

    @property
    def usage(self) -> Usage:
        """By the disk."""
        sizes = [info.size for info in self.store.walk()]
        return Usage(len(sizes), sum(sizes))


@pytest.fixture
def disk() -> Disk:
    """Of its own for each test."""
    return Disk()


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """An empty one for each test."""
    with RedisServer() as server:
        yield server


@pytest.fixture(params=["memory", "embedded", "redis"])
async def index(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ContentIndex]:
    """Each of the three, empty."""
    index: ContentIndex
    if request.param == "memory":
        index = MemoryIndex()
    elif request.param == "embedded":
        index = EmbeddedIndex(tmp_path / "index.sqlite3")
    else:
        server: RedisServer = request.getfixturevalue("redis_server")
        index = RedisIndex(server.address, store_id="test", budget=60.0, now=lambda: 0.0)
    yield index
    await index.aclose()


async def everything(index: ContentIndex, disk: Disk) -> tuple[Any, ...]:
    """All that an index says about a disk."""
    digests = [info.digest for info in disk.store.walk()]
    return (
        await index.usage(),
        *[await index.least_recently_used(standing, 1000) for standing in BlobRole],
        await index.successors(digests),
        await index.marker(),
        [await index.get(digest) for digest in digests],
        [await index.linked(repo, digest) for digest in digests for repo in (ALPINE, OTHER)],
    )


async def test_an_empty_index_learns_everything(index: ContentIndex, disk: Disk) -> None:
    """Row 49: blobs with their sizes and last uses, links of each repository, and the marker, from the disk alone."""
    result = await reconcile(disk.store, disk.catalog, index)
    assert result == Reconciled(
        blobs=7,
        bytes=disk.usage.bytes,
        added=7,
        dropped=0,
        repositories=2,
        manifests=3,
        links=8,
        skipped=0,
    )
    assert await index.usage() == disk.usage
    assert await index.get(Digest.of(LAYER)) == ContentRecord(Digest.of(LAYER), len(LAYER), 1001.0)
    assert {each.digest for each in await index.least_recently_used(BlobRole.ROOT, 10)} == {disk.list, disk.other}
    assert [each.last_used for each in await index.least_recently_used(BlobRole.NAMED, 10)] == [
        500.0,
        *range(1000, 1004),
    ]
    assert await index.least_recently_used(BlobRole.LOOSE, 10) == []
    below = await index.successors([disk.list, disk.image])
    assert {each.record.digest: (each.parents, each.is_manifest) for each in below[disk.list]} == {
        disk.image: (1, True)
    }
    assert {each.record.digest: each.parents for each in below[disk.image]} == {
        Digest.of(CONFIG): 1,
        Digest.of(LAYER): 1,
        Digest.of(SHARED): 2,
    }
    for repo, digest, size in (
        (ALPINE, disk.list, disk.store.stat(disk.list).size),
        (ALPINE, disk.image, disk.store.stat(disk.image).size),
        (ALPINE, Digest.of(CONFIG), len(CONFIG)),
        (ALPINE, Digest.of(LAYER), len(LAYER)),
        (ALPINE, Digest.of(SHARED), len(SHARED)),
        (ALPINE, disk.other, None),
        (OTHER, Digest.of(SHARED), len(SHARED)),
        (OTHER, Digest.of(LAYER), None),
        (OTHER, disk.other, disk.store.stat(disk.other).size),
    ):
        assert await index.linked(repo, digest) == size
    assert await index.marker() == MARK


@pytest.mark.parametrize("has_copies", [False, True])
async def test_copies_of_hosted_images_are_known_as_images(index: ContentIndex, disk: Disk, has_copies: bool) -> None:
    """What a hosted manifest names is recorded if the disk has copies, which are evicted; it grants nothing, and no
    record is dropped, although it is old and its manifest is not on the disk.
    """
    disk.store.delete(disk.other)
    places = BlobPlaces(disk.store, disk.store, lambda repo: True, has_copies)
    await reconcile(disk.store, disk.catalog, index, places=places)
    roots = {each.digest for each in await index.least_recently_used(BlobRole.ROOT, 10)}
    assert roots == ({disk.list} if has_copies else set())
    assert await index.linked(ALPINE, Digest.of(LAYER)) is None
    assert disk.catalog.get_manifest(OTHER, disk.other) is not None


async def test_twice_changes_nothing(index: ContentIndex, disk: Disk) -> None:
    """Row 55: a second run finds all as it should be, and leaves it so."""
    await reconcile(disk.store, disk.catalog, index)
    before = await everything(index, disk)
    result = await reconcile(disk.store, disk.catalog, index)
    assert (result.added, result.dropped) == (0, 0)
    assert await everything(index, disk) == before


async def test_the_disk_wins(index: ContentIndex, disk: Disk) -> None:
    """Row 55: records without a file are dropped, unknown files added, wrong sizes put right, exactly counted."""
    await reconcile(disk.store, disk.catalog, index)
    for content in (LAYER, CONFIG):
        disk.store.delete(Digest.of(content))
    disk.add(b"new one", used=7.0)
    await index.put([ContentRecord(Digest.of(SHARED), 1, 1.0), ContentRecord(Digest.of(b"never was"), 50, 1.0)])
    result = await reconcile(disk.store, disk.catalog, index)
    assert (result.added, result.dropped) == (1, 3)
    assert await index.usage() == disk.usage
    recorded = {digest async for batch in index.digests() for digest in batch}
    assert recorded == {info.digest for info in disk.store.walk()}
    shared = await index.get(Digest.of(SHARED))
    assert shared == ContentRecord(Digest.of(SHARED), len(SHARED), 1002.0)


async def test_later_times_of_use_in_the_index_stay(index: ContentIndex, disk: Disk) -> None:
    """Later uses are not on disk yet, and a rebuild leaves them."""
    await index.put([ContentRecord(Digest.of(LAYER), len(LAYER), 5000.0)])
    await reconcile(disk.store, disk.catalog, index)
    assert await index.get(Digest.of(LAYER)) == ContentRecord(Digest.of(LAYER), len(LAYER), 5000.0)
    assert await index.usage() == disk.usage


async def test_the_use_of_a_manifest_is_one_of_its_index(index: ContentIndex, disk: Disk) -> None:
    """The disk notes that a platform's manifest was used; its index must not be colder for that."""
    disk.store.mark_used({disk.image: 7000.0})
    await reconcile(disk.store, disk.catalog, index)
    found = await index.get(disk.list)
    assert found is not None
    assert found.last_used == 7000.0


async def test_manifests_that_cannot_be_read_are_skipped(index: ContentIndex, disk: Disk) -> None:
    """Damaged, gone or malformed, each is counted, and the others are linked."""
    disk.store.damage(disk.image, b"rubbish")
    disk.store.delete(disk.other)
    nonsense = disk.add(b"[1, 2")
    disk.catalog.put_manifest(OTHER, ManifestRecord(nonsense, OCI_MANIFEST, 5, 1.0))
    result = await reconcile(disk.store, disk.catalog, index)
    assert (result.manifests, result.skipped) == (1, 3)
    assert await index.linked(ALPINE, disk.list) is not None
    assert await index.linked(ALPINE, Digest.of(LAYER)) is None
    assert await index.marker() == MARK


async def test_manifests_that_were_evicted_are_forgotten(index: ContentIndex, disk: Disk) -> None:
    """What was noted of one a day ago or earlier goes, without a word in the log; of a later one it stays: the manifest
    may be on its way. Those that are there, or damaged, stay noted.
    """
    disk.store.delete(disk.other)
    late = Digest.of(b"on its way")
    disk.catalog.put_manifest(OTHER, ManifestRecord(late, OCI_MANIFEST, 10, time.time()))
    disk.store.damage(disk.image, b"rubbish")
    with structlog.testing.capture_logs() as lines:
        await reconcile(disk.store, disk.catalog, index)
    assert [record.digest for record in disk.catalog.manifests(OTHER)] == [late]
    assert {record.digest for record in disk.catalog.manifests(ALPINE)} == {disk.list, disk.image}
    assert [line["digest"] for line in lines if line["event"] == "manifest skipped by reconcile"] == [str(disk.image)]
    assert (await reconcile(disk.store, disk.catalog, index)).skipped == 2


async def test_a_manifest_that_is_fetched_again_while_its_record_goes(index: ContentIndex, disk: Disk) -> None:
    """By a client at that moment, its bytes first: its record is there afterwards."""
    content = disk.store.read(disk.other, 1000)
    disk.store.delete(disk.other)
    catalog = Hooked(disk.catalog)
    fetched = ManifestRecord(disk.other, OCI_MANIFEST, len(content), time.time())

    def fetch() -> None:
        disk.store.put(disk.other, content)
        disk.catalog.put_manifest(OTHER, fetched)

    catalog.before("drop_manifest", fetch)
    await reconcile(disk.store, catalog, index)
    assert not catalog.pending
    assert disk.catalog.get_manifest(OTHER, disk.other) == fetched


HOSTED = Repo("corp", "team/app")


@pytest.mark.parametrize("configured", [True, False], ids=["hosted", "hosted no more"])
async def test_hosted_manifests_are_never_forgotten(index: ContentIndex, disk: Disk, configured: bool) -> None:
    """They have no name in the cache, which looks like an eviction. Their records stay all the same, also if somebody
    removes the registry from the configuration for a day.
    """
    hosted = MemoryHostedBlobs(disk.store)
    digest = disk.manifest(HOSTED, OCI_MANIFEST, config=CONFIG, layers=[LAYER])
    hosted.adopt(digest)
    disk.store.delete(digest)
    record = disk.catalog.get_manifest(HOSTED, digest)
    assert record
    assert record.fetched_at < time.time() - 2 * 86400
    both = MemoryContents(disk.store, hosted)
    places = BlobPlaces(disk.store, both, lambda repo: configured)
    result = await reconcile(disk.store, disk.catalog, index, places=places)
    assert disk.catalog.get_manifest(HOSTED, digest) == record
    assert await index.linked(HOSTED, Digest.of(LAYER)) is None
    assert result.repositories == (0 if configured else 3)


async def test_hosted_repositories_are_unknown_to_the_index(index: ContentIndex, disk: Disk) -> None:
    """Even if the cache has their manifest as well."""
    disk.manifest(HOSTED, OCI_MANIFEST, config=CONFIG, layers=[LAYER])
    places = BlobPlaces(disk.store, disk.store, lambda repo: repo == HOSTED)
    assert (await reconcile(disk.store, disk.catalog, index, places=places)).repositories == 2
    assert await index.linked(HOSTED, Digest.of(LAYER)) is None


async def test_many_blobs(index: ContentIndex, disk: Disk) -> None:
    """More than one batch of everything."""
    for number in range(2500):
        disk.add(str(number).encode(), used=float(number))
    strays = [ContentRecord(Digest.of(f"stray {number}".encode()), 10, 1.0) for number in range(2500)]
    await index.put(strays)
    result = await reconcile(disk.store, disk.catalog, index)
    assert (result.blobs, result.added, result.dropped) == (2507, 2507, 2500)
    assert await index.usage() == disk.usage


def remember(waits: list[float]) -> Callable[[float], Awaitable[None]]:
    """A `sleep` that takes no time."""

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    return sleep


async def test_an_index_that_is_late_now_and_then(disk: Disk) -> None:
    """Calls that fail once do not make the whole begin anew."""

    class Late(MemoryIndex):
        calls = 0

        async def put(self, records: Sequence[ContentRecord]) -> None:
            self.calls += 1
            if self.calls % 2:
                raise IndexUnavailable("late")
            await super().put(records)

    for number in range(300):
        disk.add(str(number).encode())
    index = Late()
    waits: list[float] = []
    result = await reconcile(disk.store, disk.catalog, index, sleep=remember(waits))
    assert waits == [1.0] * 6
    assert result.added == 307
    assert await index.usage() == disk.usage


async def test_blobs_that_come_and_go_meanwhile(disk: Disk) -> None:
    """While it runs, blobs are added and evicted as always; what is left agrees with the disk."""
    index = MemoryIndex()
    for number in range(3000):
        disk.add(str(number).encode())
    running = asyncio.ensure_future(reconcile(disk.store, disk.catalog, index))
    number = 0
    while not running.done():
        new = disk.add(f"new {number}".encode())
        await index.put([ContentRecord(new, disk.store.stat(new).size, 1.0)])
        gone = Digest.of(str(number).encode())
        disk.store.delete(gone)
        await index.drop([gone])
        number += 1
        await asyncio.sleep(0)
    await running
    await reconcile(disk.store, disk.catalog, index)
    assert await index.usage() == disk.usage


# ---------------------------------------------------------------------------------------------------- loose links


async def _drop_links(index: ContentIndex, disk: Disk, growing: Sequence[Digest] = ()) -> int:
    return await drop_loose_links(index, lambda _repo, digest: has_blob(disk.store, digest), growing=lambda: growing)


async def test_links_of_what_is_gone_are_dropped(index: ContentIndex, disk: Disk) -> None:
    """Not of what is here, named, or growing, nor of what is here and not in the index yet."""
    await reconcile(disk.store, disk.catalog, index)
    before = await everything(index, disk)
    late, coming, gone = disk.add(b"late"), Digest.of(b"coming"), [Digest.of(b"gone"), Digest.of(b"gone, too")]
    disk.store.delete(Digest.of(LAYER))
    await index.drop([Digest.of(LAYER)])
    await index.link(ALPINE, dict.fromkeys([late, coming, *gone], 1))
    await index.link(OTHER, {gone[0]: 1})
    assert await _drop_links(index, disk, [coming]) == 3
    assert [await index.linked(ALPINE, digest) for digest in (late, coming, *gone)] == [1, 1, None, None]
    assert await index.linked(OTHER, gone[0]) is None
    assert await index.linked(ALPINE, Digest.of(LAYER)) == len(LAYER)
    assert await _drop_links(index, disk, [coming]) == 0
    disk.add(LAYER, used=1001.0)
    await index.put([ContentRecord(Digest.of(LAYER), len(LAYER), 1001.0)])
    await index.unlink(ALPINE, [late, coming])
    disk.store.delete(late)
    assert await everything(index, disk) == before


async def test_no_link_is_dropped_if_it_is_not_known_what_is_here(index: ContentIndex, disk: Disk) -> None:
    """While the index is rebuilt; and where the disk cannot be read, of that content alone."""
    links = {Digest.of(b"gone"): 1, Digest.of(b"unreadable"): 1}
    await index.link(ALPINE, links)
    assert await _drop_links(index, disk) == 0
    await reconcile(disk.store, disk.catalog, index)

    def is_here(_repo: Repo, digest: Digest) -> bool:
        if digest == Digest.of(b"unreadable"):
            raise StoreError("EIO")
        return False

    assert await drop_loose_links(index, is_here, growing=lambda: ()) == 1
    assert [await index.linked(ALPINE, digest) for digest in links] == [None, 1]

    def broken() -> Sequence[Digest]:
        raise StoreError("EIO")

    with pytest.raises(StoreError):
        await drop_loose_links(index, lambda _repo, _digest: False, growing=broken)
    assert await index.linked(ALPINE, Digest.of(b"unreadable")) == 1


async def test_an_image_that_comes_back_while_its_links_are_dropped(index: ContentIndex, disk: Disk) -> None:
    """After the look at the disk: its links go, and other processes find by its manifest what they may serve."""
    await reconcile(disk.store, disk.catalog, index)
    layer, loop = Digest.of(b"again"), asyncio.get_running_loop()
    await index.link(ALPINE, {layer: 5})

    async def pulled() -> None:
        disk.add(b"again")
        image = disk.manifest(ALPINE, OCI_MANIFEST, config=CONFIG, layers=[b"again"])
        await index.link(ALPINE, {layer: 5, image: 1, Digest.of(CONFIG): len(CONFIG)})
        await index.put([ContentRecord(layer, 5, 1.0), ContentRecord(image, disk.store.stat(image).size, 1.0)])
        await index.record_references([References(image, (), (Digest.of(CONFIG), layer))])

    def is_here(_repo: Repo, digest: Digest) -> bool:
        found = has_blob(disk.store, digest)
        asyncio.run_coroutine_threadsafe(pulled(), loop).result()
        return found

    assert await drop_loose_links(index, is_here, growing=lambda: ()) == 1
    assert await index.linked(ALPINE, layer) is None
    for repo, size in ((ALPINE, 5), (OTHER, None)):
        grants = Grants(index, disk.catalog, disk.store)
        assert await grants.size(repo, layer) == size
        await grants.aclose()

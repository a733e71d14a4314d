"""Which blobs a repository may serve, as its manifests on disk say it where the index has no word."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mirror.errors import BlobDamaged, StoreError
from mirror.eviction.write_behind import WriteBehind
from mirror.graph.manifests import read_stored
from mirror.index.sorted_tags import LocalSortedTags
from mirror.intake.grants import Grants, granted_by
from mirror.intake.intake import Intake
from mirror.intake.tag_history import TagHistories
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST, SCHEMA_1
from mirror.oci.reference import Repo
from mirror.policy.records import ContentRecord, ManifestRecord
from mirror.repository.caches import Caches
from mirror.repository.stored import StoredRepository
from mirror.repository.tag_windows import TagWindows
from tests.support.clock import Clock
from tests.support.here import APP, Here
from tests.support.hosted_world import MemoryFreezes
from tests.support.memory_index import MemoryIndex
from tests.support.memory_store import MemoryCatalog, MemoryStore


class Counting(MemoryCatalog):
    """Counts manifests that are read in full."""

    def __init__(self) -> None:
        super().__init__()
        self.in_full: Counter[Digest] = Counter()
        self.unreadable: set[Digest] = set()

    def get_manifest(self, repo: Repo, digest: Digest) -> ManifestRecord | None:
        self.in_full[digest] += 1
        if digest in self.unreadable:
            raise StoreError("EIO")
        return super().get_manifest(repo, digest)


class CountingStore(MemoryStore):
    """Counts files that are opened."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: Counter[Digest] = Counter()
        self.unreadable: set[Digest] = set()

    def read(self, digest: Digest, limit: int) -> bytes:
        self.opened[digest] += 1
        if digest in self.unreadable:
            raise StoreError("EIO")
        return super().read(digest, limit)


class Disk:
    """What a repository has on the disk, with an index that knows nothing of it."""

    def __init__(self) -> None:
        self.store, self.catalog, self.index = CountingStore(), Counting(), MemoryIndex()
        self.here = Here(self.store, self.catalog)
        self.grants = Grants(self.index, self.catalog, self.store)

    async def size(self, blob: bytes | Digest) -> int | None:
        """What the repository may serve."""
        return await self.grants.size(APP, blob if isinstance(blob, Digest) else Digest.of(blob))

    def many_images(self, count: int) -> list[bytes]:
        """Images of one layer each; returns the layers."""
        layers = [b"layer %d" % number for number in range(count)]
        for number, layer in enumerate(layers):
            self.here.image([layer], config={"only": number})
        return layers

    @property
    def reads(self) -> tuple[int, int]:
        """How many files of manifests were opened, and how many manifests were read in full."""
        return self.store.opened.total(), self.catalog.in_full.total()


@pytest.fixture
async def disk() -> AsyncIterator[Disk]:
    made = Disk()
    yield made
    await made.grants.aclose()


async def test_what_another_process_has_fetched_just_now_is_found(disk: Disk) -> None:
    """A manifest that came after the disk was read grants what it names at once. Invented digests open no file."""
    disk.here.image([b"first"], config={"only": 1})
    assert await disk.size(b"first") == 5
    assert await disk.size(b"second one") is None
    disk.here.image([b"second one"], config={"only": 2})
    assert await disk.size(b"second one") == 10
    assert await disk.grants.size(Repo("ghcr.io", "owner/app"), Digest.of(b"second one")) is None
    # each was looked at once, and read in full once
    assert disk.reads == (4, 2)
    for number in range(20):
        assert await disk.size(b"made up %d" % number) is None
    assert disk.reads == (4, 2)


class Gated(MemoryCatalog):
    """Lists manifests, and waits at a gate before it gives the list."""

    def __init__(self) -> None:
        super().__init__()
        self.listed, self.gate = threading.Event(), threading.Event()

    def manifest_digests(self, repo: Repo) -> Iterable[Digest]:
        found = list(super().manifest_digests(repo))
        self.listed.set()
        assert self.gate.wait(30)
        return found


async def test_what_came_while_the_disk_was_being_read_is_found() -> None:
    """Another worker fetches a manifest while this one reads the disk for somebody else: whoever asks after that has
    what it grants, and is not sent upstream, or away from a sealed mirror.
    """
    catalog = Gated()
    here = Here(MemoryStore(), catalog)
    grants = Grants(MemoryIndex(), catalog, here.store)
    first = asyncio.create_task(grants.size(APP, Digest.of(b"made up")))
    assert await asyncio.to_thread(catalog.listed.wait, 30)
    here.image([b"a layer"], config={"only": 1})
    second = asyncio.create_task(grants.size(APP, Digest.of(b"a layer")))
    for _ in range(10):
        await asyncio.sleep(0)
    catalog.gate.set()
    assert await first is None
    assert await second == 7
    await grants.aclose()


async def test_others_who_ask_all_the_time_do_not_keep_what_is_old() -> None:
    """A record that grants more than before does so within seconds, although there is always somebody who waits for an
    invented digest.
    """
    catalog, clock = Gated(), Clock()
    here = Here(MemoryStore(), catalog)
    grants = Grants(MemoryIndex(), catalog, here.store, clock=clock)
    image = here.image([b"one", b"two"])
    record = catalog.get_manifest(APP, image.digest)
    assert record is not None
    catalog.put_manifest(APP, replace(record, grants=(Digest.of(b"one"),)))
    catalog.gate.set()
    assert await grants.size(APP, Digest.of(b"one")) == 3
    assert await grants.size(APP, Digest.of(b"two")) is None
    catalog.gate.clear()
    catalog.listed.clear()
    waiting = asyncio.create_task(grants.size(APP, Digest.of(b"made up")))
    assert await asyncio.to_thread(catalog.listed.wait, 30)
    catalog.put_manifest(APP, record)
    clock.time += 3.0
    granted = asyncio.create_task(grants.size(APP, Digest.of(b"two")))
    for _ in range(10):
        await asyncio.sleep(0)
    catalog.gate.set()
    assert await granted == 3
    assert await waiting is None
    await grants.aclose()


@pytest.mark.parametrize("images", [100, 1000])
async def test_only_manifests_that_mention_a_blob_are_read_in_full(disk: Disk, images: int) -> None:
    """All others are looked at, each once for all blobs, and only until one grants the blob."""
    layers = disk.many_images(images)
    for number in (images - 1, 0, images // 2):
        assert await disk.size(layers[number]) == len(layers[number])
    looks, in_full = disk.reads
    assert in_full == 3
    assert looks <= images + in_full
    # what was read in full grants all that it names
    [manifest] = [digest for digest, count in disk.catalog.in_full.items() if count][:1]
    assert await disk.size(manifest) is not None
    assert disk.reads == (looks, in_full)


async def test_nobody_looks_further_than_needed(disk: Disk) -> None:
    """Not further than to the first manifest that grants the blob; the next caller goes on from there."""
    layers = disk.many_images(1000)
    listed = list(disk.catalog.manifest_digests(APP))
    last = next(layer for layer in layers if str(Digest.of(layer)).encode() in disk.store.read(listed[-1], 1 << 20))
    disk.store.opened.clear()
    assert await disk.size(last) == len(last)
    assert disk.reads == (1 + 1, 1)
    assert await disk.size(b"made up") is None
    assert disk.reads == (1000 + 1, 1)


async def test_a_rebuild_of_the_index_answers_whoever_reads_the_disk(disk: Disk) -> None:
    """What the index learns while manifests are looked at ends that. A link without a size does not."""
    disk.many_images(1000)
    named = Digest.of(b"what no manifest names")
    await disk.index.link(APP, {named: -1})
    asked = 0
    linked = disk.index.linked

    async def learns(repo: Repo, digest: Digest) -> int | None:
        nonlocal asked
        asked += 1
        if asked == 3:
            await disk.index.link(APP, {named: 7})
        return await linked(repo, digest)

    disk.index.linked = learns  # type: ignore[method-assign]
    assert await disk.size(named) == 7
    # it is asked first, and after each step, of which the second is twice as long as the first
    assert (asked, disk.reads) == (3, (256 + 512, 0))


async def test_callers_share_what_is_read(disk: Disk) -> None:
    """Many at once, for blobs of all images and for invented ones: each manifest is looked at once, and read in full
    at most once.
    """
    layers = disk.many_images(100)
    wanted = [Digest.of(layer) for layer in layers[:50]] + [Digest.of(b"made up %d" % number) for number in range(50)]
    # two blobs of each image
    wanted += [Digest.of(json.dumps({"only": number}).encode()) for number in range(50)]
    sizes = await asyncio.gather(*(disk.size(digest) for digest in wanted))
    assert sizes[:100] == [*map(len, layers[:50])] + [None] * 50
    assert None not in sizes[100:]
    assert max(disk.catalog.in_full.values()) == 1
    assert disk.reads == (100 + 50, 50)


async def test_callers_share_what_is_too_large_to_be_kept(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as one of them waits: many at once cost no more than one."""
    monkeypatch.setattr("mirror.intake.grants._MEMORY", 1000)
    disk.many_images(100)
    disk.grants = Grants(disk.index, disk.catalog, disk.store)
    asked = (disk.size(b"made up %d" % number) for number in range(20))
    assert {*await asyncio.gather(*asked)} == {None}
    assert disk.reads == (100, 0)


async def test_a_digest_may_be_written_with_escapes(disk: Disk) -> None:
    """JSON lets a manifest hide the digest of its layer in its bytes (RFC 8259, section 7)."""
    for number, blob in enumerate((b"a layer", b"another one")):
        digest = str(Digest.of(blob))
        escaped = "".join(f"\\u{ord(each):04{'xX'[place % 2]}}" for place, each in enumerate(digest))
        hidden = escaped if number else escaped[:6] + digest[1:]
        text = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [disk.here.blob(blob)]})
        disk.here.raw(text.replace(digest, hidden).encode(), OCI_MANIFEST)
    assert await disk.size(b"a layer") == 7
    assert await disk.size(b"another one") == 11


async def test_a_mention_alone_grants_nothing(disk: Disk) -> None:
    """Not in an annotation, not as a foreign blob, and not as a blob of an index, which nobody has checked."""
    foreign = {**disk.here.blob(b"foreign"), "urls": ["https://elsewhere.test/blob"]}
    disk.here.image([b"own", foreign], annotations={"base": str(Digest.of(b"noted"))})
    disk.here.manifest({"manifests": [disk.here.blob(b"listed")]}, OCI_INDEX)
    for blob in (b"foreign", b"noted", b"listed"):
        assert {*await asyncio.gather(disk.size(blob), disk.size(blob))} == {None}
        assert await disk.size(blob) is None
    # looked at, and each read in full once, whoever asks
    assert disk.reads == (2 + 2, 2)
    assert await disk.size(b"own") == 3


async def test_damaged_and_oversized_manifests_grant_nothing(disk: Disk) -> None:
    """That is no error. Once repaired, a manifest grants what it names."""
    image = disk.here.image([b"a layer"])
    sound = disk.store.read(image.digest, 1 << 20)
    disk.store.damage(image.digest, sound.replace(b"}", b" ", 1))
    disk.here.image([b"in a large one"], config={"only": 1}, annotations={"long": "x" * (4 << 20)})
    assert await disk.size(b"a layer") is None
    assert await disk.size(b"in a large one") is None
    disk.store.damage(image.digest, sound)
    assert await disk.size(b"a layer") == 7


async def test_an_evicted_manifest_grants_nothing_until_it_is_back(disk: Disk) -> None:
    """Whether it was looked at before or not."""
    first, second = disk.here.image([b"one"], config={"only": 1}), disk.here.image([b"two"], config={"only": 2})
    bytes_of = {each: disk.store.read(each, 1 << 20) for each in (first.digest, second.digest)}
    disk.store.delete(first.digest)
    assert await disk.size(b"made up") is None
    disk.store.delete(second.digest)
    assert await disk.size(b"one") is None
    assert await disk.size(b"two") is None
    for digest, content in bytes_of.items():
        disk.store.put(digest, content)
    assert await disk.size(b"one") == 3
    assert await disk.size(b"two") == 3


async def test_a_manifest_that_leaves_the_repository_takes_its_grants_along(disk: Disk) -> None:
    """Until it is back. Its bytes may stay, for another repository."""
    image = disk.here.image([b"one"])
    record = disk.catalog.get_manifest(APP, image.digest)
    assert record is not None
    assert await disk.size(b"made up") is None
    disk.catalog.drop_manifest(APP, image.digest)
    assert await disk.size(b"one") is None
    disk.catalog.put_manifest(APP, record)
    assert [*await asyncio.gather(disk.size(b"one"), disk.size(b"made up"))] == [3, None]


async def test_bytes_that_cannot_be_read_may_grant_any_blob(disk: Disk) -> None:
    """Unless another manifest grants it. When the disk is well again, the answer is certain again."""
    lost = disk.here.image([b"one"], config={"only": 1})
    disk.here.image([b"two"], config={"only": 2})
    disk.store.unreadable.add(lost.digest)
    for _ in range(2):
        with pytest.raises(StoreError, match="not certain"):
            await disk.size(b"made up")
    assert await disk.size(b"two") == 3
    disk.store.unreadable.clear()
    assert await disk.size(b"made up") is None
    assert await disk.size(b"one") == 3


async def test_a_record_that_cannot_be_read_may_grant_what_the_bytes_mention(disk: Disk) -> None:
    """And nothing else: the bytes of a digest never change."""
    lost = disk.here.image([b"one", b"both"], config={"only": 1})
    disk.here.image([b"both"], config={"only": 2})
    disk.catalog.unreadable.add(lost.digest)
    for blob in (Digest.of(b"one"), lost.digest):
        for _ in range(2):
            with pytest.raises(StoreError, match="not certain"):
                await disk.size(blob)
    assert await disk.size(b"both") == 4
    assert await disk.size(b"made up") is None
    disk.catalog.unreadable.clear()
    assert await disk.size(b"one") == 3


async def test_manifests_that_cannot_be_listed_may_grant_any_blob(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known already is granted all the same."""
    disk.here.image([b"one"])
    assert await disk.size(b"made up") is None

    def fails(_repo: Repo) -> Iterable[Digest]:
        raise StoreError("EIO")

    monkeypatch.setattr(disk.catalog, "manifest_digests", fails)
    with pytest.raises(StoreError, match="not certain"):
        await disk.size(b"made up")
    assert await disk.size(b"one") == 3


async def test_a_size_is_looked_for_in_all_manifests(disk: Disk) -> None:
    """Schema 1 names layers without sizes; a manifest that has the size may come at any time."""
    layer = str(Digest.of(b"a layer"))
    disk.here.manifest({"schemaVersion": 1, "fsLayers": [{"blobSum": layer}]}, SCHEMA_1[1])
    assert await disk.size(b"a layer") == -1
    assert await disk.size(b"a layer") == -1
    assert disk.reads == (1 + 1, 1)
    disk.here.image([b"a layer"])
    other = Disk()
    other.here, other.grants = disk.here, Grants(disk.index, disk.catalog, disk.store)
    assert await other.size(b"a layer") == 7
    await other.grants.aclose()


@pytest.mark.parametrize("seed", range(30))
async def test_the_answer_is_that_of_reading_every_manifest(disk: Disk, seed: int) -> None:
    """Whatever a repository has, and in whatever order clients ask."""
    random = Random(seed)
    blobs = [b"blob %d" % number for number in range(12)]
    expected: dict[Digest, set[int]] = {}
    for number in range(random.randrange(1, 25)):
        chosen = random.sample(blobs, random.randrange(1, 5))
        described: list[dict[str, Any]] = [disk.here.blob(blob) for blob in chosen]
        if random.random() < 0.2:
            described[0]["urls"] = ["https://elsewhere.test/blob"]
        kind = random.choice(["image", "image", "artifact", "schema 1", "index", "unknown"])
        body: dict[str, Any] = {"annotations": {"number": str(number), "base": str(Digest.of(random.choice(blobs)))}}
        if kind == "schema 1":
            body |= {"schemaVersion": 1, "fsLayers": [{"blobSum": each["digest"]} for each in described]}
            made = disk.here.manifest(body, SCHEMA_1[1])
        elif kind == "index":
            made = disk.here.manifest({"manifests": described, **body}, OCI_INDEX)
        else:
            types = {"image": OCI_MANIFEST, "artifact": "application/vnd.oci.artifact.manifest.v1+json"}
            listed = "blobs" if kind == "artifact" else "layers"
            made = disk.here.manifest({listed: described, **body}, types.get(kind, "application/vnd.unknown"))
        content = disk.store.read(made.digest, 1 << 20)
        fate = random.random()
        if fate < 0.1:
            disk.store.delete(made.digest)
        elif fate < 0.2:
            disk.store.damage(made.digest, b"rubbish" + content)
        elif fate < 0.3:
            record = disk.catalog.get_manifest(APP, made.digest)
            assert record is not None
            disk.catalog.put_manifest(APP, replace(record, grants=(Digest.of(chosen[-1]),)))
        stored = None
        with suppress(BlobDamaged):
            stored = read_stored(disk.store, disk.catalog, APP, made.digest)
        for digest, size in (granted_by(stored) if stored else {}).items():
            expected.setdefault(digest, set()).add(size)
    asked = [*map(Digest.of, [*blobs, b"made up"]), *expected] * 2
    random.shuffle(asked)
    for digest in asked:
        sizes = expected.get(digest, {None})
        assert await disk.size(digest) in ({size for size in sizes if size != -1} or sizes)


class Busy(MemoryIndex):
    """Takes no writes until it is free."""

    def __init__(self) -> None:
        super().__init__()
        self.free = asyncio.Event()

    async def link(self, repo: Repo, blobs: Mapping[Digest, int]) -> None:
        await self.free.wait()
        await super().link(repo, blobs)

    async def put(self, records: Sequence[ContentRecord]) -> None:
        await self.free.wait()
        await super().put(records)


async def test_a_pull_does_not_wait_for_the_index(tmp_path: Path) -> None:
    """A manifest that the disk has is served while the index takes no writes; this process knows its blobs at once, and
    the index later.
    """
    store, catalog, index = MemoryStore(), MemoryCatalog(), Busy()
    image = Here(store, catalog).image([b"a layer"])
    grants = Grants(index, catalog, store)
    histories = TagHistories(catalog, MemoryFreezes())
    intake = Intake(store, catalog, histories, grants, WriteBehind(store, index, now=lambda: 1.0))
    caches = Caches(store, catalog, TagWindows(LocalSortedTags(tmp_path, 1000, now=lambda: 1.0)), lambda: 1.0)
    stored = await StoredRepository(APP, store, catalog, caches, intake).load(image.digest)
    assert stored is not None
    assert grants.remembered(APP, Digest.of(b"a layer")) == 7
    assert await index.linked(APP, Digest.of(b"a layer")) is None
    index.free.set()
    await intake.aclose()
    assert await index.linked(APP, Digest.of(b"a layer")) == 7
    assert image.digest in await index.successors([image.digest])


# ------------------------------------------------------------------------------------------------------- taken back


async def test_a_grant_that_was_taken_back_is_not_remembered(disk: Disk) -> None:
    """A purge drops the manifest and the link: the blob may still be here for another repository."""
    image = disk.here.image([b"one"], config={"only": 1})
    other = disk.here.image([b"two"], config={"only": 2})
    for blob in (b"one", b"two"):
        assert await disk.size(blob) == 3
    disk.catalog.drop_manifest(APP, image.digest)
    disk.grants.forget(APP, [image.digest, Digest.of(b"one")])
    assert disk.grants.remembered(APP, Digest.of(b"one")) is None
    assert await disk.size(b"one") is None
    assert await disk.size(b"two") == 3
    assert await disk.size(other.digest) is not None


async def test_what_a_manifest_that_is_still_here_names_is_granted_again(disk: Disk) -> None:
    disk.here.image([b"one"])
    assert await disk.size(b"one") == 3
    disk.grants.forget(APP, [Digest.of(b"one")])
    assert await disk.size(b"one") == 3


async def test_what_was_read_before_grants_were_taken_back_is_not_remembered(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer of the index that was under way: it is given once, and not from memory for ever."""
    blob = Digest.of(b"one")
    await disk.index.link(APP, {blob: 3})
    answered, go_on = asyncio.Event(), asyncio.Event()
    linked = disk.index.linked

    async def slowly(repo: Repo, digest: Digest) -> int | None:
        answer = await linked(repo, digest)
        answered.set()
        await go_on.wait()
        return answer

    monkeypatch.setattr(disk.index, "linked", slowly)
    asking = asyncio.create_task(disk.size(blob))
    await answered.wait()
    await disk.index.unlink(APP, [blob])
    disk.grants.forget(APP, [blob])
    go_on.set()
    await asking
    assert await disk.size(blob) is None

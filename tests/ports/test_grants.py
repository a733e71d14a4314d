"""Which blobs a repository may serve, as its manifests on disk say it where the index has no word."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest

from mirror.eviction.write_behind import WriteBehind
from mirror.index.sorted_tags import LocalSortedTags
from mirror.intake.grants import Grants
from mirror.intake.intake import Intake
from mirror.intake.tag_history import TagHistories
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.records import ContentRecord, ManifestRecord
from mirror.repository.caches import Caches
from mirror.repository.stored import StoredRepository
from mirror.repository.tag_windows import TagWindows
from tests.support.here import APP, Here
from tests.support.hosted_world import MemoryFreezes
from tests.support.memory_index import MemoryIndex
from tests.support.memory_store import MemoryCatalog, MemoryStore


class Counting(MemoryCatalog):
    """Counts manifests that are looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.looked_at = 0

    def get_manifest(self, repo: Repo, digest: Digest) -> ManifestRecord | None:
        self.looked_at += 1
        return super().get_manifest(repo, digest)


async def test_what_another_process_has_fetched_just_now_is_found() -> None:
    """A manifest that came after the disk was read grants what it names at once, and is read once."""
    catalog = Counting()
    here = Here(MemoryStore(), catalog)
    grants = Grants(MemoryIndex(), catalog, here.store)
    here.image([b"first"], config={"only": 1})
    assert await grants.size(APP, Digest.of(b"first")) == 5
    assert await grants.size(APP, Digest.of(b"second one")) is None
    here.image([b"second one"], config={"only": 2})
    assert await grants.size(APP, Digest.of(b"second one")) == 10
    assert await grants.size(Repo("ghcr.io", "owner/app"), Digest.of(b"second one")) is None
    before = catalog.looked_at
    for number in range(20):
        assert await grants.size(APP, Digest.of(b"made up %d" % number)) is None
    assert catalog.looked_at == before
    await grants.aclose()


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


def _many_images(here: Here, count: int) -> list[bytes]:
    """Images of one layer each, of which the last one was used last; returns the layers."""
    layers = [b"layer %d" % number for number in range(count)]
    for number, layer in enumerate(layers):
        image = here.image([layer], config={"only": number})
        here.store.mark_used({image.digest: 1e10 + number})
    return layers


@pytest.mark.parametrize("images", [100, 400])
async def test_the_first_blob_costs_the_same_in_every_repository(images: int) -> None:
    """With an index that knows nothing, the manifests that were used last are read, and no others, until one names the
    blob. Nothing more is read for the other blobs of that image.
    """
    catalog = Counting()
    here = Here(MemoryStore(), catalog)
    layers = _many_images(here, images)
    grants = Grants(MemoryIndex(), catalog, here.store)
    assert await grants.size(APP, Digest.of(layers[-3])) == len(layers[-3])
    assert catalog.looked_at == 16
    assert await grants.size(APP, Digest.of(layers[-5])) == len(layers[-5])
    assert catalog.looked_at == 16
    # the oldest one needs them all, each once
    assert await grants.size(APP, Digest.of(layers[0])) == len(layers[0])
    assert catalog.looked_at == images
    await grants.aclose()


async def test_a_rebuild_of_the_index_answers_whoever_reads_the_disk() -> None:
    """What the index learns while manifests are read ends the reading. A link without a size does not."""
    catalog, index = Counting(), MemoryIndex()
    here = Here(MemoryStore(), catalog)
    layers = _many_images(here, 100)
    oldest = Digest.of(layers[0])
    grants = Grants(index, catalog, here.store)
    await index.link(APP, {oldest: -1})
    asked = 0
    linked = index.linked

    async def learns(repo: Repo, digest: Digest) -> int | None:
        nonlocal asked
        asked += 1
        if asked == 4:
            await index.link(APP, {oldest: 7})
        return await linked(repo, digest)

    index.linked = learns  # type: ignore[method-assign]
    assert await grants.size(APP, oldest) == 7
    # it is asked first, after the list, and after each step, of which the second is twice as long as the first
    assert (asked, catalog.looked_at) == (4, 48)
    await grants.aclose()


async def test_callers_share_what_is_read() -> None:
    """Many at once, for blobs of all ages and for invented ones: each manifest is read once."""
    catalog = Counting()
    here = Here(MemoryStore(), catalog)
    layers = _many_images(here, 100)
    grants = Grants(MemoryIndex(), catalog, here.store)
    wanted = [Digest.of(layer) for layer in layers] + [Digest.of(b"made up %d" % number) for number in range(50)]
    sizes = await asyncio.gather(*(grants.size(APP, digest) for digest in wanted))
    assert sizes == [*map(len, layers)] + [None] * 50
    assert catalog.looked_at == 100
    await grants.aclose()


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

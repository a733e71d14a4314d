"""Which blobs a repository may serve, as its manifests on disk say it where the index has no word."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable

from mirror.intake.grants import Grants
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.records import ManifestRecord
from tests.support.here import APP, Here
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

"""Which blobs a repository may serve, as its manifests on disk say it where the index has no word."""

from __future__ import annotations

from mirror.index.memory import MemoryIndex
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.records import ManifestRecord
from mirror.repository.grants import Grants
from mirror.store.memory import MemoryCatalog, MemoryStore
from tests.support.here import APP, Here


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

"""The store and the catalog in dicts."""

from __future__ import annotations

import pytest

from mirror.errors import StoreFull
from mirror.oci.digest import Digest
from mirror.ports import BlobStore, Catalog
from tests.support.catalog_suite import CatalogSuite
from tests.support.memory_store import MemoryCatalog, MemoryStore
from tests.support.store_suite import CONTENT, DIGEST, REGISTRY, Damage, Pieces, StoreSuite, quiet


class TestMemoryStore(StoreSuite):
    """The simplest one passes the suite that it is the model of."""

    @pytest.fixture
    def store(self) -> MemoryStore:
        """Empty."""
        return MemoryStore()

    @pytest.fixture
    def another(self, store: BlobStore) -> BlobStore:
        """Nobody else can have the same disk."""
        return store

    @pytest.fixture
    def damage(self, store: MemoryStore) -> Damage:
        """A bad disk."""
        return store.damage


class TestMemoryCatalog(CatalogSuite):
    """Likewise."""

    @pytest.fixture
    def catalog(self) -> Catalog:
        """Empty."""
        return MemoryCatalog()

    @pytest.fixture
    def another(self, catalog: Catalog) -> Catalog:
        """Nobody else can have the same."""
        return catalog


def test_a_full_disk() -> None:
    """What does not fit is `StoreFull`; bytes before it stay, and after a delete there is room to go on."""
    store = MemoryStore(disk=len(CONTENT) + 100)
    store.put(Digest.of(b"x" * 50_000), b"x" * 50_000)
    with pytest.raises(StoreFull):
        store.put(DIGEST, CONTENT)
    ingest = store.ingest(DIGEST, REGISTRY)
    assert ingest.try_lock()
    ingest.expect(len(CONTENT))
    with pytest.raises(StoreFull):
        ingest.fill(Pieces(CONTENT), quiet)
    assert ingest.offset > 0
    assert store.free() == (store.disk - 50_000 - ingest.offset, store.disk)
    store.delete(Digest.of(b"x" * 50_000))
    ingest.fill(Pieces(CONTENT, start=ingest.offset), quiet)
    ingest.verify()
    ingest.commit()
    assert store.free() == (100, store.disk)

"""The cache's copies of content that is erased from hosted repositories."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from mirror.eviction.evictor import Evictor
from mirror.eviction.purge import KeptImages
from mirror.graph.manifests import has_blob, manifest_of_bytes
from mirror.graph.walk import damaged_may_be_missing, walk
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.oci.reference import Repo
from mirror.policy.routing import RoutingTable
from mirror.ports import BlobStore, Catalog


class CachedCopies:
    """Drops blobs from the cache, except those that cached images need."""

    def __init__(
        self,
        store: BlobStore,
        catalog: Catalog,
        files: BlobStore,
        evictor: Evictor,
        table: RoutingTable,
        kept: KeptImages | None = None,
    ) -> None:
        """`store` is the cache; `files` are all files that the evictor may drop, the same unless there are copies of
        hosted blobs beside it. `table` says which registries are hosted. `kept` is where cached content is kept as
        well; None if it is not.
        """
        self._store = store
        self._catalog = catalog
        self._files = files
        self._evictor = evictor
        self._table = table
        self._kept = kept

    def __repr__(self) -> str:
        return f"<CachedCopies of {self._store!r}>"

    async def drop(self, digests: Collection[Digest]) -> Mapping[Digest, tuple[Repo, ...]]:
        """Drops these blobs. Returns those that stay, with the cached repositories that need them. Reads every cached
        manifest if one of the blobs is cached. Raises `StoreError`.
        """
        here, cached = await asyncio.to_thread(self._on_disk, digests)
        needed = await asyncio.to_thread(self._needed, cached if self._kept is None else set(digests))
        # what a cached image needs stays if the cache has it: a copy of hosted content is of no use to that image
        await self._evictor.drop(here - (cached & needed.keys()))
        if self._kept is not None:
            await asyncio.to_thread(self._kept.drop_blobs, [digest for digest in digests if digest not in needed])
        return needed

    def _on_disk(self, digests: Collection[Digest]) -> tuple[set[Digest], set[Digest]]:
        """Blocking: which of these blobs are on the disk, and which in the cache. Raises `StoreError`."""
        cached = {digest for digest in digests if has_blob(self._store, digest)}
        return cached | {digest for digest in digests if has_blob(self._files, digest)}, cached

    def _needed(self, digests: set[Digest]) -> dict[Digest, tuple[Repo, ...]]:
        """Blocking: the cached repositories whose manifests are or name these blobs."""
        needed: dict[Digest, set[Repo]] = {}

        def read(_: Repo, digest: Digest) -> Manifest | None:
            return manifest_of_bytes(self._store, digest)

        cached = (repo for repo in self._catalog.repositories() if not self._table.hosts_registry(repo.registry))
        for repo, digest, manifest in walk(self._catalog, read, damaged_may_be_missing, cached if digests else ()):
            for named in (digest, *(blob.digest for blob in manifest.blobs)):
                if named in digests:
                    needed.setdefault(named, set()).add(repo)
        return {digest: tuple(sorted(repos)) for digest, repos in needed.items()}

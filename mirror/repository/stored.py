"""What the store has of one repository: the part that all repositories have in common, whatever else they can do."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Protocol

from mirror.errors import StoreError
from mirror.graph.damage import indexes_naming, manifest_to_serve
from mirror.graph.manifests import StoredManifest, has_blob
from mirror.graph.walk import embedded_blob
from mirror.intake.intake import Intake
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.oci.reference import Repo
from mirror.oci.referrer_pages import ReferrersPage
from mirror.policy.records import ManifestRecord
from mirror.ports import BlobStore, Catalog
from mirror.repository.caches import Caches


class Restores(Protocol):
    """Brings back to the disk what it has lost. Every coroutine raises `StoreError` if it is not known whether that
    could be brought back.
    """

    async def manifest(self, repo: Repo, digest: Digest) -> bool:
        """Brings back a manifest's bytes and the repository's record of it. False if it is not there either."""

    async def tag(self, repo: Repo, tag: str) -> bool:
        """Brings back a tag's record and its history. False if there is no record of it either."""

    async def repository(self, repo: Repo) -> list[Digest]:
        """Brings back all tags and manifests, once in each process. Returns the manifests that were missing."""


class StoredRepository:
    """One repository in the store. Cheap to make. Every coroutine raises `StoreError` if the disk cannot tell."""

    def __init__(
        self,
        repo: Repo,
        store: BlobStore,
        catalog: Catalog,
        caches: Caches,
        intake: Intake,
        restores: Restores | None = None,
    ) -> None:
        """`restores` brings back what the store has lost; None if nothing does."""
        self.repo = repo
        self.store = store
        self.catalog = catalog
        self._caches = caches
        self._intake = intake
        self._restores = restores

    def has(self, digest: Digest) -> bool:
        """True if the store has the content, from any repository. False if the disk cannot tell. Fast enough for the
        event loop.
        """
        with suppress(StoreError):
            return has_blob(self.store, digest)
        return False

    async def manifest(self, digest: Digest) -> StoredManifest | None:
        """Returns the manifest if this repository has it and its bytes are right."""
        stored = await asyncio.to_thread(manifest_to_serve, self.store, self.catalog, self.repo, digest)
        if stored is None and self._restores is not None and await self._restores.manifest(self.repo, digest):
            stored = await asyncio.to_thread(manifest_to_serve, self.store, self.catalog, self.repo, digest)
        return stored

    async def load(self, digest: Digest) -> Manifest | None:
        """Like `manifest`; also records it in the index and grants its blobs, which other processes may not know."""
        stored = await self.manifest(digest)
        if stored is None:
            return None
        await self._intake.record_loaded(self.repo, stored)
        return stored.manifest

    async def restore_tag(self, tag: str) -> bool:
        """Brings the record of a tag back if the disk has lost it. True if it did."""
        return self._restores is not None and await self._restores.tag(self.repo, tag)

    async def restore_all(self) -> bool:
        """Brings back all that the disk has lost of this repository; only the first call in this process does so. True
        if there was a manifest among it, whose blobs the repository may serve now.
        """
        restored = [] if self._restores is None else await self._restores.repository(self.repo)
        for digest in restored:
            await self.load(digest)
        return bool(restored)

    async def record(self, digest: Digest) -> ManifestRecord | None:
        """Returns the repository's record of a manifest; None if it has none."""
        return await asyncio.to_thread(self.catalog.get_manifest, self.repo, digest)

    async def indexes_naming(self, digest: Digest) -> list[Digest]:
        """Returns the indexes of this repository that name this manifest."""
        return await asyncio.to_thread(indexes_naming, self.store, self.catalog, self.repo, digest)

    async def embedded(self, digest: Digest) -> bytes | None:
        """Returns the bytes of a blob that a manifest of this repository embeds; None if none does."""
        return await asyncio.to_thread(embedded_blob, self.store, self.catalog, self.repo, digest)

    async def read(self, digest: Digest, limit: int) -> bytes:
        """Returns the verified content of a small blob. Raises like `BlobStore.read`."""
        return await asyncio.to_thread(self.store.read, digest, limit)

    async def tags(self) -> list[str]:
        """Returns the tags, sorted."""
        return await asyncio.to_thread(self.catalog.tags, self.repo)

    async def referrers(self, digest: Digest, after: Digest | None = None) -> ReferrersPage | None:
        """Returns a page of the manifests whose subject is `digest`; None if the repository has no manifest at all."""
        return await self._caches.referrers.to(self.repo, digest, after)

"""Which blobs a repository may serve. Repositories share the bytes of blobs, but not the right to serve them: otherwise
a blob of a private image could be pulled through any other repository's name.

A repository has a grant for a blob if one of its manifests names the blob, or if upstream has answered for the blob in
this repository. Grants are looked up in this order:

    memory of this process ──> index ──> manifests of the repository on disk ──> (the caller asks upstream)

The disk is read if the index has no answer: the index may be lost, late or down, while the disk is authoritative. A
manifest that cannot be read at the moment may grant any blob, so if no other manifest grants the blob, `size` raises.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from mirror import telemetry
from mirror.aio.background import BackgroundTasks
from mirror.aio.caches import LruCache
from mirror.aio.singleflight import SingleFlight
from mirror.errors import BlobDamaged, IndexUnavailable, RecordDamaged, StoreError
from mirror.graph.manifests import StoredManifest, read_stored
from mirror.graph.walk import walk
from mirror.oci.digest import Digest
from mirror.oci.manifest import CHECKED, Manifest
from mirror.oci.reference import Repo
from mirror.ports import BlobStore, Catalog, ContentIndex

#: (repository, digest) pairs that a process remembers.
_MOST: Final = 200_000

#: Seconds until all manifests of a repository are read from the disk again.
_READ_EVERY: Final = 2.0

#: Seconds that an answer waits for a grant to be written to the index.
_PATIENCE: Final = 0.25


def named_by(manifest: Manifest) -> dict[Digest, int]:
    """Returns the content that a repository may serve because upstream has this manifest in it, with sizes in bytes (-1
    if unknown): the manifest itself and the blobs that it names. Manifests that an index names have links of their own.
    """
    # the manifest itself contains these bytes
    embedded = {blob.digest: blob.size for blob in manifest.blobs if blob.data is not None}
    if manifest.media_type not in CHECKED:
        # some registries accept indexes and unknown media types without checking the content that they name
        return {**embedded, manifest.digest: len(manifest.content)}
    # a registry accepts a manifest only if it has all its blobs, but does not check foreign blobs: to name a foreign
    # blob proves nothing
    named = embedded | {blob.digest: blob.size for blob in manifest.blobs if not blob.foreign}
    named[manifest.digest] = len(manifest.content)
    return named


def granted_by(stored: StoredManifest) -> dict[Digest, int]:
    """Returns the content that a repository may serve because it has this manifest on the disk, with sizes in bytes:
    the grants in the manifest's record if it has any, otherwise those of `named_by`.
    """
    if stored.record.grants is None:
        return named_by(stored.manifest)
    sizes = {blob.digest: blob.size for blob in stored.manifest.blobs}
    granted = {digest: sizes[digest] for digest in stored.record.grants if digest in sizes}
    granted[stored.manifest.digest] = len(stored.manifest.content)
    return granted


class Grants:
    """The grants of all repositories, as this process knows them."""

    def __init__(self, index: ContentIndex, catalog: Catalog, store: BlobStore) -> None:
        self._index = index
        self._catalog = catalog
        self._store = store
        self._sizes: LruCache[tuple[Repo, Digest], int] = LruCache(_MOST, name="grants")
        self._once = SingleFlight()
        self._read: LruCache[Repo, tuple[float, dict[Digest, int]]] = LruCache(
            64 << 20, lambda read: 512 + 256 * len(read[1]), name="blobs by repository"
        )
        self._background = BackgroundTasks()

    def __repr__(self) -> str:
        return f"<Grants {len(self._sizes)} in memory>"

    async def size(self, repo: Repo, digest: Digest) -> int | None:
        """Returns the size in bytes with which the blob was granted (-1: unknown); None if this repository has no
        grant. Raises `StoreError` if that is not certain.
        """
        key = (repo, digest)
        remembered = self._sizes.get(key)
        if remembered is not None and remembered >= 0:
            return remembered
        try:
            size = await self._index.linked(repo, digest)
        except IndexUnavailable:
            size = None
        if size is None or size < 0:
            # without a size, a truncated blob on the disk looks like a whole one; another process may have fetched a
            # manifest that has the size
            on_disk, error = await self._on_disk(repo, digest)
            size = next((each for each in (on_disk, size, remembered) if each is not None), None)
            if size is None and error is not None:
                raise StoreError(f"it is not certain whether {repo} may serve {digest}: {error}") from error
        if size is not None:
            self._remember(repo, {digest: size})
        return size

    def remembered(self, repo: Repo, digest: Digest) -> int | None:
        """Returns the size that this process remembers (-1: unknown); None if it would have to ask."""
        return self._sizes.get((repo, digest))

    async def known_size(self, repo: Repo, digest: Digest) -> int | None:
        """Like `size`. None also if the grant cannot be read: upstream is then asked, as if there were none."""
        try:
            return await self.size(repo, digest)
        except StoreError as error:
            telemetry.log.warning("grant cannot be read", repository=str(repo), reason=str(error))
            return None

    async def give(self, repo: Repo, blobs: Mapping[Digest, int]) -> None:
        """Grants these blobs to the repository, with their sizes in bytes (-1: unknown)."""
        self._remember(repo, blobs)
        # the index may be busy with a rebuild; an answer must not wait for that
        await self._background.start_and_wait(self._link(repo, blobs), _PATIENCE)

    async def _link(self, repo: Repo, blobs: Mapping[Digest, int]) -> None:
        # without the index, this process remembers the grant; others find it by the manifest on disk or ask upstream
        with suppress(IndexUnavailable):
            await self._index.link(repo, blobs)

    async def aclose(self) -> None:
        """Waits for pending writes to the index and cancels reads. Repeatable."""
        await self._background.finish()
        await self._once.aclose()

    def _remember(self, repo: Repo, blobs: Mapping[Digest, int]) -> None:
        for digest, size in blobs.items():
            if size >= 0 or (repo, digest) not in self._sizes:
                self._sizes[repo, digest] = size

    async def _on_disk(self, repo: Repo, digest: Digest) -> tuple[int | None, StoreError | None]:
        """Returns the size that the repository's manifests grant for the blob (None: no grant), and the error if one of
        them could not be read.

        All manifests are read again only every few seconds, because clients can ask for any number of invented digests.
        Manifests that are new since, or could not be read, are looked for on each call, because another process may
        have fetched one just now.
        """
        read = self._read.get(repo)
        if read is None or time.monotonic() - read[0] > _READ_EVERY:
            ours = not self._once.under_way(repo)
            granted, error = await self._once.run(repo, lambda: self._from_disk(repo, {}))
            at = time.monotonic()
            self._read[repo] = at, granted
            if ours:
                return granted.get(digest), error
        else:
            (at, granted), error = read, None
        if digest not in granted:
            # a read that began before this call may have missed newer manifests
            added, error = await self._once.run_since((repo, "since"), lambda: self._from_disk(repo, granted))
            if added:
                granted = {**granted, **added}
                self._read[repo] = at, granted
        return granted.get(digest), error

    async def _from_disk(self, repo: Repo, skip: Mapping[Digest, int]) -> tuple[dict[Digest, int], StoreError | None]:
        return await asyncio.to_thread(self._read_manifests, repo, skip)

    def _read_manifests(self, repo: Repo, skip: Mapping[Digest, int]) -> tuple[dict[Digest, int], StoreError | None]:
        """Blocking: returns what the manifests that are not in `skip` grant, and the error if one cannot be read."""
        granted: dict[Digest, int] = {}
        failures: list[StoreError] = []

        def read(repo: Repo, digest: Digest) -> StoredManifest | None:
            return None if digest in skip else read_stored(self._store, self._catalog, repo, digest)

        def note(_repo: Repo, _digest: Digest, error: StoreError) -> None:
            # a damaged manifest grants nothing
            if not isinstance(error, (BlobDamaged, RecordDamaged)):
                failures.append(error)

        try:
            for _, _, stored in walk(self._catalog, read, note, [repo]):
                granted.update(granted_by(stored))
        except StoreError as error:
            failures.append(error)
        return granted, failures[-1] if failures else None

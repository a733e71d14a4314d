"""Which blobs a repository may serve. Bytes are shared between repositories, the right to them is not: without this a
blob of a private image could be had through any other name.

A grant comes from one of two places: a manifest that the repository has names the blob, or upstream has answered for
this blob in this repository. Grants are asked for in this order:

    memory of this process ──> index ──> manifests of the repository on disk ──> (the caller asks upstream)

The disk is read where the index has no word, because the index may be lost, late or down, and the disk is the truth.
A manifest that cannot be read at the moment may grant anything: then "no grant" is not known, and `size` raises.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from mirror.aio.latest import put_latest
from mirror.aio.lru import LruCache
from mirror.aio.singleflight import SingleFlight
from mirror.errors import BlobDamaged, IndexUnavailable, RecordDamaged, StoreError
from mirror.graph.manifests import StoredManifest, read_stored
from mirror.oci.digest import Digest
from mirror.oci.manifest import CHECKED, Manifest
from mirror.oci.reference import Repo
from mirror.ports import BlobStore, Catalog, ContentIndex

__all__ = ["Grants", "granted_by", "named_by"]

#: (repository, digest) pairs that a process keeps in mind.
_MOST: Final = 200_000

#: Seconds that what was read from the disk stands, as the last word after memory and index.
_READ_EVERY: Final = 2.0

#: Seconds that an answer waits for the index to take note of a grant.
_PATIENCE: Final = 0.25


def named_by(manifest: Manifest) -> dict[Digest, int]:
    """What a repository may serve because it has this manifest, with sizes in bytes (-1 where not said): the manifest
    itself and the blobs that it names. Manifests that an index names have links of their own.
    """
    # whoever has the manifest has these bytes
    embedded = {blob.digest: blob.size for blob in manifest.blobs if blob.data is not None}
    if manifest.media_type not in CHECKED:
        # some registries take what they do not know, and indexes, without a look at what they name
        return {**embedded, manifest.digest: len(manifest.content)}
    # a registry takes a manifest only with all its blobs, but for foreign ones, which it does not look at: naming those
    # proves nothing
    named = embedded | {blob.digest: blob.size for blob in manifest.blobs if not blob.foreign}
    named[manifest.digest] = len(manifest.content)
    return named


def granted_by(stored: StoredManifest) -> dict[Digest, int]:
    """What a repository may serve because it has this manifest on its disk: what `named_by` says, unless the record
    says that less, or more, was proven when it was imported.
    """
    if stored.record.grants is None:
        return named_by(stored.manifest)
    sizes = {blob.digest: blob.size for blob in stored.manifest.blobs}
    granted = {digest: sizes[digest] for digest in stored.record.grants if digest in sizes}
    granted[stored.manifest.digest] = len(stored.manifest.content)
    return granted


class Grants:
    """Of all repositories, as this process knows them."""

    def __init__(self, index: ContentIndex, catalog: Catalog, store: BlobStore) -> None:
        self._index = index
        self._catalog = catalog
        self._store = store
        self._known: OrderedDict[tuple[Repo, Digest], int] = OrderedDict()
        self._once = SingleFlight()
        self._read: LruCache[Repo, tuple[float, dict[Digest, int]]] = LruCache(
            64 << 20, lambda read: 512 + 256 * len(read[1])
        )
        self._telling: set[asyncio.Task[None]] = set()

    async def size(self, repo: Repo, digest: Digest) -> int | None:
        """The blob's size in bytes as it was granted (-1 where unknown); None: this repository has no grant. Raises
        `StoreError` if that cannot be told.
        """
        key = (repo, digest)
        known = self._known.get(key)
        if known is not None and known >= 0:
            self._known.move_to_end(key)
            return known
        try:
            found = await self._index.linked(repo, digest)
        except IndexUnavailable:
            found = None
        if found is None or found < 0:
            # without a size a blob that was cut short on the disk cannot be told from a whole one; another process may
            # have fetched a manifest that says it
            said, trouble = await self._on_disk(repo, digest)
            found = next((one for one in (said, found, known) if one is not None), None)
            if found is None and trouble is not None:
                raise StoreError(f"whether {repo} may serve {digest} cannot be told: {trouble}") from trouble
        if found is not None:
            self._keep(repo, {digest: found})
        return found

    async def give(self, repo: Repo, blobs: Mapping[Digest, int]) -> None:
        """From now on this repository may serve these blobs, of these sizes in bytes (-1 where unknown)."""
        self._keep(repo, blobs)
        telling = asyncio.create_task(self._tell_index(repo, blobs))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)
        # the index may be busy with a rebuild; an answer must not wait for that
        await asyncio.wait({telling}, timeout=_PATIENCE)

    async def _tell_index(self, repo: Repo, blobs: Mapping[Digest, int]) -> None:
        # without it this process has it in mind, and the others find it by the manifest on disk or ask upstream
        with suppress(IndexUnavailable):
            await self._index.link(repo, blobs)

    async def aclose(self) -> None:
        """Wait for what the index is still being told. Repeatable."""
        await asyncio.gather(*self._telling)
        await self._once.aclose()

    def _keep(self, repo: Repo, blobs: Mapping[Digest, int]) -> None:
        for digest, size in blobs.items():
            if size >= 0 or (repo, digest) not in self._known:
                put_latest(self._known, (repo, digest), size, _MOST)

    async def _on_disk(self, repo: Repo, digest: Digest) -> tuple[int | None, StoreError | None]:
        """What the repository's manifests say, and why one of them could not be read. All of them are read at most
        every few seconds, for digests can be made up without end; what has come since, or could not be read, is looked
        for each time, for another process may have fetched it just now.
        """
        read = self._read.get(repo)
        if read is None or time.monotonic() - read[0] > _READ_EVERY:
            ours = not self._once.under_way(repo)
            named, trouble = await self._once.run(repo, lambda: self._from_disk(repo, {}))
            at = time.monotonic()
            self._read.put(repo, (at, named))
            if ours:
                return named.get(digest), trouble
        else:
            (at, named), trouble = read, None
        if digest not in named:
            # a look that others had begun before this question may have missed what came since
            new, trouble = await self._once.run_since((repo, "since"), lambda: self._from_disk(repo, named))
            if new:
                named = {**named, **new}
                self._read.put(repo, (at, named))
        return named.get(digest), trouble

    async def _from_disk(self, repo: Repo, known: Mapping[Digest, int]) -> tuple[dict[Digest, int], StoreError | None]:
        return await asyncio.to_thread(self._read_manifests, repo, known)

    def _read_manifests(self, repo: Repo, known: Mapping[Digest, int]) -> tuple[dict[Digest, int], StoreError | None]:
        """Blocking: what those grant that are not `known`, and why one of them could not be read."""
        granted: dict[Digest, int] = {}
        trouble = None
        try:
            for digest in self._catalog.manifest_digests(repo):
                if digest in known:
                    continue
                try:
                    stored = read_stored(self._store, self._catalog, repo, digest)
                except (BlobDamaged, RecordDamaged):
                    # what is wrong grants nothing
                    continue
                except StoreError as error:
                    trouble = error
                    continue
                granted.update(granted_by(stored) if stored else {})
        except StoreError as error:
            trouble = error
        return granted, trouble

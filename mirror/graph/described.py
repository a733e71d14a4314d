"""Media types and sizes of manifests, as the stored indexes of their repository describe them.

A client that has pulled an index asks by HEAD for the manifest of its platform. The index already has the answer to
that HEAD, so upstream need not be asked. A GET still asks upstream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from mirror import telemetry
from mirror.aio.caches import LruCache
from mirror.aio.singleflight import SingleFlight
from mirror.errors import StoreError
from mirror.graph.damage import manifest_to_serve
from mirror.graph.manifests import has_blob
from mirror.graph.walk import walk
from mirror.oci.digest import Digest
from mirror.oci.manifest import CHECKED, INDEXES
from mirror.oci.reference import Repo
from mirror.ports import BlobStore, Catalog

_MANIFESTS: Final = CHECKED | INDEXES

#: Media types and sizes in bytes of the manifests that one index names; empty for a manifest that is no index.
Children = Mapping[Digest, tuple[str, int]]

_NOTHING: Final[Children] = {}


class Described:
    """The descriptions in the indexes of all repositories, as this process has read them."""

    def __init__(self, store: BlobStore, catalog: Catalog, once: SingleFlight) -> None:
        self._store = store
        self._catalog = catalog
        self._once = once
        self._read: LruCache[Repo, Mapping[Digest, Children]] = LruCache(
            16 << 20,
            lambda read: 512 + sum(256 + 384 * len(children) for children in read.values()),
            name="described manifests",
        )

    async def get(self, repo: Repo, digest: Digest) -> tuple[str, int] | None:
        """Returns the manifest's media type and size in bytes. None if no stored index of this repository names it, if
        two indexes disagree, or if the disk cannot be read; upstream can then be asked.
        """
        before = self._read.get(repo) or {}
        try:
            read = await self._once.run(
                ("described", repo), lambda: asyncio.to_thread(self._read_indexes, repo, before)
            )
            # an index that is gone from the store no longer counts
            descriptions = {
                children[digest]
                for index, children in read.items()
                if digest in children and has_blob(self._store, index)
            }
        except StoreError as error:
            telemetry.log.warning("stored index cannot be read", repository=str(repo), reason=str(error))
            return None
        self._read[repo] = read
        return descriptions.pop() if len(descriptions) == 1 else None

    def _read_indexes(self, repo: Repo, before: Mapping[Digest, Children]) -> Mapping[Digest, Children]:
        """Blocking: returns the manifests that each index of the repository names. Indexes in `before` are not read
        again. Raises `StoreError`.
        """

        def read(repo: Repo, digest: Digest) -> Children | None:
            return before[digest] if digest in before else self._children(repo, digest)

        return {digest: children for _, digest, children in walk(self._catalog, read, repos=[repo])}

    def _children(self, repo: Repo, digest: Digest) -> Children | None:
        """Blocking: the manifests that the index `digest` names; None if it is not here. Raises `StoreError`."""
        record = self._catalog.get_manifest(repo, digest)
        if record is None:
            return None
        if record.media_type not in INDEXES:
            return _NOTHING
        stored = manifest_to_serve(self._store, self._catalog, repo, digest)
        if stored is None:
            return None
        # an index may also name blobs and foreign content
        children = [each for each in stored.manifest.manifests if each.media_type in _MANIFESTS and not each.foreign]
        return {child.digest: (child.media_type, child.size) for child in children}

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
from mirror.oci.digest import Digest
from mirror.oci.manifest import CHECKED, INDEXES
from mirror.oci.reference import Repo
from mirror.ports import BlobStore, Catalog

_MANIFESTS: Final = CHECKED | INDEXES

#: Media types and sizes in bytes of the manifests that one index names; empty for a manifest that is no index.
Named = Mapping[Digest, tuple[str, int]]

_NOTHING: Final[Named] = {}


class Described:
    """The descriptions in the indexes of all repositories, as this process has read them."""

    def __init__(self, store: BlobStore, catalog: Catalog, once: SingleFlight) -> None:
        self._store = store
        self._catalog = catalog
        self._once = once
        self._read: LruCache[Repo, Mapping[Digest, Named]] = LruCache(
            16 << 20, lambda read: 512 + sum(256 + 384 * len(named) for named in read.values())
        )

    async def get(self, repo: Repo, digest: Digest) -> tuple[str, int] | None:
        """Returns the manifest's media type and size in bytes. None if no stored index of this repository names it, if
        two indexes disagree, or if the disk cannot be read; upstream can then be asked.
        """
        known = self._read.get(repo) or {}
        try:
            read = await self._once.run(("described", repo), lambda: asyncio.to_thread(self._read_indexes, repo, known))
            # an index that is gone from the store no longer counts
            said = {named[digest] for index, named in read.items() if digest in named and has_blob(self._store, index)}
        except StoreError as error:
            telemetry.log.warning("stored index cannot be read", repository=str(repo), reason=str(error))
            return None
        self._read[repo] = read
        return said.pop() if len(said) == 1 else None

    def _read_indexes(self, repo: Repo, known: Mapping[Digest, Named]) -> Mapping[Digest, Named]:
        """Blocking: returns the manifests that each index of the repository names. Indexes in `known` are not read
        again. Raises `StoreError`.
        """
        found: dict[Digest, Named] = {}
        for digest in self._catalog.manifest_digests(repo):
            named = known[digest] if digest in known else self._names(repo, digest)
            if named is not None:
                found[digest] = named
        return found

    def _names(self, repo: Repo, digest: Digest) -> Named | None:
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
        children = [one for one in stored.manifest.manifests if one.media_type in _MANIFESTS and not one.foreign]
        return {child.digest: (child.media_type, child.size) for child in children}

"""What manifests name, read from the disk and cached in memory: the content of a digest never changes.

Eviction uses this if it cannot or must not ask the index about images.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Final

from mirror.aio.caches import LruCache
from mirror.errors import BlobDamaged
from mirror.graph.manifests import for_display, has_blob, manifest_of_bytes
from mirror.graph.walk import walk
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.records import References
from mirror.ports import Blobs, Catalog

#: Bytes of memory for what manifests name: of most it takes some kilobytes, but one may name ten thousand others.
_MEMORY: Final = 96 << 20


class ReferenceReader:
    """Reads and caches what manifests name. May be called from any thread."""

    def __init__(self, store: Blobs, catalog: Catalog, *, memory: int = _MEMORY) -> None:
        """`memory` is in bytes."""
        self._store = store
        self._catalog = catalog
        self._read: LruCache[Digest, References] = LruCache(memory, _weight, name="references")
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<ReferenceReader {self._read}>"

    def of(self, digest: Digest) -> References | None:
        """Blocking: returns what the manifest names, from memory even if the manifest was dropped since it was read.
        None if `digest` is absent, damaged, or no manifest. A damaged manifest cannot be pulled, and must not keep its
        blobs from being evicted.

        Raises `StoreError` if the manifest cannot be read at the moment: it may name anything.
        """
        with self._lock:
            references = self._read.get(digest)
        if references is not None:
            return references
        try:
            manifest = manifest_of_bytes(self._store, digest)
        except BlobDamaged:
            return None
        if manifest is None:
            return None
        references = References.of(manifest)
        with self._lock:
            self._read[digest] = references
        return references

    def everywhere(self) -> Mapping[Digest, References]:
        """Blocking: returns what each manifest names that a repository has and whose bytes are here. Reads one file for
        each manifest. Raises `StoreError` like `of`.
        """
        seen: set[Digest] = set()

        def read(_repo: Repo, digest: Digest) -> References | None:
            # memory also has manifests that were dropped since
            if digest in seen or not has_blob(self._store, digest):
                return None
            seen.add(digest)
            return self.of(digest)

        return {digest: references for _, digest, references in walk(self._catalog, read)}


def _weight(references: References) -> int:
    """Roughly the bytes of memory that it takes: each digest is an object with a text of its own."""
    return 1024 + 256 * (len(references.manifests) + len(references.blobs))


def names_of(
    catalog: Catalog, manifests: Collection[Digest], repos: Iterable[Repo] | None = None
) -> dict[Digest, list[str]]:
    """Blocking: returns the names of each manifest, such as `docker.io/library/app:1.0`, sorted. In a repository in
    which no tag points to the manifest, its name is that of the repository. The list is empty if no repository has it.

    Lists the manifests of the repositories that may have one of these (None: of all that are here), and reads the tags
    of those that have. A tag that cannot be read is left out. Raises `StoreError` if something cannot be listed.
    """
    names: dict[Digest, list[str]] = {digest: [] for digest in manifests}
    if names and repos is None:
        repos = catalog.repositories()
    for repo in repos or ():
        here = names.keys() & set(catalog.manifest_digests(repo))
        tagged = set()
        for tag in catalog.tags(repo) if here else ():
            record = for_display(partial(catalog.get_tag, repo, tag), f"{repo}:{tag}")
            if record is not None and record.digest in here:
                names[record.digest].append(f"{repo}:{tag}")
                tagged.add(record.digest)
        for digest in here - tagged:
            names[digest].append(str(repo))
    return {digest: sorted(of_manifest) for digest, of_manifest in names.items()}

"""What manifests name, read from the disk and kept in mind: a digest's content never changes.

Everything that eviction asks about images when it cannot ask the index, or must not, comes from here.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping
from functools import partial
from typing import Final

from mirror.aio.latest import put_latest
from mirror.errors import BlobDamaged
from mirror.graph.manifests import for_display, has_blob, manifest_of_bytes
from mirror.oci.digest import Digest
from mirror.policy.records import References
from mirror.ports import BlobStore, Catalog

__all__ = ["ReferenceReader", "called"]

#: Manifests kept in mind, some 5 KiB each.
_MOST: Final = 20_000


class ReferenceReader:
    """May be asked from any thread."""

    def __init__(self, store: BlobStore, catalog: Catalog) -> None:
        self._store = store
        self._catalog = catalog
        self._known: OrderedDict[Digest, References] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, digest: Digest) -> References | None:
        """Blocking: of a manifest that is here, or was when it was read; None for what is absent, damaged, or no
        manifest: a damaged one cannot be pulled, and must not keep the store from being evicted.

        Raises `StoreError` if it cannot be read at the moment: it may name anything.
        """
        with self._lock:
            known = self._known.get(digest)
            if known is not None:
                self._known.move_to_end(digest)
                return known
        try:
            manifest = manifest_of_bytes(self._store, digest)
        except BlobDamaged:
            return None
        if manifest is None:
            return None
        names = References.of(manifest)
        with self._lock:
            put_latest(self._known, digest, names, _MOST)
        return names

    def everywhere(self) -> Mapping[Digest, References]:
        """Blocking, a file for each: of every manifest that some repository has and whose bytes are here. Raises
        `StoreError` like `of`.
        """
        found: dict[Digest, References] = {}
        for repo in self._catalog.repositories():
            # by their names: what a damaged record says does not matter
            for digest in self._catalog.manifest_digests(repo):
                if digest in found or not has_blob(self._store, digest):
                    continue
                names = self.of(digest)
                if names is not None:
                    found[digest] = names
        return found


def called(catalog: Catalog, manifests: Collection[Digest]) -> dict[Digest, list[str]]:
    """Blocking: what people call each of these, `docker.io/library/app:1.0`; where no tag points to it, its repository.

    Lists every repository, and reads the tags of those that have one of them; a tag that cannot be read is left out.
    Sorted; empty for a manifest that no repository has. Raises `StoreError` if something cannot be listed.
    """
    found: dict[Digest, list[str]] = {digest: [] for digest in manifests}
    for repo in catalog.repositories() if found else ():
        here = found.keys() & set(catalog.manifest_digests(repo))
        if not here:
            continue
        tagged = set()
        for tag in catalog.tags(repo):
            record = for_display(partial(catalog.get_tag, repo, tag), f"{repo}:{tag}")
            if record is not None and record.digest in here:
                found[record.digest].append(f"{repo}:{tag}")
                tagged.add(record.digest)
        for digest in here - tagged:
            found[digest].append(str(repo))
    return {digest: sorted(names) for digest, names in found.items()}

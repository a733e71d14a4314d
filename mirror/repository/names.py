"""What manifests name, read from the disk and kept in mind: a digest's content never changes.

Everything that eviction asks about images when it cannot ask the index, or must not, comes from here.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Final

from mirror.errors import BlobDamaged, BlobUnknown
from mirror.oci.digest import Digest
from mirror.oci.manifest import LARGEST, ManifestMalformed, read_manifest
from mirror.policy.records import ManifestNames
from mirror.ports import BlobStore, Catalog

__all__ = ["NamesOnDisk", "called"]

#: Manifests kept in mind, some 5 KiB each.
_MOST: Final = 20_000


class NamesOnDisk:
    """May be asked from any thread."""

    def __init__(self, store: BlobStore, catalog: Catalog) -> None:
        self._store = store
        self._catalog = catalog
        self._known: OrderedDict[Digest, ManifestNames] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, digest: Digest) -> ManifestNames | None:
        """Blocking: of a manifest that is here, or was when it was read; None for what is absent, damaged, or none.

        Raises `StoreError` where the disk does not answer: that says nothing about the manifest.
        """
        with self._lock:
            known = self._known.get(digest)
            if known is not None:
                self._known.move_to_end(digest)
                return known
        try:
            if self._store.stat(digest).size > LARGEST:
                return None
            content = self._store.read(digest, LARGEST)
            names = ManifestNames.of(read_manifest(content, algorithm=digest.algorithm))
        except (BlobUnknown, BlobDamaged, ManifestMalformed):
            return None
        with self._lock:
            self._known[digest] = names
            if len(self._known) > _MOST:
                self._known.popitem(last=False)
        return names

    def everywhere(self) -> Mapping[Digest, ManifestNames]:
        """Blocking, a file or two for each: of every manifest that some repository has and whose bytes are here."""
        found: dict[Digest, ManifestNames] = {}
        for repo in self._catalog.repositories():
            for record in self._catalog.manifests(repo):
                if record.digest in found or not self._is_here(record.digest):
                    continue
                names = self.of(record.digest)
                if names is not None:
                    found[record.digest] = names
        return found

    def _is_here(self, digest: Digest) -> bool:
        try:
            self._store.stat(digest)
        except BlobUnknown:
            return False
        return True


def called(catalog: Catalog, manifests: Collection[Digest]) -> dict[Digest, list[str]]:
    """Blocking: what people call each of these, `docker.io/library/app:1.0`; where no tag points to it, its repository.

    Lists every repository, and reads the tags of those that have one of them. Sorted; empty for a manifest that no
    repository has.
    """
    found: dict[Digest, list[str]] = {digest: [] for digest in manifests}
    for repo in catalog.repositories() if found else ():
        here = found.keys() & set(catalog.manifest_digests(repo))
        if not here:
            continue
        tagged = set()
        for tag in catalog.tags(repo):
            record = catalog.get_tag(repo, tag)
            if record is not None and record.digest in here:
                found[record.digest].append(f"{repo}:{tag}")
                tagged.add(record.digest)
        for digest in here - tagged:
            if catalog.get_manifest(repo, digest) is not None:
                found[digest].append(str(repo))
    return {digest: sorted(names) for digest, names in found.items()}

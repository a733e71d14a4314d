"""Notes in the book that cached content is used here, so that the bucket keeps it, too."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from mirror.aio.caches import LruCache
from mirror.errors import IndexUnavailable, StoreError
from mirror.graph.manifests import manifest_of_bytes
from mirror.oci.digest import Digest
from mirror.ports import Blobs, ObjectBook

#: Seconds until the same content is noted again.
_DAY: Final = 86400.0
_MOST: Final = 100_000


class CacheUses:
    """The uses that one process notes. For one thread at a time."""

    def __init__(self, book: ObjectBook, store: Blobs) -> None:
        """`store` has the manifests that are used."""
        self._book = book
        self._store = store
        self._noted: LruCache[Digest, float] = LruCache(_MOST, name="uses of the bucket's cache")

    def __repr__(self) -> str:
        return f"<CacheUses {len(self._noted)} noted>"

    def note(self, used: Mapping[Digest, float]) -> None:
        """Blocking: notes uses (epoch seconds). Using a manifest uses what it names as well: clients that have some
        layers ask only for the others. Raises nothing.
        """
        seen: dict[Digest, float] = {}
        for digest, at in used.items():
            if not 0 <= at - self._noted.get(digest, float("-inf")) < _DAY:
                self._noted[digest] = at
                seen |= dict.fromkeys((digest, *self._named(digest)), at)
        with suppress(IndexUnavailable):
            self._book.use(seen)

    def _named(self, digest: Digest) -> tuple[Digest, ...]:
        with suppress(StoreError):
            if manifest := manifest_of_bytes(self._store, digest):
                return tuple(child.digest for child in (*manifest.manifests, *manifest.blobs))
        return ()

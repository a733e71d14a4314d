"""The files of a store that keeps hosted blobs in a bucket: what is cached, and copies of what is hosted.

    hosted registry ── its flights, a push, a read ──> copies/<…> ──┬── evicted ──> absent
                                                                    └── the cache gets the same blob ──> blobs/<…>
    upstream ── its flights, an import ─────────────────────────────────────────────────────────────────> blobs/<…>

A repository of the cache is served, and lends to a push, whatever lies in `blobs/` and is named by one of its
manifests. An upstream can name any digest, so what was only pushed here must not lie there: its digest would be all
that a stranger needs. Hosted repositories, which have links, read both places. What maintains the disk (eviction, the
index, the scrub) sees both as one.

A blob is in one place: once the cache has it, its copy is dropped. A crash, or two threads at the same moment, may
leave it in both. Then it counts once, and both files are dropped together.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

from mirror.errors import BlobUnknown, StoreError
from mirror.oci.digest import Digest
from mirror.policy.quarantine_limits import QuarantinedBlob
from mirror.ports import BlobInfo, BlobReader, Deleted, Growth, Prefix
from mirror.store.local.blobs import LocalIngest, LocalReader, LocalStore, read_file
from mirror.store.local.layout import CopiesLayout, Layout
from mirror.store.local.span_file import SpanFile


class CacheBesideCopies(LocalStore):
    """The cache. Whatever gets a name in it needs no copy any more."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self._copies = CopiesLayout(layout.root)

    def put(self, digest: Digest, content: bytes) -> BlobInfo:
        info = super().put(digest, content)
        _drop(self._copies, digest)
        return info

    def ingest(self, digest: Digest, registry: str) -> LocalIngest:
        return _CachedIngest(self.layout, digest, registry)


class _CachedIngest(LocalIngest):
    """A growing blob of the cache."""

    def commit(self) -> BlobInfo:
        info = super().commit()
        _drop(CopiesLayout(self._layout.root), self.digest)
        return info


def _drop(copies: CopiesLayout, digest: Digest) -> None:
    with suppress(OSError):
        os.unlink(copies.blob(digest))


class CopiedFiles:
    """`BlobStore` of both places, shared by any number of processes. Reads copies first, and writes copies only."""

    def __init__(self, cache: LocalStore) -> None:
        """Raises `StoreError`."""
        self.layout = cache.layout
        self.cache = cache
        self.copies = LocalStore(CopiesLayout(cache.layout.root))
        self._both = self.copies, cache

    def __repr__(self) -> str:
        return f"<CopiedFiles {self.layout.root}>"

    def stat(self, digest: Digest) -> BlobInfo:
        try:
            return self.copies.stat(digest)
        except BlobUnknown:
            return self.cache.stat(digest)

    def is_cached(self, info: BlobInfo) -> bool:
        """True if the cache has the blob, in this size."""
        with suppress(BlobUnknown, StoreError):
            return self.cache.stat(info.digest).size == info.size
        return False

    def open(self, digest: Digest) -> tuple[BlobInfo, LocalReader]:
        try:
            return self.copies.open(digest)
        except BlobUnknown:
            return self.cache.open(digest)

    def read(self, digest: Digest, limit: int) -> bytes:
        return read_file(*self.open(digest), limit)

    def walk(self) -> Iterator[BlobInfo]:
        """See `Blobs`. A blob that is in both places comes once."""
        return _merged(self.copies.walk(), self.cache.walk())

    def walk_part(self, digits: str) -> Iterator[BlobInfo]:
        """Likewise."""
        return _merged(self.copies.walk_part(digits), self.cache.walk_part(digits))

    def put(self, digest: Digest, content: bytes) -> BlobInfo:
        return self.copies.put(digest, content)

    def flush(self) -> None:
        for store in self._both:
            store.flush()

    def ingest(self, digest: Digest, registry: str) -> LocalIngest:
        return self.copies.ingest(digest, registry)

    def spans(self, digest: Digest, registry: str, size: int | None) -> SpanFile | None:
        return self.copies.spans(digest, registry, size)

    def drop_growing(self, digests: Collection[Digest]) -> None:
        # the growing blobs of both places lie in one folder
        self.cache.drop_growing(digests)

    def asked_in_parts(self) -> Sequence[Mapping[str, object]]:
        # copies come from the bucket, whole
        return []

    def avoid_parts(self, registry: str, digest: Digest | None) -> None:
        self.copies.avoid_parts(registry, digest)

    def avoids_parts(self, registry: str, digest: Digest, seconds: float) -> bool:
        return self.copies.avoids_parts(registry, digest, seconds)

    def filling(self, digest: Digest, registry: str) -> Growth | None:
        return self.copies.filling(digest, registry)

    def prefix(self, digest: Digest, registry: str) -> Prefix | None:
        return self.copies.prefix(digest, registry)

    def is_filling(self, registry: str, besides: Digest) -> bool:
        return self.copies.is_filling(registry, besides)

    def delete(self, digest: Digest) -> Deleted:
        deleted = [store.delete(digest) for store in self._both]
        return Deleted(max(each.size for each in deleted), sum(each.freed for each in deleted))

    def set_aside(self, digest: Digest, seen: BlobReader | None) -> bool:
        aside = [store.set_aside(digest, seen) for store in self._both]
        return any(aside)

    # the quarantine, growing blobs and the disk are the same for both

    def quarantined(self) -> Sequence[QuarantinedBlob]:
        return self.cache.quarantined()

    def drop_quarantined(self, digest: Digest) -> int:
        return self.cache.drop_quarantined(digest)

    def growing(self) -> Mapping[Digest, int]:
        return self.cache.growing()

    def free(self) -> tuple[int, int]:
        return self.cache.free()

    def mark_used(self, seen: Mapping[Digest, float]) -> None:
        for store in self._both:
            store.mark_used(seen)


def _merged(*walks: Iterable[BlobInfo]) -> Iterator[BlobInfo]:
    """What the walks find, sorted as they are; what several find comes once."""
    before = None
    for info in heapq.merge(*walks, key=lambda info: info.digest):
        if info.digest != before:
            yield info
        before = info.digest

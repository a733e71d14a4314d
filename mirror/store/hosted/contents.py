"""Reads blobs under either of their names. See `blob_names.py` for how a blob gets them."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from mirror.errors import BlobUnknown
from mirror.oci.digest import Digest
from mirror.ports import BlobInfo, BlobReader, SupportsFileno
from mirror.store.local import quarantine
from mirror.store.local.blobs import LocalReader, open_file, read_file, stat_file, walk_files
from mirror.store.local.layout import Layout


class LocalContents:
    """`Blobs` of all that is on the disk, hosted or cached. The hosted name is tried first, because hosted repositories
    read through this. Damaged blobs are set aside under both names.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def __repr__(self) -> str:
        return f"<LocalContents {self._layout.root}>"

    def stat(self, digest: Digest) -> BlobInfo:
        try:
            return stat_file(digest, self._layout.hosted_blob(digest))
        except BlobUnknown:
            return stat_file(digest, self._layout.blob(digest))

    def open(self, digest: Digest) -> tuple[BlobInfo, LocalReader]:
        try:
            return open_file(digest, self._layout.hosted_blob(digest))
        except BlobUnknown:
            return open_file(digest, self._layout.blob(digest))

    def read(self, digest: Digest, limit: int) -> bytes:
        return read_file(*self.open(digest), limit)

    def set_aside(self, digest: Digest, seen: BlobReader | None) -> bool:
        return quarantine.put(self._layout, digest, seen.fileno() if isinstance(seen, SupportsFileno) else None)

    def walk(self) -> Iterator[BlobInfo]:
        """See `Blobs`. A blob that has both names comes once."""
        before = None
        walks = walk_files(self._layout.hosted), walk_files(self._layout.blobs)
        for info in heapq.merge(*walks, key=lambda info: info.digest):
            if info.digest != before:
                yield info
            before = info.digest

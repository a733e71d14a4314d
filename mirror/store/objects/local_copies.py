"""Copies on the disk of hosted blobs whose bytes are in a bucket:

    a file that was pushed ── take() ──┐
    content in memory ── put() ────────┴──> copies/<…> ── evicted at any time ──> absent

What the cache has needs no copy (`copied_files.py`). The index is informed of each one, so that eviction counts it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from mirror import telemetry
from mirror.errors import BlobUnknown, StoreError, reason_of
from mirror.oci.digest import Digest, hasher
from mirror.ports import BlobInfo
from mirror.store.local.durable import AnyPath, make_folder
from mirror.store.objects.copied_files import CopiedFiles

_BLOCK: Final = 1 << 20


class LocalCopies:
    """The copies on one disk. All calls block. May be used from any thread."""

    def __init__(self, files: CopiedFiles, added: Callable[[BlobInfo], None] = lambda info: None) -> None:
        """`added` is called, in any thread, with each blob that has a copy now."""
        self._files = files
        self._layout = files.copies.layout
        self._added = added

    def __repr__(self) -> str:
        return f"<LocalCopies {self._layout.blobs}>"

    def take(self, info: BlobInfo, file: AnyPath) -> None:
        """Make a synced file that has the right bytes the copy of a blob; delete it if that fails, or if the cache has
        the blob. Raises nothing.
        """
        path = self._layout.blob(info.digest)
        try:
            # not synced: after a power cut there is the copy with all its bytes, or none
            make_folder(os.path.dirname(path), below=self._layout.root, sync=lambda folder: None)
            if self._files.is_cached(info):
                os.unlink(file)
            else:
                os.rename(file, path)
        except OSError as error:
            telemetry.log.warning("no copy on the disk", digest=str(info.digest), reason=reason_of(error))
            with suppress(OSError):
                os.unlink(file)
            return
        self._added(BlobInfo(info.digest, info.size))

    def put(self, info: BlobInfo, content: bytes) -> None:
        """Write a copy of a small blob, unless there is one. Raises nothing."""
        if self.size(info.digest) == len(content):
            return
        with suppress(StoreError):
            self._added(self._files.put(info.digest, content))

    def size(self, digest: Digest) -> int | None:
        """The bytes of the copy; None if there is none, or if that cannot be said."""
        with suppress(BlobUnknown, StoreError):
            return self._files.stat(digest).size
        return None

    @contextmanager
    def sound(self, digest: Digest) -> Iterator[tuple[Path, int]]:
        """A file with the bytes of the blob, which stays during the block, and its size. Reads all of it.

        Raises `BlobUnknown` if there is no copy, or if it was damaged and is set aside now; `StoreError`.
        """
        info, reader = self._files.open(digest)
        with closing(reader):
            hashing, offset = hasher(digest), 0
            while block := reader.pread_once(_BLOCK, offset):
                hashing.update(block)
                offset += len(block)
            if hashing.hexdigest() != digest.hex:
                if self._files.set_aside(digest, reader):
                    telemetry.log.error("damaged blob set aside", digest=str(digest), reason="found before its upload")
                raise BlobUnknown(f"the copy of {digest} on the disk was damaged")
            # the kernel's name for the open file: its own name may be evicted meanwhile
            yield Path(f"/proc/self/fd/{reader.fileno()}"), info.size

"""The hosted bytes of a disk, as a migration reads and writes them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from mirror.errors import BlobDamaged, BlobUnknown
from mirror.oci.digest import Digest, hasher
from mirror.store.hosted.blob_names import HostedNames
from mirror.store.local.blobs import open_file, stat_file, walk_files
from mirror.store.local.layout import Layout

_BLOCK: Final = 1 << 20


class DiskBytes:
    """`MigratedBytes` of one store. May be used from any thread."""

    def __init__(self, layout: Layout, names: HostedNames) -> None:
        self._layout = layout
        self._names = names

    def __repr__(self) -> str:
        return f"<DiskBytes {self._layout.hosted}>"

    def sizes(self) -> Iterator[tuple[Digest, int]]:
        for info in walk_files(self._layout.hosted):
            if not os.path.lexists(self._layout.queued_blob(info.digest)):
                yield info.digest, info.size

    def size(self, digest: Digest) -> int | None:
        try:
            return stat_file(digest, self._layout.hosted_blob(digest)).size
        except BlobUnknown:
            return None

    @contextmanager
    def fetch(self, digest: Digest, read: Callable[[int], None]) -> Iterator[tuple[Path, int]]:
        """See `MigratedBytes`. The file is that of the store, by the kernel's name for it: its own may be collected
        meanwhile.
        """
        info, reader = open_file(digest, self._layout.hosted_blob(digest))
        with closing(reader):
            hashing, offset = hasher(digest), 0
            while block := reader.pread_once(_BLOCK, offset):
                hashing.update(block)
                offset += len(block)
                read(len(block))
            if hashing.hexdigest() != digest.hex:
                raise BlobDamaged(f"the {offset} bytes of the file do not match the digest")
            yield Path(f"/proc/self/fd/{reader.fileno()}"), info.size

    def store(self, digest: Digest, file: Path, size: int) -> None:
        self._names.take_in(digest, file, size)

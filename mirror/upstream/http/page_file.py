"""The body of one answer that may be large: in memory at first, then in an unnamed temporary file.

empty ── write ──> in memory ── more than 1 MiB ──> in a file ── close ──> freed, the file deleted
  ^                    └──────── restart ───────────────┘
"""

from __future__ import annotations

import asyncio
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mirror.errors import StoreError, reason_of

_IN_MEMORY: Final = 1024 * 1024


@dataclass(slots=True)
class ListBounds:
    """Limits for tag lists, shared by every list of the process.

    `directory` is for large pages (None: the system's directory for temporary files). `most_bytes` limits one list, and
    also all large pages of this process together; `on_disk` is how many bytes of those are on disk now.
    """

    directory: Path | None = None
    most_bytes: int = 256 * 1024 * 1024
    on_disk: int = 0


class PageFile:
    """A body of at most `limit` bytes. Its file is in the directory of `bounds`, which is created when needed.

    Used by one task at a time, which closes it.
    """

    def __init__(self, bounds: ListBounds, limit: int) -> None:
        self._bounds = bounds
        self._on_disk = 0
        self.limit = limit
        self.size = 0
        self._file = self._new_file()

    def _new_file(self) -> tempfile.SpooledTemporaryFile[bytes]:
        directory = self._bounds.directory
        return tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=None if directory is None else str(directory))

    @property
    def is_small(self) -> bool:
        """True if the body is in memory, so that reading it never waits for a disk."""
        return self.size <= _IN_MEMORY

    async def write(self, piece: bytes) -> bool:
        """Append a piece. False, with nothing written, if this page or all large pages together would be too large.

        Raises `StoreError`.
        """
        size = self.size + len(piece)
        on_disk = size if size > _IN_MEMORY else 0
        if size > self.limit or self._bounds.on_disk + on_disk - self._on_disk > self._bounds.most_bytes:
            return False
        self._set_on_disk(on_disk)
        self.size = size
        try:
            if self.is_small:
                self._file.write(piece)
            else:
                await asyncio.to_thread(self._write_to_disk, piece)
        except OSError as error:
            raise StoreError(f"cannot write a tag list to {self._bounds.directory}: {reason_of(error)}") from error
        return True

    def _write_to_disk(self, piece: bytes) -> None:
        if self._bounds.directory is not None:
            self._bounds.directory.mkdir(parents=True, exist_ok=True)
        self._file.write(piece)

    def restart(self) -> None:
        """Drop what was written, because the answer starts again."""
        self.close()
        self._file, self.size = self._new_file(), 0

    def text(self) -> io.TextIOWrapper:
        """A reader of the whole body as UTF-8. Closing the reader closes the page, and the other way round."""
        self._file.seek(0)
        return io.TextIOWrapper(self._file, encoding="utf-8", newline="")

    def close(self) -> None:
        """Free the memory or delete the file. Repeatable."""
        self._set_on_disk(0)
        self._file.close()

    def __repr__(self) -> str:
        return f"<PageFile {self.size} of {self.limit}>"

    def _set_on_disk(self, count: int) -> None:
        self._bounds.on_disk += count - self._on_disk
        self._on_disk = count

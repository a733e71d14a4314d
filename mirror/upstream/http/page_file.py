"""The body of one answer that may be large: in memory at first, then in a file without a name.

empty ── write ──> in memory ── more than 1 MiB ──> in a file ── close ──> gone, the file too
  ^                    └──────── restart ───────────────┘
"""

from __future__ import annotations

import asyncio
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from mirror.errors import StoreError

__all__ = ["ListBounds", "PageFile"]

_IN_MEMORY: Final = 1024 * 1024


@dataclass(slots=True)
class ListBounds:
    """`directory` is where large pages are put (None: the system's directory for temporary files). `most_bytes` is how
    many bytes one list may have, and also all large pages of this process together, of which `held` are on disk now.
    """

    directory: Path | None = None
    most_bytes: int = 256 * 1024 * 1024
    held: int = 0


class PageFile:
    """At most `limit` bytes; the file is in the directory of `bounds`, which is made when it is needed.

    Belongs to one task at a time.
    """

    def __init__(self, bounds: ListBounds, limit: int) -> None:
        self._bounds = bounds
        self._held = 0
        self.limit = limit
        self.size = 0
        self._file: IO[bytes] = io.BytesIO()

    @property
    def is_small(self) -> bool:
        """Whether it is in memory, so that reading it never waits for a disk."""
        return self.size <= _IN_MEMORY

    async def write(self, piece: bytes) -> bool:
        """False, and nothing is written, if this page or all of them would have too many bytes. Raises `StoreError`."""
        size = self.size + len(piece)
        held = size if size > _IN_MEMORY else 0
        if size > self.limit or self._bounds.held + held - self._held > self._bounds.most_bytes:
            return False
        self._hold(held)
        try:
            if self.size <= _IN_MEMORY < self.size + len(piece):
                self._file = await asyncio.to_thread(self._spill)
            self.size += len(piece)
            if self.is_small:
                self._file.write(piece)
            else:
                await asyncio.to_thread(self._file.write, piece)
        except OSError as error:
            raise StoreError(f"a list cannot be kept in {self._bounds.directory}: {error.strerror}") from error
        return True

    def _spill(self) -> IO[bytes]:
        """Blocking."""
        if self._bounds.directory is not None:
            self._bounds.directory.mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=self._bounds.directory)  # noqa: SIM115 - `close` closes it
        self._file.seek(0)
        file.write(self._file.read())
        return file

    def restart(self) -> None:
        """Forget what was written: the answer begins anew."""
        self.close()
        self._file, self.size = io.BytesIO(), 0

    def text(self) -> io.TextIOWrapper:
        """All of it, as UTF-8, from the beginning. Closing either closes both."""
        self._file.seek(0)
        return io.TextIOWrapper(self._file, encoding="utf-8", newline="")

    def close(self) -> None:
        """Repeatable."""
        self._hold(0)
        self._file.close()

    def _hold(self, count: int) -> None:
        self._bounds.held += count - self._held
        self._held = count

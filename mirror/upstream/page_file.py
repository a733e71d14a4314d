"""The body of one answer that may be large: in memory at first, then in a file without a name.

empty ── write ──> in memory ── more than 1 MiB ──> in a file ── close ──> gone, the file too
  ^                    └──────── restart ───────────────┘
"""

from __future__ import annotations

import asyncio
import io
import tempfile
from pathlib import Path
from typing import IO, Final

from mirror.errors import StoreError

__all__ = ["PageFile"]

_IN_MEMORY: Final = 1024 * 1024


class PageFile:
    """At most `limit` bytes; the file is in `directory`, which is made when it is needed (None: where temporary files
    are). Belongs to one task at a time.
    """

    def __init__(self, directory: Path | None, limit: int) -> None:
        self._directory = directory
        self.limit = limit
        self.size = 0
        self._file: IO[bytes] = io.BytesIO()

    @property
    def is_small(self) -> bool:
        """Whether it is in memory, so that reading it never waits for a disk."""
        return self.size <= _IN_MEMORY

    async def write(self, piece: bytes) -> bool:
        """False, and nothing is written, if that is more than the limit. Raises `StoreError`."""
        if self.size + len(piece) > self.limit:
            return False
        try:
            if self.size <= _IN_MEMORY < self.size + len(piece):
                self._file = await asyncio.to_thread(self._spill)
            self.size += len(piece)
            if self.is_small:
                self._file.write(piece)
            else:
                await asyncio.to_thread(self._file.write, piece)
        except OSError as error:
            raise StoreError(f"a list cannot be kept in {self._directory}: {error.strerror}") from error
        return True

    def _spill(self) -> IO[bytes]:
        """Blocking."""
        if self._directory is not None:
            self._directory.mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 - `close` closes it
        self._file.seek(0)
        file.write(self._file.read())
        return file

    def restart(self) -> None:
        """Forget what was written: the answer begins anew."""
        self._file.close()
        self._file, self.size = io.BytesIO(), 0

    def text(self) -> io.TextIOWrapper:
        """All of it, as UTF-8, from the beginning. Closing either closes both."""
        self._file.seek(0)
        return io.TextIOWrapper(self._file, encoding="utf-8", newline="")

    def close(self) -> None:
        """Repeatable."""
        self._file.close()

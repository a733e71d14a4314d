"""The bytes of an answer as they were written to the client, so that the next client gets the same ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from aiohttp.http import StreamWriter


class WatchedWriter(StreamWriter):
    """aiohttp's writer of one answer. `written` is called with all of its bytes once the answer is complete."""

    def __init__(self, protocol: Any, loop: asyncio.AbstractEventLoop, written: Callable[[bytes], None]) -> None:
        super().__init__(protocol, loop)
        self._written = written
        self._pieces: list[bytes] = []

    def __repr__(self) -> str:
        return f"<WatchedWriter {len(self._pieces)} pieces>"

    def _write(self, chunk: Any) -> None:
        super()._write(chunk)
        self._pieces.append(bytes(chunk))

    def _writelines(self, chunks: Iterable[Any]) -> None:
        pieces = tuple(chunks)
        super()._writelines(pieces)
        self._pieces += map(bytes, pieces)

    async def write_eof(self, chunk: bytes = b"") -> None:
        """See `StreamWriter.write_eof`."""
        await super().write_eof(chunk)
        self._written(b"".join(self._pieces))

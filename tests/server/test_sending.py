"""Pieces of a file for clients behind TLS or chunks: from memory in place, from the disk by a thread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web

from mirror.server.registry import sending
from mirror.server.registry.sending import Sender
from mirror.store.local.blobs import LocalReader

_CONTENT = os.urandom((256 << 10) * 3 + 7)


class _Counting(ThreadPoolExecutor):
    """Counts what it is given."""

    count = 0

    def submit(self, *args: Any, **more: Any) -> Future[Any]:
        self.count += 1
        return super().submit(*args, **more)


class _Response:
    def __init__(self) -> None:
        self.written = b""

    async def write(self, piece: bytes) -> None:
        self.written += piece


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[LocalReader]:
    place = tmp_path / "blob"
    place.write_bytes(_CONTENT)
    reader = LocalReader(os.open(place, os.O_RDONLY))
    yield reader
    reader.close()


async def _sent(executor: Executor, reader: LocalReader) -> bytes:
    response = _Response()
    counts: list[int] = []

    async def to_the_end(position: int) -> int:
        return len(_CONTENT)

    await Sender(executor, stall=30).send(
        cast(web.BaseRequest, None), cast(web.StreamResponse, response), reader, 0, None, to_the_end, counts.append
    )
    assert sum(counts) == len(response.written)
    return response.written


@pytest.mark.parametrize("cached", [True, False])
async def test_only_what_must_come_from_the_disk_takes_a_thread(
    reader: LocalReader, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is in memory is asked for each piece; the bytes are the same."""
    monkeypatch.setattr(sending, "_is_cached", lambda *_: cached)
    with _Counting(1) as executor:
        assert await _sent(executor, reader) == _CONTENT
    assert executor.count == (0 if cached else 4)

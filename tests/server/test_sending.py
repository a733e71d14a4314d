"""Pieces of a file for clients behind TLS or chunks: from memory in place, from the disk by a thread."""

from __future__ import annotations

import asyncio
import os
import socket
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
        cast(web.BaseRequest, None),
        cast(web.StreamResponse, response),
        reader,
        0,
        None,
        to_the_end,
        counts.append,
        first=True,
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


async def test_first_bytes_leave_before_anybody_has_more(reader: LocalReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of clients that begin together, each has its first bytes before one of them has its second piece."""
    monkeypatch.setattr(sending, "_is_cached", lambda *_: True)
    order: list[int] = []

    async def to_the_end(position: int) -> int:
        return len(_CONTENT)

    class _Noting(_Response):
        def __init__(self, client: int) -> None:
            super().__init__()
            self._client = client

        async def write(self, piece: bytes) -> None:
            await super().write(piece)
            order.append(self._client)

    clients = [_Noting(client) for client in range(20)]
    with ThreadPoolExecutor(1) as executor:
        sender = Sender(executor, stall=30)
        await asyncio.gather(
            *(
                sender.send(
                    cast(web.BaseRequest, None),
                    cast(web.StreamResponse, client),
                    reader,
                    0,
                    None,
                    to_the_end,
                    lambda count: None,
                    first=True,
                )
                for client in clients
            )
        )
    assert order[:20] == [*range(20)]
    assert {client.written for client in clients} == {_CONTENT}


class _Transport:
    """Of a client without TLS; the headers have left."""

    def __init__(self, ours: socket.socket) -> None:
        self._ours = ours

    def get_extra_info(self, name: str) -> socket.socket | None:
        return self._ours if name == "socket" else None

    def set_write_buffer_limits(self, high: int) -> None:
        assert high == 0

    def get_write_buffer_size(self) -> int:
        return 0


class _Request:
    def __init__(self, ours: socket.socket) -> None:
        self.transport = _Transport(ours)


async def test_first_bytes_leave_before_a_file_sends_more(reader: LocalReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same if the kernel sends them from the file."""
    monkeypatch.setattr(sending, "_is_cached", lambda *_: True)
    order: list[int] = []
    pairs = [socket.socketpair() for _ in range(20)]
    with ThreadPoolExecutor(1) as executor:
        sender = Sender(executor, stall=30)

        async def send(client: int, ours: socket.socket) -> None:
            ours.setblocking(False)
            await sender.send(
                cast(web.BaseRequest, _Request(ours)),
                cast(web.StreamResponse, None),
                reader,
                0,
                len(_CONTENT),
                sending.up_to(len(_CONTENT)),
                lambda count: order.append(client),
                first=True,
            )

        clients = [asyncio.create_task(send(number, ours)) for number, (ours, _) in enumerate(pairs)]
        for _ in range(10):
            await asyncio.sleep(0)
        for client in clients:
            client.cancel()
        await asyncio.wait(clients)
    for pair in pairs:
        for each in pair:
            each.close()
    assert order[: len(pairs)] == [*range(len(pairs))]

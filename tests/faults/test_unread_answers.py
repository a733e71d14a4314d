"""Row 25: clients that send requests and read no answer: for every kind of answer, behind TLS, and in pipelines."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client import REGISTRY

from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.server.registry.handshake import Handshake
from mirror.server.registry.writing import PIECE, Unsent
from tests.support.certificates import Certificate
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import PATIENCE, LiveMirror, live_mirror, until

#: Bytes of a body that no socket's buffers take: those of both sides are made small.
_LARGE = 4_000_000
#: More than a client could have to wait; what is dropped within a test has waited for something else.
_FOR_EVER = {"client_stall_timeout": 3600}
#: A stall that is over before anybody looks.
_SHORT = {"client_stall_timeout": 0.2}


def _add_manifest(registry: FakeRegistry, size: int, tag: str) -> Digest:
    """A manifest of so many bytes."""
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": f"sha256:{'0' * 64}", "size": 2},
        "layers": [],
        "annotations": {"filling": ""},
    }
    manifest["annotations"]["filling"] = "x" * (size - len(json.dumps(manifest)))
    content = json.dumps(manifest).encode()
    assert len(content) == size
    return registry.add_manifest("library/app", content, OCI_MANIFEST, tag)


@asynccontextmanager
async def _serving(mirror: LiveMirror, context: ssl.SSLContext | None = None) -> AsyncIterator[tuple[int, list[Any]]]:
    """Another listener of this mirror, whose sockets send through small buffers; the transports that it had."""
    transports: list[Any] = []

    def remember(transport: Any) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        transports.append(transport)

    def protocol() -> asyncio.Protocol:
        made: Any = mirror.server() if context is None else mirror.server.over_tls(context)
        connection_made = made.connection_made
        if isinstance(made, Handshake):

            def with_small_buffers(transport: Any) -> None:
                remember(transport)
                connection_made(transport)

            made.connection_made = with_small_buffers  # type: ignore[method-assign]
            return made
        return _Passing(made, remember)

    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", 0, backlog=100)
    try:
        yield server.sockets[0].getsockname()[1], transports
    finally:
        server.close()


class _Passing(asyncio.Protocol):
    """Puts a protocol that has slots in its own place, with a word before."""

    def __init__(self, behind: Any, remember: Any) -> None:
        self._behind = behind
        self._remember = remember

    def connection_made(self, transport: Any) -> None:
        self._remember(transport)
        transport.set_protocol(self._behind)
        self._behind.connection_made(transport)


class _Client:
    """A connection that reads only on request."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    @classmethod
    async def connect(cls, port: int, context: ssl.SSLContext | None = None) -> _Client:
        """Connect, with TLS if there is a context; the receive buffer is small."""

        def connect() -> socket.socket:
            plain = socket.socket()
            plain.settimeout(PATIENCE)
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            plain.connect(("127.0.0.1", port))
            return plain if context is None else context.wrap_socket(plain, server_hostname="localhost")

        return cls(await asyncio.to_thread(connect))

    async def ask(self, target: str, times: int = 1) -> None:
        """Without waiting for the mirror to read it."""
        text = f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * times

        def send() -> None:
            # who is dropped meanwhile cannot send the rest
            with suppress(OSError):
                self._connection.sendall(text)

        await asyncio.to_thread(send)

    async def read(self) -> tuple[int, bytes]:
        """Status and body of the next answer, however much of it comes."""

        def read() -> bytes:
            received = bytearray()
            with suppress(ConnectionError, ssl.SSLError):
                while piece := self._connection.recv(1 << 16):
                    received += piece
                    head, gap, body = received.partition(b"\r\n\r\n")
                    if gap and f"content-length: {len(body)}\r\n".encode() in head.lower() + b"\r\n":
                        break
            return bytes(received)

        head, _, body = (await asyncio.to_thread(read)).partition(b"\r\n\r\n")
        return int(head.split()[1]), body

    def close(self) -> None:
        self._connection.close()


def _paused(mirror: LiveMirror) -> int:
    return sum(connection.writing_paused for connection in mirror.server.connections)


def _stalled() -> float:
    return REGISTRY.get_sample_value("mirror_connections_dropped_total", {"reason": "stalled"}) or 0.0


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    """The mirror's."""
    return Certificate(tmp_path / "tls")


@pytest.mark.parametrize("tls", [False, True])
async def test_25_an_unread_manifest_is_not_copied(
    registry: FakeRegistry, tmp_path: Path, certificate: Certificate, tls: bool
) -> None:
    """Row 25: however many clients ask for a large manifest and read nothing, each costs a piece of it or two."""
    digest = _add_manifest(registry, _LARGE, "v1")
    target = f"/v2/library/app/manifests/{digest}"
    server, client = (certificate.server(), certificate.client()) if tls else (None, None)
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, server=_FOR_EVER) as mirror:
        assert (await mirror.ask(target)).status == 200
        async with _serving(mirror, server) as (port, transports):
            clients = [await _Client.connect(port, client) for _ in range(10)]
            tracemalloc.start()
            try:
                for one in clients:
                    await one.ask(target)
                await until(lambda: _paused(mirror) == len(clients))
                copied = tracemalloc.get_traced_memory()[0]
            finally:
                tracemalloc.stop()
            # with TLS, one piece is encrypted and another waits to be; the rest is what a request takes by itself
            assert copied < len(clients) * 4 * PIECE
            if tls:
                assert all(transport.get_write_buffer_size() < PIECE + 1024 for transport in transports)
            assert mirror.server.unsent.size == _LARGE, "all wait for the same bytes"
            for one in clients:
                status, body = await one.read()
                assert status == 200
                assert digest.matches(body)
            assert mirror.server.unsent.size == 0
            for one in clients:
                one.close()


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("kind", ["manifest", "tags", "referrers", "catalog", "metrics", "error"])
async def test_25_every_answer_is_taken_in_time_or_its_client_dropped(
    registry: FakeRegistry, tmp_path: Path, certificate: Certificate, kind: str, tls: bool
) -> None:
    """Row 25: whichever answer it is, and however small each of those that are asked for, a client that takes nothing
    for `client_stall_timeout` is dropped, and counted.
    """
    _add_manifest(registry, _LARGE, "v1")
    digest = _add_manifest(registry, 1000, "v2")
    targets = {
        "manifest": "/v2/library/app/manifests/v1",
        "tags": "/v2/library/app/tags/list",
        "referrers": f"/v2/library/app/referrers/{digest}",
        "catalog": "/v2/_catalog",
        "metrics": "/metrics",
        "error": "/v2/library/app/blobs/none",
    }
    server, client = (certificate.server(), certificate.client()) if tls else (None, None)
    async with (
        live_mirror(tmp_path / "store", {"docker.io": registry.url}, server=_SHORT) as mirror,
        _serving(mirror, server) as (port, _),
    ):
        before = _stalled()
        one = await _Client.connect(port, client)
        # small answers fill the buffers of both sockets together
        await one.ask(targets[kind], 3000)
        await until(lambda: _stalled() == before + 1)
        await until(lambda: not mirror.server.connections)
        assert [line["stalled"] for line in mirror.events("connections dropped")] == [1]
        one.close()


async def test_25_requests_behind_an_unread_answer(registry: FakeRegistry, tmp_path: Path) -> None:
    """Rows 25, 29: while an answer waits for its client no more requests are read than a few, and all are answered once
    the client reads.
    """
    digest = _add_manifest(registry, _LARGE, "v1")
    target = f"/v2/library/app/manifests/{digest}"
    filling = f"GET /livez?{'x' * 4000} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, server=_FOR_EVER) as mirror:
        await mirror.ask(target)
        async with _serving(mirror) as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 14)
            writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await until(lambda: _paused(mirror) == 1)
            [connection] = [cast(Any, one) for one in mirror.server.connections if one.writing_paused]
            writer.write(filling * 2000)
            await until(lambda: connection._buffer_paused)
            behind = sum(len(message.path) for message, _ in connection._messages)
            # as much as one read of the event loop may bring, beyond what makes it stop
            assert behind <= (64 << 10) + (256 << 10)
            writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            received = await reader.read(-1)
            assert received.count(b"HTTP/1.1 200 OK\r\n") == 2002
            writer.close()
            await writer.wait_closed()


@pytest.mark.parametrize("tls", [False, True])
async def test_bodies_of_any_size(registry: FakeRegistry, tmp_path: Path, certificate: Certificate, tls: bool) -> None:
    """Pieces make up the whole, wherever they end."""
    sizes = [400, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 1, PIECE + (128 << 10), 1_000_003]
    digests = [_add_manifest(registry, size, f"v{size}") for size in sizes]
    server, client = (certificate.server(), certificate.client()) if tls else (None, None)
    async with (
        live_mirror(tmp_path / "store", {"docker.io": registry.url}) as mirror,
        _serving(mirror, server) as (port, _),
    ):
        one = await _Client.connect(port, client)
        for size, digest in zip(sizes, digests, strict=True):
            await one.ask(f"/v2/library/app/manifests/v{size}")
            status, body = await one.read()
            assert (status, len(body)) == (200, size)
            assert digest.matches(body)
        one.close()


class _Waiting:
    def __init__(self) -> None:
        self.dropped: list[str] = []

    def drop(self, reason: str) -> None:
        self.dropped.append(reason)


def test_25_bodies_that_wait_are_bounded_together() -> None:
    """Row 25: if all answers that wait for their clients are too many bytes together, the client that has read nothing
    for the longest time is disconnected. A body that several clients wait for counts once.
    """
    unsent = Unsent(most=100)
    first, second, third = (_Waiting() for _ in range(3))
    shared = bytes(40)
    unsent.wait(first, shared)
    unsent.wait(second, shared)
    assert unsent.size == 40
    unsent.wait(third, bytes(50))
    # it has taken something meanwhile
    unsent.wait(first, shared)
    assert unsent.size == 90
    fourth = _Waiting()
    unsent.wait(fourth, bytes(60))
    assert [one.dropped for one in (first, second, third, fourth)] == [[], ["memory"], ["memory"], []]
    assert unsent.size == 100
    for one in (first, second, third, fourth):
        unsent.leave(one)
    assert unsent.size == 0


def test_25_a_body_that_is_larger_than_all_may_be() -> None:
    """It drops all others, and is sent itself."""
    unsent = Unsent(most=100)
    small, large = _Waiting(), _Waiting()
    unsent.wait(small, bytes(1))
    unsent.wait(large, bytes(1000))
    assert (small.dropped, large.dropped) == (["memory"], [])

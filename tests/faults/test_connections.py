"""Row 26: clients that hold connections without asking for anything, or take for ever to ask."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from mirror import telemetry
from mirror.config import load
from mirror.errors import ConfigError
from mirror.server.registry.connection_limit import ConnectionLimiter, client_key
from mirror.server.registry.handler import RegistryServer
from tests.support.certificates import Certificate
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import LiveMirror, until
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import PATIENCE, eventually

_WHOLE = b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"
#: A head that goes on: each byte is welcome, the end never comes.
_ENDLESS = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Slow: "
#: Seconds for a head: a test waits until they are over, and a handshake on a busy machine is not to take as long.
_IN_TIME = 2.0


@contextmanager
def _connected(port: int) -> Iterator[socket.socket]:
    with closing(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)) as connection:
        yield connection


def _ask(connection: socket.socket) -> bytes:
    """One request; the answer's status line, the rest of it is read."""
    connection.sendall(_WHOLE)
    received = b""
    while not received.endswith(b"{}"):
        piece = connection.recv(65536)
        if not piece:
            break
        received += piece
    return received.partition(b"\r\n")[0]


def _dropped_for(reason: str) -> float:
    """How many connections were closed early for this reason, as the metrics say."""
    return REGISTRY.get_sample_value("mirror_connections_dropped_total", {"reason": reason}) or 0.0


def _is_closed(connection: socket.socket) -> bool:
    """Whether the other side has ended it; nothing else can have come."""
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    finally:
        connection.settimeout(PATIENCE)


def _drip(connection: socket.socket) -> None:
    """A byte now and then, the first ones those of a request, until the other side ends it."""
    bytes_left = iter(_ENDLESS)

    def closed_after_another_byte() -> bool:
        if _is_closed(connection):
            return True
        with suppress(ConnectionError):
            connection.send(bytes([next(bytes_left, ord("x"))]))
        time.sleep(0.03)  # the fault is this pace; it is far below every time that the mirror allows
        return _is_closed(connection)

    eventually(closed_after_another_byte, "a connection that drips is closed")


def _dropped(mirror: MirrorProcess, reason: str) -> float:
    return mirror.metrics().get(f'mirror_connections_dropped_total{{reason="{reason}"}}', 0.0)


def test_26_heads_that_drip_are_cut_off(registry: FakeRegistry, tmp_path: Path) -> None:
    """Row 26: bytes that come steadily do not prolong the time of a head, neither on a new connection nor on one that
    has been answered; others are answered meanwhile, the metric counts each, and the log has a line once a minute.
    """
    config = write_config(tmp_path, {"docker.io": registry.url}, workers=1)
    with MirrorProcess(
        config, env={"MIRROR__SERVER__REQUEST_HEAD_TIMEOUT": "2s", "MIRROR__SERVER__IDLE_TIMEOUT": "1h"}
    ) as mirror:
        with _connected(mirror.port) as steady, _connected(mirror.port) as new, _connected(mirror.port) as used:
            assert _ask(steady) == b"HTTP/1.1 200 OK"
            assert _ask(used) == b"HTTP/1.1 200 OK"
            _drip(new)
            _drip(used)
            # in pieces, but in time
            steady.sendall(_WHOLE[:5])
            assert not _is_closed(steady)
            steady.sendall(_WHOLE[5:])
            assert steady.recv(65536).startswith(b"HTTP/1.1 200 OK")
        assert _dropped(mirror, "slow") == 2
        mirror.wait_for_event("connections dropped")
        lines = [line for line in mirror.log if line["event"] == "connections dropped"]
        assert [(line["slow"], line["client"]) for line in lines] == [(1, "127.0.0.1")]


def test_26_connections_without_a_request_are_closed(registry: FakeRegistry, tmp_path: Path) -> None:
    """Row 26: a connection without a request, or without another after an answer, is closed after `idle_timeout`."""
    config = write_config(tmp_path, {"docker.io": registry.url}, workers=1)
    with MirrorProcess(config, env={"MIRROR__SERVER__IDLE_TIMEOUT": "1500ms"}) as mirror:
        with _connected(mirror.port) as silent, _connected(mirror.port) as used:
            assert _ask(used) == b"HTTP/1.1 200 OK"
            assert silent.recv(1) == b""
            assert used.recv(1) == b""
        assert _dropped(mirror, "slow") == 0


def test_26_bodies_that_drip_are_cut_off(registry: FakeRegistry, tmp_path: Path) -> None:
    """Row 26: a request is answered without its body, and the connection does not outlive a body that drips."""
    config = write_config(tmp_path, {"docker.io": registry.url}, workers=1)
    with (
        MirrorProcess(config, env={"MIRROR__SERVER__IDLE_TIMEOUT": "1h"}) as mirror,
        _connected(mirror.port) as connection,
    ):
        connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        received = b""
        while not received.endswith(b"{}"):
            received += connection.recv(65536)
        assert received.startswith(b"HTTP/1.1 200 OK")
        _drip(connection)


def test_26_one_address_has_only_so_many(registry: FakeRegistry, tmp_path: Path) -> None:
    """Row 26: the connection beyond `connections_per_client` is closed without an answer, those before it serve on, and
    one that ends makes room for another.
    """
    config = write_config(tmp_path, {"docker.io": registry.url}, workers=1)
    limits = {"MIRROR__SERVER__CONNECTIONS_PER_CLIENT": "3", "MIRROR__SERVER__CONNECTIONS_EXEMPT": "[]"}
    with MirrorProcess(config, env=limits) as mirror:
        with ExitStack() as stack:
            kept = [stack.enter_context(_connected(mirror.port)) for _ in range(3)]
            for connection in kept:
                assert _ask(connection) == b"HTTP/1.1 200 OK"
            with _connected(mirror.port) as fourth, suppress(ConnectionError):
                assert _ask(fourth) == b""
            assert [_ask(connection) for connection in kept] == [b"HTTP/1.1 200 OK"] * 3
            kept[0].close()

            def let_in() -> bool:
                with _connected(mirror.port) as another, suppress(ConnectionError):
                    return _ask(another) == b"HTTP/1.1 200 OK"
                return False

            eventually(let_in, "another one is let in")
            event = mirror.wait_for_event("connections dropped")
            assert (event["many"], event["client"]) == (1, "127.0.0.1")
        eventually(lambda: _one_more_is_let_in(mirror), "all have left")
        assert _dropped(mirror, "many") >= 1


def _one_more_is_let_in(mirror: MirrorProcess) -> bool:
    try:
        return mirror.get("/v2/")[0] == 200
    except OSError:
        return False


def test_26_proxies_are_not_bound(registry: FakeRegistry, tmp_path: Path) -> None:
    """Row 26: by default loopback, where a proxy of the same machine is, has as many connections as it likes."""
    config = write_config(tmp_path, {"docker.io": registry.url}, workers=1)
    with MirrorProcess(config, env={"MIRROR__SERVER__CONNECTIONS_PER_CLIENT": "1"}) as mirror, ExitStack() as stack:
        every = [stack.enter_context(_connected(mirror.port)) for _ in range(20)]
        assert {_ask(connection) for connection in every} == {b"HTTP/1.1 200 OK"}


@pytest.mark.parametrize(
    ("peer", "key"),
    [
        (("192.0.2.7", 1234), "192.0.2.7"),
        (("::ffff:192.0.2.7", 1234, 0, 0), "192.0.2.7"),
        (("2001:db8:1:2:aaaa::1", 1234, 0, 0), "2001:db8:1:2::/64"),
        (("2001:db8:1:2:bbbb::2", 1234, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 1234, 0, 2), "fe80::/64"),
        (("10.1.2.3", 1234), None),
        (("::ffff:10.1.2.3", 1234, 0, 0), None),
        ("", None),
        (b"", None),
        (None, None),
    ],
)
def test_26_what_is_one_client(peer: object, key: str | None) -> None:
    """Row 26: an IPv4 address however it is written, an IPv6 subnet; unix sockets and proxies are not counted."""
    assert client_key(peer, [ip_network("10.0.0.0/8"), ip_network("::1")]) == key


def test_each_replica_of_one_ipv6_subnet_has_its_own_connections() -> None:
    """The pods of a cluster often share a subnet: one of them takes nothing from the others."""
    limiter = ConnectionLimiter(most=1, subnet=128)
    assert limiter.enter(("2001:db8:1:2::1", 1, 0, 0)) == (True, "2001:db8:1:2::1/128")
    assert limiter.enter(("2001:db8:1:2::2", 1, 0, 0)) == (True, "2001:db8:1:2::2/128")
    assert limiter.enter(("2001:db8:1:2::1", 2, 0, 0)) == (False, None)


def test_26_the_log_is_not_flooded() -> None:
    """Row 26: however many connections are dropped, the log has one line a minute with their number; nothing about an
    address stays after its last connection.
    """
    now = 0.0
    limiter = ConnectionLimiter(most=1, clock=lambda: now)
    lines: list[dict[str, object]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mirror.telemetry.log", _Lines(lines))
        stays, key = limiter.enter(("192.0.2.7", 1))
        assert stays
        for _ in range(1000):
            assert limiter.enter(("192.0.2.7", 2)) == (False, None)
        now = 61.0
        limiter.dropped("slow", ("192.0.2.8", 3))
    assert lines == [{"many": 1, "client": "192.0.2.7"}, {"many": 999, "slow": 1, "client": "192.0.2.8"}]
    limiter.leave(key)
    assert not limiter._open
    assert limiter.enter(("192.0.2.7", 4))[0]


class _Lines:
    def __init__(self, lines: list[dict[str, object]]) -> None:
        self._lines = lines

    def warning(self, _event: str, **what: object) -> None:
        self._lines.append(what)


# ------------------------------------------------------------------------------------------------- before TLS


@asynccontextmanager
async def _over_tls(mirror: LiveMirror, certificate: Certificate, **limits: Any) -> AsyncIterator[_Tls]:
    """A listener with its own TLS, which already listens and accepts no connection before `serve`."""
    listener = socket.create_server(("127.0.0.1", 0))
    limiter = ConnectionLimiter(**limits)
    server = RegistryServer(mirror.app.front, limiter=limiter)
    tls = _Tls(server, limiter, listener, certificate)
    try:
        yield tls
    finally:
        if tls.listening:
            tls.listening.close()
        server.pre_shutdown()
        await server.shutdown(0.1)
        listener.close()


class _Tls:
    def __init__(
        self, server: RegistryServer, limiter: ConnectionLimiter, listener: socket.socket, certificate: Certificate
    ) -> None:
        self.server = server
        self.limiter = limiter
        self.port = listener.getsockname()[1]
        self.listening: asyncio.AbstractServer | None = None
        self._listener = listener
        self._certificate = certificate

    async def serve(self) -> None:
        protocol = partial(self.server.over_tls, self._certificate.server())
        self.listening = await asyncio.get_running_loop().create_server(protocol, sock=self._listener)

    def connect(self) -> socket.socket:
        """Without a handshake."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    async def ask(self, plain: socket.socket) -> bytes:
        """The handshake, and one request."""

        def ask() -> bytes:
            context = self._certificate.client()
            with closing(context.wrap_socket(plain, server_hostname="localhost")) as connection:
                return _ask(connection)

        return await asyncio.to_thread(ask)

    def count(self) -> int:
        """Connections that are counted."""
        return sum(self.limiter._open.values())


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    """Of a listener with TLS."""
    return Certificate(tmp_path / "tls")


async def test_26_connections_count_before_their_handshake(mirror: LiveMirror, certificate: Certificate) -> None:
    """Row 26: `connections_per_client` counts a connection from the moment it is accepted, whatever it sends."""
    async with _over_tls(mirror, certificate, most=2) as tls:
        await tls.serve()
        silent = [tls.connect() for _ in range(2)]
        await until(lambda: tls.count() == 2)
        with tls.connect() as third:
            await until(lambda: _is_closed(third))
        assert not any(_is_closed(one) for one in silent)
        silent[0].close()
        await until(lambda: tls.count() == 1)
        assert await tls.ask(tls.connect()) == b"HTTP/1.1 200 OK"
        silent[1].close()
        await until(lambda: tls.count() == 0)


@pytest.mark.parametrize("sent", ["nothing", "a part", "in drips"])
async def test_26_handshakes_come_in_time(mirror: LiveMirror, certificate: Certificate, sent: str) -> None:
    """Row 26: a handshake has `request_head_timeout`, however much of it comes and however steadily; then it is
    closed and counted. Others are answered meanwhile.
    """
    before = _dropped_for("slow")
    hello = _client_hello(certificate)
    async with _over_tls(mirror, certificate, most=10, head=_IN_TIME) as tls:
        await tls.serve()
        slow = tls.connect()
        if sent != "nothing":
            slow.sendall(hello[:20])
        rest = iter(hello[20:])

        def closed() -> bool:
            if sent == "in drips":
                with suppress(ConnectionError):
                    slow.send(bytes([next(rest, 0)]))
            return _is_closed(slow)

        await until(closed)
        await until(lambda: tls.count() == 0)
        assert _dropped_for("slow") == before + 1
        assert await tls.ask(tls.connect()) == b"HTTP/1.1 200 OK"
        slow.close()


def _client_hello(certificate: Certificate) -> bytes:
    sent = ssl.MemoryBIO()
    handshake = certificate.client().wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost")
    with suppress(ssl.SSLWantReadError):
        handshake.do_handshake()
    return sent.read()


async def test_26_a_head_that_begins_with_the_end_of_the_handshake(
    mirror: LiveMirror, certificate: Certificate
) -> None:
    """Row 26: a head has `request_head_timeout` from its first byte on, also if that byte comes together with the
    client's last message of the handshake. A client that reads nothing does not keep the connection.
    """
    before = _dropped_for("slow")
    async with _over_tls(mirror, certificate, most=10, head=_IN_TIME) as tls:
        await tls.serve()
        plain = tls.connect()
        received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = certificate.client().wrap_bio(received, sent, server_hostname="localhost")

        def shake_hands() -> None:
            while True:
                try:
                    client.do_handshake()
                except ssl.SSLWantReadError:
                    plain.sendall(sent.read())
                    received.write(plain.recv(1 << 16))
                else:
                    return

        await asyncio.to_thread(shake_hands)
        client.write(b"GET /v2/ HT")
        plain.sendall(sent.read())
        await until(lambda: tls.count() == 0)
        assert _dropped_for("slow") == before + 1
        plain.close()


async def test_26_clients_that_do_not_end_tls_are_left(mirror: LiveMirror, certificate: Certificate) -> None:
    """Row 26: a connection that the mirror closes waits for the client's end of TLS as long as for a head, and not for
    the event loop's own 30 seconds.
    """
    async with _over_tls(mirror, certificate, most=10, head=_IN_TIME) as tls:
        await tls.serve()

        def ask() -> ssl.SSLSocket:
            connection = certificate.client().wrap_socket(tls.connect(), server_hostname="localhost")
            connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: mirror\r\nConnection: close\r\n\r\n")
            return connection

        silent = await asyncio.to_thread(ask)
        await until(lambda: tls.server.requests_count == 1)
        # half of what the event loop would wait by itself
        async with asyncio.timeout(15):
            await until(lambda: tls.count() == 0)
        silent.close()


async def test_26_handshakes_that_fail_count_no_more(mirror: LiveMirror, certificate: Certificate) -> None:
    """Row 26: nothing stays of a handshake that fails, or whose client leaves in any way."""
    gauge = telemetry.CONNECTIONS._value
    open_before = gauge.get()
    async with _over_tls(mirror, certificate, most=100) as tls:
        await tls.serve()
        hello = _client_hello(certificate)
        for opening in (b"", b"\x16", _WHOLE, hello[:100], hello):
            for reset in (False, True):
                connection = tls.connect()
                connection.sendall(opening)
                if reset:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()
        assert await tls.ask(tls.connect()) == b"HTTP/1.1 200 OK"
        await until(lambda: tls.count() == 0)
        assert not tls.server._handshakes
        assert gauge.get() == open_before


async def test_26_a_handshake_that_began_before_it_was_accepted(mirror: LiveMirror, certificate: Certificate) -> None:
    """Bytes that the event loop has read before TLS is in place are not lost."""
    async with _over_tls(mirror, certificate, most=100) as tls:
        # all have sent the first message of their handshake, and wait for an answer
        asking = [asyncio.create_task(tls.ask(tls.connect())) for _ in range(4)]
        await until(lambda: _waiting_to_be_read(tls.port) == len(asking))
        await tls.serve()
        assert await asyncio.gather(*asking) == [b"HTTP/1.1 200 OK"] * len(asking)


def _waiting_to_be_read(port: int) -> int:
    """The connections to this loopback port with bytes that were sent and not read yet (proc(5), /proc/net/tcp)."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    local = f"0100007F:{port:04X}"
    return sum(line[1] == local and line[3] == "01" and int(line[4].partition(":")[2], 16) > 0 for line in lines)


async def test_26_a_handshake_under_way_holds_up_no_shutdown(mirror: LiveMirror, certificate: Certificate) -> None:
    """Row 26: when the server stops, connections without a handshake are closed."""
    async with _over_tls(mirror, certificate, most=100) as tls:
        await tls.serve()
        silent = tls.connect()
        await until(lambda: tls.count() == 1)
        tls.server.pre_shutdown()
        await until(lambda: _is_closed(silent))
        await until(lambda: tls.count() == 0)
        silent.close()


async def test_26_pipelined_requests_are_no_drip(mirror: LiveMirror) -> None:
    """Row 26: requests that are cut anywhere and come in time are all answered, on one connection."""
    many = _WHOLE * 5
    for at in range(1, len(many), 7):
        received = await mirror.raw(
            many[:at], many[at:] + _WHOLE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        )
        assert received.count(b"HTTP/1.1 200 OK") == 6


@pytest.mark.parametrize("wrong", ["nonsense", "10.0.0.1/8", "proxy.example"])
def test_26_what_is_no_network(tmp_path: Path, wrong: str) -> None:
    """A mistake in the list names its entry."""
    file = tmp_path / "mirror.toml"
    file.write_text(f"[server]\nconnections_exempt = {json.dumps(['10.0.0.0/8', wrong])}\n")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert caught.value.mistakes[0].startswith("server.connections_exempt[2]: ")


def test_26_networks_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list may be written with commas there, as other lists."""
    file = tmp_path / "mirror.toml"
    file.write_text("")
    monkeypatch.setenv("MIRROR__SERVER__CONNECTIONS_EXEMPT", "10.0.0.0/8, fd00::/8,192.0.2.1")
    assert load(file).server.connections_exempt == ["10.0.0.0/8", "fd00::/8", "192.0.2.1"]

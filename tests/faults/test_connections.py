"""Row 26: clients that hold connections without asking for anything, or take for ever to ask."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from ipaddress import ip_network
from pathlib import Path

import pytest

from mirror.config import load
from mirror.errors import ConfigError
from mirror.server.entrance import Entrance, client_key
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import LiveMirror
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import PATIENCE, eventually

_WHOLE = b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"
#: A head that goes on: each byte is welcome, the end never comes.
_ENDLESS = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Slow: "


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
    has been answered; others are answered meanwhile, the metric counts each, and the log tells of it once a minute.
    """
    config = write_config(tmp_path, {"docker.io": registry.url}, workers=1)
    with MirrorProcess(config, env={"MIRROR__SERVER__REQUEST_HEAD": "2s", "MIRROR__SERVER__IDLE": "1h"}) as mirror:
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
        lines = [line for line in mirror.log if line["event"] == "connections dropped"]
        assert [(line["slow"], line["client"]) for line in lines] == [(1, "127.0.0.1")]


def test_26_connections_without_a_request_are_closed(registry: FakeRegistry, tmp_path: Path) -> None:
    """Row 26: who connects and says nothing, and who says nothing more after an answer, is closed after `idle`."""
    config = write_config(tmp_path, {"docker.io": registry.url}, workers=1)
    with MirrorProcess(config, env={"MIRROR__SERVER__IDLE": "1500ms"}) as mirror:
        with _connected(mirror.port) as silent, _connected(mirror.port) as used:
            assert _ask(used) == b"HTTP/1.1 200 OK"
            assert silent.recv(1) == b""
            assert used.recv(1) == b""
        assert _dropped(mirror, "slow") == 0


def test_26_bodies_that_drip_are_cut_off(registry: FakeRegistry, tmp_path: Path) -> None:
    """Row 26: a request is answered without its body, and the connection does not outlive a body that drips."""
    config = write_config(tmp_path, {"docker.io": registry.url}, workers=1)
    with MirrorProcess(config, env={"MIRROR__SERVER__IDLE": "1h"}) as mirror, _connected(mirror.port) as connection:
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
    limits = {"MIRROR__SERVER__CONNECTIONS_PER_CLIENT": "3", "MIRROR__SERVER__CONNECTIONS_UNLIMITED": "[]"}
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
            told = mirror.wait_for_event("connections dropped")
            assert (told["many"], told["client"]) == (1, "127.0.0.1")
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


def test_26_the_log_is_not_flooded() -> None:
    """Row 26: however many are dropped, a line comes once a minute, with how many since; nothing of an address stays
    after its last connection.
    """
    now = 0.0
    entrance = Entrance(most=1, clock=lambda: now)
    lines: list[dict[str, object]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mirror.telemetry.log", _Lines(lines))
        stays, key = entrance.enter(("192.0.2.7", 1))
        assert stays
        for _ in range(1000):
            assert entrance.enter(("192.0.2.7", 2)) == (False, None)
        now = 61.0
        entrance.slow(("192.0.2.8", 3))
    assert lines == [{"many": 1, "client": "192.0.2.7"}, {"many": 999, "slow": 1, "client": "192.0.2.8"}]
    entrance.leave(key)
    assert not entrance._open
    assert entrance.enter(("192.0.2.7", 4))[0]


class _Lines:
    def __init__(self, lines: list[dict[str, object]]) -> None:
        self._lines = lines

    def warning(self, _event: str, **what: object) -> None:
        self._lines.append(what)


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
    file.write_text(f"[server]\nconnections_unlimited = {json.dumps(['10.0.0.0/8', wrong])}\n")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert caught.value.mistakes[0].startswith("server.connections_unlimited[2]: ")


def test_26_networks_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list may be written with commas there, as other lists."""
    file = tmp_path / "mirror.toml"
    file.write_text("")
    monkeypatch.setenv("MIRROR__SERVER__CONNECTIONS_UNLIMITED", "10.0.0.0/8, fd00::/8,192.0.2.1")
    assert load(file).server.connections_unlimited == ["10.0.0.0/8", "fd00::/8", "192.0.2.1"]

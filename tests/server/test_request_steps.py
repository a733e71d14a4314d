"""When a client was last heard is what the kernel knows of its connection."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from mirror.errors import StaleRequest, answer_for
from mirror.policy.hosted.standstill import LONGEST, has_stood_still
from mirror.ports import ABSENT, in_time
from mirror.server.registry.request_steps import RequestSteps


class _Request:
    """Of aiohttp's, what steps look at."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.transport: _Request | None = self
        self.closing = False

    def get_extra_info(self, name: str) -> Any:
        return self._connection if name == "socket" else None

    def is_closing(self) -> bool:
        return self.closing


class _Silent:
    """A connection of which the kernel says that nothing has come for so many seconds."""

    family = socket.AF_INET

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) == (socket.IPPROTO_TCP, socket.TCP_INFO)
        return struct.pack("=52xI", int(self._seconds * 1000))[:size]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's connection, and the server's side of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        server, _ = listener.accept()
        with server:
            yield client, server


def _steps(request: Any) -> RequestSteps:
    return RequestSteps.of(request)


def test_a_minute_is_too_long() -> None:
    assert not has_stood_still(100.0, 100.0 + LONGEST - 0.001)
    assert has_stood_still(100.0, 100.0 + LONGEST)


def test_the_kernel_says_when_the_last_byte_came(pair: tuple[socket.socket, socket.socket]) -> None:
    """Of a connection whose client has just sent something, that is now."""
    client, server = pair
    client.sendall(b"x")
    assert server.recv(1) == b"x"
    _steps(_Request(server)).go_on()


def test_a_request_that_waited_in_the_kernel_has_stood_still() -> None:
    """As that which was sent to a frozen process: nothing of it was read before."""
    with pytest.raises(StaleRequest, match="stood still for 75 s") as raised:
        _steps(_Request(_Silent(75.0))).go_on()
    assert answer_for(raised.value).status == 503
    _steps(_Request(_Silent(LONGEST - 1))).go_on()


def test_what_has_no_such_clock_begins_now() -> None:
    """A unix socket, and a connection of which nothing is known."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        _steps(_Request(ours)).go_on()
    _steps(_Request(None)).go_on()


def test_a_client_that_has_left_is_waited_for_by_nobody() -> None:
    request = _Request(None)
    steps = _steps(request)
    steps.go_on()
    request.closing = True
    with pytest.raises(StaleRequest, match="left"):
        steps.go_on(after_long_work=True)
    request.closing, request.transport = False, None
    with pytest.raises(StaleRequest, match="left"):
        in_time(steps.expect(ABSENT))


def test_long_work_is_not_a_standstill() -> None:
    """If it is announced as such; what follows it is measured from there."""
    now = [100.0]
    steps = RequestSteps(100.0, clock=lambda: now[0])
    now[0] += 2 * LONGEST
    steps.go_on(after_long_work=True)
    now[0] += LONGEST - 1
    assert in_time(steps.expect(ABSENT)) is ABSENT
    now[0] += LONGEST
    with pytest.raises(StaleRequest):
        steps.go_on()

"""Ports for programs that cannot be told to listen on port 0."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Callable
from typing import TypeVar

from tests.support.process import ProgramFailed

T = TypeVar("T")

#: Below the ports that the kernel gives to connections and to listeners on port 0 (ip_local_port_range).
_PORTS = range(12_000, 32_000)
_TRIES = 5


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody listens on at this moment, all different."""
    chosen: list[int] = []
    with contextlib.ExitStack() as held:
        while len(chosen) < count:
            port = random.choice(_PORTS)
            with contextlib.suppress(OSError):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
                chosen.append(port)
    return chosen


def with_free_ports(count: int, start: Callable[[list[int]], T]) -> T:
    """What `start` gives for so many free ports. It is tried again with others if it raises `ProgramFailed`: another
    program may have taken one of them meanwhile.
    """
    for _ in range(_TRIES - 1):
        with contextlib.suppress(ProgramFailed):
            return start(free_ports(count))
    return start(free_ports(count))

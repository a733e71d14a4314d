"""Ports for programs that cannot be told to listen on port 0, or that end and begin again at the same port.

Nobody else gets such a port while its program does not run: the kernel gives ports above these, other processes of the
same run of the tests choose among others, and this process chooses each once.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Callable
from typing import TypeVar

from tests.support.process import ProgramFailed

T = TypeVar("T")

#: Below the ports that the kernel gives to connections and to listeners on port 0 (ip_local_port_range).
_PORTS = range(12_000, 32_000)
_TRIES = 5
#: Those of this process that it has not chosen yet, in any order: other runs may go on beside this one.
_left: list[int] = []


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody listens on at this moment, all different."""
    chosen: list[int] = []
    with contextlib.ExitStack() as held:
        while len(chosen) < count:
            if not _left:
                _left.extend(_own_ports())
            port = _left.pop()
            with contextlib.suppress(OSError):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
                chosen.append(port)
    return chosen


def _own_ports() -> list[int]:
    """Of this process of pytest-xdist, in an order that no seed of a test repeats."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    own = list(_PORTS[number :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))])
    random.SystemRandom().shuffle(own)
    return own


def with_free_ports(count: int, start: Callable[[list[int]], T]) -> T:
    """What `start` gives for so many free ports. It is tried again with others if it raises `ProgramFailed`: another
    program may have taken one of them meanwhile.
    """
    for _ in range(_TRIES - 1):
        with contextlib.suppress(ProgramFailed):
            return start(free_ports(count))
    return start(free_ports(count))

"""Listening sockets, opened once by the parent and handed to its workers.

Each worker has a socket of its own on the same address (SO_REUSEPORT), so that the kernel spreads connections evenly.
The parent keeps all of them open: what waits in the queue of a worker that died is taken by its successor.
"""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress

from mirror.errors import ConfigError

__all__ = ["address_of", "open_listeners"]

_BACKLOG = 4096


def open_listeners(listen: str, workers: int) -> list[socket.socket]:
    """One socket for each worker; of a unix path, the same one for all. Raises `ConfigError` naming the address."""
    try:
        if listen.startswith("unix:"):
            return [_unix(listen.removeprefix("unix:"))] * workers
        host, _, port = listen.rpartition(":")
        return _tcp(host.strip("[]"), int(port), workers)
    except OSError as error:
        raise ConfigError([f"server.listen: {listen}: {error.strerror or error}"]) from error


def _tcp(host: str, port: int, workers: int) -> list[socket.socket]:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    # without sharing first: with it, two mirrors started by mistake on one port would each get half of the clients
    first = _bound(family, kind, protocol, address, share=False)
    if workers == 1:
        first.listen(_BACKLOG)
        return [first]
    address = first.getsockname()
    first.close()
    sockets = [_bound(family, kind, protocol, address, share=True) for _ in range(workers)]
    for one in sockets:
        one.listen(_BACKLOG)
    return sockets


def _bound(family: int, kind: int, protocol: int, address: object, *, share: bool) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(address)  # type: ignore[arg-type]  # as getaddrinfo gave it
    except OSError:
        made.close()
        raise
    return made


def _unix(path: str) -> socket.socket:
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            # the socket of a mirror that did not end properly; a living one would be answered
            probe = socket.socket(socket.AF_UNIX)
            try:
                probe.connect(path)
            except OSError:
                os.unlink(path)
            finally:
                probe.close()
    made = socket.socket(socket.AF_UNIX)
    try:
        made.bind(path)
        made.listen(_BACKLOG)
    except OSError:
        made.close()
        raise
    return made


def address_of(listener: socket.socket) -> str:
    """As a client would write it."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    host, port = name[:2]
    return f"[{host}]:{port}" if listener.family == socket.AF_INET6 else f"{host}:{port}"

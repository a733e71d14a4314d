"""Listening sockets, opened once by the parent and handed to its workers.

Each worker has a socket of its own on the same address (SO_REUSEPORT), so that the kernel spreads connections evenly.
The parent keeps all of them open: what waits in the queue of a worker that died is taken by its successor.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mirror.errors import ConfigError

__all__ = ["AdminListener", "address_of", "connect_unix", "is_local", "open_admin", "open_listeners"]

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


@dataclass(frozen=True, slots=True)
class AdminListener:
    """Where the admin API is heard, as a client would write it, and a socket for each worker."""

    address: str
    sockets: list[socket.socket]


def open_admin(listen: str, workers: int) -> AdminListener:
    """Raises `ConfigError` naming the address. A unix socket is for this user alone (0600).

    It replaces the socket of another mirror in the same place, dead or alive: while one process takes over from
    another, the newer one is spoken to. Either could answer, for they share what they know.
    """
    try:
        if listen.startswith("unix:"):
            return AdminListener(listen, [_private_unix(Path(listen.removeprefix("unix:")))] * workers)
        host, _, port = listen.rpartition(":")
        sockets = _tcp(host.strip("[]"), int(port), workers)
        return AdminListener(address_of(sockets[0]), sockets)
    except OSError as error:
        raise ConfigError([f"admin.listen: {listen}: {error.strerror or error}"]) from error


def _private_unix(path: Path) -> socket.socket:
    if path.exists() and not path.is_socket():
        raise FileExistsError(0, "a file that is no socket is there")
    made = socket.socket(socket.AF_UNIX)
    temporary = f".{secrets.token_hex(8)}"
    try:
        with _short(path.parent) as folder:
            made.bind(f"{folder}/{temporary}")
            try:
                # before anybody can find it
                os.chmod(f"{folder}/{temporary}", 0o600)
                made.listen(_BACKLOG)
                os.rename(f"{folder}/{temporary}", path)
            except OSError:
                os.unlink(f"{folder}/{temporary}")
                raise
    except OSError:
        made.close()
        raise
    return made


def connect_unix(path: Path, *, timeout: float) -> socket.socket:
    """A connection to a unix socket, however long its path is. Raises `OSError`."""
    made = socket.socket(socket.AF_UNIX)
    try:
        made.settimeout(timeout)
        with _short(path.parent) as folder:
            made.connect(f"{folder}/{path.name}")
    except OSError:
        made.close()
        raise
    return made


@contextmanager
def _short(folder: Path) -> Iterator[str]:
    """Another name of a folder, for the kernel takes no more than 107 bytes for a unix socket's path (unix(7))."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def is_local(listener: socket.socket) -> bool:
    """Whether only this machine reaches it."""
    return listener.family == socket.AF_UNIX or ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def address_of(listener: socket.socket) -> str:
    """As a client would write it."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    host, port = name[:2]
    return f"[{host}]:{port}" if listener.family == socket.AF_INET6 else f"{host}:{port}"

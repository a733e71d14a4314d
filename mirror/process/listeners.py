"""Listening sockets, opened once by the parent and inherited by its workers.

Each worker has its own socket on the same address (SO_REUSEPORT), so that the kernel spreads connections evenly. The
parent keeps all of them open: connections that wait in the queue of a worker that died are accepted by its successor.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import secrets
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mirror.errors import ConfigError, ListenerUnavailable, MirrorError, reason_of

_BACKLOG = 4096
#: Why listening fails for a while only: an earlier mirror still ends, the network is not up yet, or names cannot be
#: looked up yet.
_PASSING: Final = frozenset({errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.ENETDOWN, socket.EAI_AGAIN})


def open_listeners(listen: str, workers: int, *, setting: str = "server.listen") -> list[socket.socket]:
    """One socket for each worker; for a unix path, all workers share one. Raises `ConfigError`, or
    `ListenerUnavailable` if it may work soon; both name the address and the setting that has it.
    """
    try:
        if listen.startswith("unix:"):
            return [_unix(listen.removeprefix("unix:"))] * workers
        host, _, port = listen.rpartition(":")
        return _tcp(host.strip("[]"), int(port), workers)
    except OSError as error:
        raise _failed(f"{setting}: {listen}", error) from error


def _failed(named: str, error: OSError) -> MirrorError:
    """What to raise. A supervisor such as systemd starts a mirror again that could not listen, but not one whose
    configuration is wrong.
    """
    message = f"{named}: {reason_of(error)}"
    return ListenerUnavailable(message) if error.errno in _PASSING else ConfigError([message])


def _tcp(host: str, port: int, workers: int) -> list[socket.socket]:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    # bind without SO_REUSEPORT first: with it, two mirrors started by mistake on one port would each get half of the
    # clients
    first = _bound(family, kind, protocol, address, share=False)
    if workers == 1:
        first.listen(_BACKLOG)
        return [first]
    address = first.getsockname()
    first.close()
    sockets = [_bound(family, kind, protocol, address, share=True) for _ in range(workers)]
    for listener in sockets:
        listener.listen(_BACKLOG)
    return sockets


def _bound(family: int, kind: int, protocol: int, address: object, *, share: bool) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(address)  # type: ignore[arg-type]  # an address from getaddrinfo
    except OSError:
        made.close()
        raise
    return made


def _unix(path: str) -> socket.socket:
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            # may be left by a mirror that crashed; if a live one accepts, the socket stays, and bind fails
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
class InternalListener:
    """The listener for other replicas: a socket for each worker, and the descriptor of the memory in which all workers
    remember the requests that they have taken.
    """

    sockets: list[socket.socket]
    nonces: int


@dataclass(frozen=True, slots=True)
class AdminListener:
    """The address of the admin API, as a client would write it, and a socket for each worker."""

    address: str
    sockets: list[socket.socket]


def open_admin(listen: str, workers: int) -> AdminListener:
    """The admin API's listener. Only this user may connect to a unix socket (0600). Raises `ConfigError`, or
    `ListenerUnavailable` if it may work soon; both name the address.

    A unix socket replaces that of another mirror in the same place, dead or alive: while one process takes over from
    another, clients reach the newer one. Either could answer, because both share their state.
    """
    try:
        if listen.startswith("unix:"):
            return AdminListener(listen, [_private_unix(Path(listen.removeprefix("unix:")))] * workers)
        host, _, port = listen.rpartition(":")
        sockets = _tcp(host.strip("[]"), int(port), workers)
        return AdminListener(address_of(sockets[0]), sockets)
    except OSError as error:
        raise _failed(f"admin.listen: {listen}", error) from error


def _private_unix(path: Path) -> socket.socket:
    if path.exists() and not path.is_socket():
        raise FileExistsError(0, "a file that is not a socket is in its place")
    made = socket.socket(socket.AF_UNIX)
    temporary = f".{secrets.token_hex(8)}"
    try:
        with _short(path.parent) as folder:
            made.bind(f"{folder}/{temporary}")
            try:
                # before the socket has its final name
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
    """A connection to a unix socket, whatever the length of its path. `timeout` is in seconds. Raises `OSError`."""
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
    """A short path of a folder, valid inside the `with`: the kernel takes at most 107 bytes for a unix socket's path
    (unix(7)).
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def is_local(listener: socket.socket) -> bool:
    """True if only this machine can reach the listener."""
    return listener.family == socket.AF_UNIX or ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def address_of(listener: socket.socket) -> str:
    """The listener's address as a client would write it."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    host, port = name[:2]
    return f"[{host}]:{port}" if listener.family == socket.AF_INET6 else f"{host}:{port}"

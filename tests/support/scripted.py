"""An upstream on raw sockets that sends exactly the bytes a test says, well-formed or not.

    with Scripted() as upstream:
        upstream.on("/v2/a/blobs/x", reply(200, b"hello"))  # every request for this path
        upstream.once("/v2/a/blobs/x", reply(200, b"hel", length=5), Close())  # the next one only
        ... ask upstream.url + "/v2/a/blobs/x" ...
        assert upstream.requests[0].header("Range") == "bytes=3-"

A script is a list of steps, written one after the other to the connection: bytes are sent as they are, `Stall` waits
until the test releases it, `Reset` ends with RST, `Close` with FIN. After a script without an end the connection takes
the next request. A callable gets the `Request` and returns the steps. What no script matches is answered with 404.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Request:
    """One request as it came: `target` is path and query byte for byte, `connection` counts connections from 0."""

    method: str
    target: str
    version: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    connection: int

    @property
    def path(self) -> str:
        """Without the query."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> dict[str, list[str]]:
        """Decoded."""
        return parse_qs(urlsplit(self.target).query)

    def header(self, name: str) -> str | None:
        """The first of this name."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def start(self) -> int:
        """Where its Range begins, 0 without one."""
        given = self.header("Range")
        return int(given.removeprefix("bytes=").partition("-")[0]) if given else 0


@dataclass
class Stall:
    """Nothing more until `release`; `reached` is set when the script has come here."""

    reached: threading.Event = field(default_factory=threading.Event)
    _released: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        """Let the script go on."""
        self._released.set()

    def wait(self) -> None:
        """By the upstream's thread."""
        self.reached.set()
        self._released.wait(60)


@dataclass(frozen=True)
class Close:
    """End the connection in order (FIN)."""


@dataclass(frozen=True)
class Reset:
    """End it with RST (SO_LINGER 0)."""


Step: TypeAlias = bytes | Stall | Close | Reset
Script: TypeAlias = Sequence[Step]
Answering: TypeAlias = Callable[[Request], Script]


def head(status: int, headers: Mapping[str, str] | Iterable[tuple[str, str]] = (), *, version: str = "1.1") -> bytes:
    """A status line and header lines, nothing added."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    lines = [f"HTTP/{version} {status} X", *(f"{name}: {value}" for name, value in pairs)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def reply(
    status: int, body: bytes = b"", headers: Mapping[str, str] | None = None, *, length: int | None = None
) -> list[Step]:
    """A whole answer; `length` puts another Content-Length than the body's."""
    lengths = {"Content-Length": str(len(body) if length is None else length)}
    return [head(status, {**lengths, **(headers or {})}), body]


def reply_json(status: int, body: Any, headers: Mapping[str, str] | None = None) -> list[Step]:
    """A JSON answer."""
    return reply(status, json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})})


def chunked(*pieces: bytes, end: bool = True) -> bytes:
    """A chunked body, each piece a chunk; without `end` the last chunk is missing."""
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return body + (b"0\r\n\r\n" if end else b"")


class Scripted:
    """The upstream. A context manager; listens on loopback, on a port of its own, one thread per connection."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self._tls = tls
        self._always: dict[str, Script | Answering] = {}
        self._queued: dict[str, list[Script | Answering]] = {}
        self._lock = threading.Condition()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._stalled: list[Stall] = []
        self._stopping = False
        self._is_away = False
        self.requests: list[Request] = []
        self.connections = 0
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=512)
        self.host, self.port = host, int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        """`http://127.0.0.1:port`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    def on(self, path: str, *script: Script | Step | Answering) -> None:
        """Every request for this path (without query); `*` is for what has no script of its own."""
        with self._lock:
            self._always[path] = _joined(script)

    def once(self, path: str, *script: Script | Step | Answering) -> None:
        """One request for this path, after those queued before; then `on` holds again."""
        with self._lock:
            self._queued.setdefault(path, []).append(_joined(script))

    @property
    def arrivals(self) -> threading.Condition:
        """Notified when a request has come, which is in `requests` by then."""
        return self._lock

    def asked(self, path: str, method: str | None = None) -> list[Request]:
        """The requests for one path so far."""
        with self._lock:
            return [one for one in self.requests if one.path == path and method in (None, one.method)]

    def wait_for(self, count: int, path: str | None = None, timeout: float = 30) -> None:
        """Until so many requests have come."""

        def enough() -> bool:
            return sum(path in (None, one.path) for one in self.requests) >= count

        with self._lock:
            assert self._lock.wait_for(enough, timeout), f"only {len(self.requests)} requests came"

    def away(self) -> None:
        """Refuse connections, and break those that are open, until `back`. The port stays this upstream's."""
        with self._lock:
            # a client whose connection broke may send its request again on another one before that is broken as well
            self._is_away = True
            still_open, stalled = list(self._open), list(self._stalled)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        # bound and not listening: the port refuses connections, and no other process gets it
        self._listener = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((self.host, self.port))
        for connection in still_open:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for step in stalled:
            step.release()

    def back(self) -> None:
        """Accept connections again, on the same port."""
        with self._lock:
            self._is_away = False
        self._listener.listen(512)
        self.start()

    def start(self) -> Scripted:
        """Begin to accept."""
        thread = threading.Thread(target=self._accept, daemon=True)
        self._threads.append(thread)
        thread.start()
        return self

    def stop(self) -> None:
        """Close everything, also what is stalled."""
        with self._lock:
            self._stopping = True
            still_open = list(self._open)
            stalled = list(self._stalled)
        for step in stalled:
            step.release()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in still_open:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(30)

    def __enter__(self) -> Scripted:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _accept(self) -> None:
        listener = self._listener
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                if self._stopping:
                    connection.close()
                    return
                number, self.connections = self.connections, self.connections + 1
                thread = threading.Thread(target=self._serve, args=(connection, number), daemon=True)
                self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls:
            try:
                connection = self._tls.wrap_socket(connection, server_side=True)
            except OSError:
                connection.close()
                return
        with self._lock:
            self._open.add(connection)
        try:
            with connection, connection.makefile("rb") as incoming:
                while (request := _read(incoming, number)) is not None:
                    if not self._answer(connection, request):
                        break
        except (OSError, ValueError):
            pass  # the client has left; what it asked is in `requests`
        finally:
            with self._lock:
                self._open.discard(connection)

    def _answer(self, connection: socket.socket, request: Request) -> bool:
        with self._lock:
            if self._is_away:
                return False
            self.requests.append(request)
            self._lock.notify_all()
            queued = self._queued.get(request.path)
            script = queued.pop(0) if queued else self._always.get(request.path, self._always.get("*"))
        steps = script(request) if callable(script) else script
        for step in reply(404) if steps is None else steps:
            if isinstance(step, Close):
                return False
            if isinstance(step, Reset):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
            if isinstance(step, Stall):
                with self._lock:
                    self._stalled.append(step)
                    if self._stopping:
                        step.release()
                step.wait()
            elif step:
                connection.sendall(step)
        return True


def _joined(script: Sequence[Script | Step | Answering]) -> Script | Answering:
    if len(script) == 1 and callable(script[0]):
        return script[0]
    steps: list[Step] = []
    for part in script:
        assert not callable(part), "a callable stands alone"
        if isinstance(part, bytes | Stall | Close | Reset):
            steps.append(part)
        else:
            steps.extend(part)
    return steps


def _read(incoming: Any, number: int) -> Request | None:
    line = incoming.readline().decode("latin-1").rstrip("\r\n")
    if not line:
        return None
    method, target, version = line.split(" ")
    headers: list[tuple[str, str]] = []
    while field_line := incoming.readline().decode("latin-1").rstrip("\r\n"):
        name, _, value = field_line.partition(":")
        headers.append((name, value.strip()))
    length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
    return Request(method, target, version, tuple(headers), incoming.read(length), number)

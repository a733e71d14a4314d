"""An HTTP proxy before an object store, which does to single requests what networks and stores do.

    with FaultProxy(engine.endpoint) as proxy:
        access = engine.access.changed(endpoint=proxy.url)
        proxy.cause(Answer(503, "SlowDown"), times=2)            # the next two requests
        proxy.cause(LostAnswer(), where=lambda call: call.method == "PUT" and "/_tags/" in call.target)
        proxy.cause(Reset())                                     # all from now on, until heal()
        proxy.heal()

Requests that are signed for the proxy's address pass: stores check signatures by the `Host` header that was sent.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Final, TypeAlias
from urllib.parse import quote, unquote, urlsplit

from tests.support.relay import Relay

#: Close by a reset, without waiting for the other side (socket(7), SO_LINGER).
_RESET: Final = struct.pack("ii", 1, 0)
_PIECE: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class StoreCall:
    """The head of one request; the names of its headers are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]

    @property
    def lists(self) -> bool:
        """Whether it asks for a listing."""
        return self.method == "GET" and ("list-type=2" in self.target or "comp=list" in self.target)


@dataclass(frozen=True, slots=True)
class Reset:
    """The connection breaks before the store has seen the request."""


@dataclass(frozen=True, slots=True)
class Silence:
    """No answer; the store does not see the request. Ends with `heal`."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An error of the store, which has not looked at the request."""

    status: int
    code: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LostAnswer:
    """The store does what it is asked, and the connection breaks before the answer."""


@dataclass(frozen=True, slots=True)
class CutAnswer:
    """The connection breaks after so many bytes of the answer's body."""

    after: int


@dataclass(frozen=True, slots=True)
class StalledAnswer:
    """Nothing comes after so many bytes of the answer's body, until `heal`, which breaks the connection."""

    after: int


@dataclass(frozen=True, slots=True)
class CutRequest:
    """The connection breaks after so many bytes of the request's body; the store sees it break, too."""

    after: int


@dataclass(frozen=True, slots=True)
class SlowAnswer:
    """So many bytes of the answer's body in a second."""

    rate: int


@dataclass(frozen=True, slots=True)
class FlippedRequest:
    """One bit of the last byte of the request's body."""


@dataclass(frozen=True, slots=True)
class FlippedAnswer:
    """One bit of the last byte of the answer's body."""


@dataclass(frozen=True, slots=True)
class Meanwhile:
    """Somebody else does this before the store sees the request."""

    act: Callable[[], object]


@dataclass(frozen=True, slots=True)
class StaleListing:
    """Listings lack the objects whose keys have this in them."""

    part: str


Fault: TypeAlias = (
    Reset
    | Silence
    | Answer
    | LostAnswer
    | CutAnswer
    | StalledAnswer
    | CutRequest
    | SlowAnswer
    | FlippedRequest
    | FlippedAnswer
    | Meanwhile
    | StaleListing
)


@dataclass(slots=True)
class _Cause:
    fault: Fault
    where: Callable[[StoreCall], bool]
    left: int | None


class _Broken(Exception):
    """Both connections have to be reset."""


class FaultProxy(Relay):
    """Listens on a port of its own; `endpoint` is the store's URL, whose path is not looked at."""

    def __init__(self, endpoint: str) -> None:
        super().__init__()
        parts = urlsplit(endpoint)
        self._path = parts.path
        self._server = (parts.hostname or "", parts.port or 80)
        self._causes: list[_Cause] = []
        self._healed = threading.Event()
        #: Every request so far.
        self.calls: list[StoreCall] = []
        #: How often each fault happened.
        self.happened: dict[type[Fault], int] = {}

    @property
    def url(self) -> str:
        """The endpoint to configure, without a slash at its end."""
        return f"http://127.0.0.1:{self.port}{self._path}"

    def cause(
        self, fault: Fault, *, times: int | None = None, where: Callable[[StoreCall], bool] = lambda call: True
    ) -> None:
        """Do this to the requests that `where` names: to so many of them, or to all until `heal`. The first fault that
        fits a request happens to it, in the order in which they were caused.
        """
        with self._lock:
            self._causes.append(_Cause(fault, where, times))

    def heal(self) -> None:
        """No fault from now on."""
        with self._lock:
            self._causes.clear()
            self._healed.set()
            self._healed = threading.Event()

    def lead_to(self, host: str, port: int) -> None:
        """Requests on connections that begin from now on go to this server."""
        self._server = (host, port)

    def disconnect(self) -> None:
        """Break every connection that is open now, in the middle of whatever passes."""
        with self._lock:
            broken = list(self._open)
        for one in broken:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def count(self, method: str, part: str = "") -> int:
        """How many requests with this method had `part` in their target."""
        with self._lock:
            return sum(call.method == method and part in call.target for call in self.calls)

    def _next(self, call: StoreCall) -> tuple[Fault | None, threading.Event]:
        with self._lock:
            self.calls.append(call)
            for cause in self._causes:
                if not cause.where(call):
                    continue
                if cause.left is not None:
                    cause.left -= 1
                    if not cause.left:
                        self._causes.remove(cause)
                kind = type(cause.fault)
                self.happened[kind] = self.happened.get(kind, 0) + 1
                return cause.fault, self._healed
            return None, self._healed

    def __exit__(self, *error: object) -> None:
        self.heal()
        super().__exit__(None, None, None)

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            with self._lock:
                self._open.add(client)
            try:
                with client.makefile("rb") as requests:
                    self._serve_all(client, requests)
            except _Broken:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            finally:
                with self._lock:
                    self._open.discard(client)

    def _serve_all(self, client: socket.socket, requests: BinaryIO) -> None:
        server: socket.socket | None = None
        answers: BinaryIO | None = None
        try:
            while head := _head(requests):
                first, headers = _parsed(head)
                method, target = first.split(" ")[:2]
                call = StoreCall(method, target, headers)
                fault, healed = self._next(call)
                if headers.get("expect") == "100-continue":
                    client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = _body(requests, headers)
                if isinstance(fault, Reset):
                    raise _Broken
                if isinstance(fault, Silence):
                    healed.wait()
                    raise _Broken
                if isinstance(fault, Meanwhile):
                    fault.act()
                if isinstance(fault, Answer):
                    for _ in body:
                        pass
                    client.sendall(_refusal(fault, method))
                    continue
                if server is None or answers is None:
                    server = socket.create_connection(self._server)
                    server.settimeout(600)
                    answers = server.makefile("rb")
                try:
                    server.sendall(head)
                    chunked = headers.get("transfer-encoding") == "chunked"
                    _send(server, _faulty_request(body, fault), chunked=chunked)
                except _Broken:
                    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    raise
                if not self._answer(client, answers, method, fault, healed):
                    return
        finally:
            if answers is not None:
                answers.close()
            if server is not None:
                server.close()

    def _answer(
        self, client: socket.socket, answers: BinaryIO, method: str, fault: Fault | None, healed: threading.Event
    ) -> bool:
        """Pass one answer on; whether the connection may be used again."""
        head = _head(answers)
        while head.startswith(b"HTTP/1.1 100"):
            head = _head(answers)
        if not head:
            # the store has closed an idle connection, or it was killed
            raise _Broken
        first, headers = _parsed(head)
        bodiless = method == "HEAD" or first.split(" ")[1] in ("204", "304")
        body = iter(()) if bodiless else _body(answers, headers, to_end=True)
        if isinstance(fault, LostAnswer):
            for _ in body:
                pass
            raise _Broken
        if isinstance(fault, StaleListing):
            content = _without(b"".join(body), fault.part)
            kept = re.sub(rb"(?im)^(content-length|transfer-encoding):[^\r]*\r\n", b"", head)
            client.sendall(kept[:-2] + b"Content-Length: %d\r\n\r\n" % len(content) + content)
            return True
        client.sendall(head)
        chunked = headers.get("transfer-encoding") == "chunked"
        _send(client, _faulty_answer(body, fault, healed), chunked=chunked and not bodiless)
        ends = headers.get("connection", "").lower() == "close" or not (
            bodiless or chunked or "content-length" in headers
        )
        return not ends


def _head(stream: BinaryIO) -> bytes:
    """Up to the empty line, which is a part of it; empty at the end of the stream."""
    lines = []
    while line := stream.readline(1 << 16):
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)
    return b""


def _parsed(head: bytes) -> tuple[str, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    fields = (line.partition(":") for line in lines)
    return first, {name.lower(): value.strip() for name, _, value in fields}


def _body(stream: BinaryIO, headers: Mapping[str, str], *, to_end: bool = False) -> Iterator[bytes]:
    """Its pieces. `to_end`: without a length it lasts as long as the connection, as that of an answer does."""
    if headers.get("transfer-encoding") == "chunked":
        while size := int(stream.readline().split(b";")[0], 16):
            yield _exactly(stream, size)
            stream.readline()
        while stream.readline() not in (b"\r\n", b""):
            pass
        return
    left = int(headers.get("content-length", -1 if to_end else 0))
    while left:
        # what is here, not as much as fits: a slow body must not wait for itself
        piece = stream.read1(_PIECE if left < 0 else min(left, _PIECE))  # type: ignore[attr-defined]
        if not piece:
            if left > 0:
                raise _Broken
            return
        left -= len(piece) if left > 0 else 0
        yield piece


def _exactly(stream: BinaryIO, size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise _Broken
    return content


def _send(sink: socket.socket, pieces: Iterator[bytes], *, chunked: bool = False) -> None:
    for piece in pieces:
        sink.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
    if chunked:
        sink.sendall(b"0\r\n\r\n")


def _faulty_request(body: Iterator[bytes], fault: Fault | None) -> Iterator[bytes]:
    if isinstance(fault, CutRequest):
        return _cut(body, fault.after)
    return _flipped(body) if isinstance(fault, FlippedRequest) else body


def _faulty_answer(body: Iterator[bytes], fault: Fault | None, healed: threading.Event) -> Iterator[bytes]:
    if isinstance(fault, CutAnswer):
        return _cut(body, fault.after)
    if isinstance(fault, StalledAnswer):
        return _cut(body, fault.after, healed.wait)
    if isinstance(fault, SlowAnswer):
        return _slowed(body, fault.rate)
    return _flipped(body) if isinstance(fault, FlippedAnswer) else body


def _cut(body: Iterator[bytes], after: int, before_the_cut: Callable[[], object] = bool) -> Iterator[bytes]:
    for piece in body:
        if len(piece) > after:
            yield piece[:after]
            before_the_cut()
            raise _Broken
        after -= len(piece)
        yield piece


def _slowed(body: Iterator[bytes], rate: int) -> Iterator[bytes]:
    for piece in body:
        for start in range(0, len(piece), max(1, rate // 10)):
            part = piece[start : start + max(1, rate // 10)]
            time.sleep(len(part) / rate)
            yield part


def _flipped(body: Iterator[bytes]) -> Iterator[bytes]:
    held = b""
    for piece in body:
        if held:
            yield held
        held = piece
    if held:
        yield held[:-1] + bytes([held[-1] ^ 1])


def _without(listing: bytes, part: str) -> bytes:
    """The XML of a listing without the entries whose keys have `part` in them."""

    def hides(entry: re.Match[bytes]) -> bytes:
        key = re.search(rb"<(?:Key|Name)>([^<]*)</", entry[0])
        return b"" if key and part in unquote(key[1].decode()) else entry[0]

    return re.sub(rb"<(Contents|Blob)>.*?</\1>", hides, listing, flags=re.DOTALL)


def _refusal(fault: Answer, method: str) -> bytes:
    text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{fault.code}</Code><Message>no</Message></Error>'
    fields = {"Content-Type": "application/xml", "Content-Length": str(len(text)), **fault.headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    body = "" if method == "HEAD" else text
    return f"HTTP/1.1 {fault.status} {quote(fault.code)}\r\n{head}\r\n{body}".encode()

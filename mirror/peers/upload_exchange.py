"""One upload request that is passed on to the replica that has the session: the body in threads, the rest on the loop.

    connected within 1 s ── head ── body, as it comes ── answer ──────────────────────────────> PeerAnswer
         │                             │                   └── late: does HEAD of the session answer? ── yes: wait on
         │                             └── an answer before its end: the rest is not sent                 │
         └── not: PeerSilent                                        broken off, or no: PeerSilent <───────┘

`sent` says whether bytes of the body may have reached the replica: then the session may be further than the client
knows.
"""

from __future__ import annotations

import asyncio
import re
import select
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from typing import Final, Protocol, TypeVar
from urllib.parse import urlsplit

from mirror import telemetry
from mirror.aio.threads import run_uninterrupted
from mirror.peers.peer_client import CONNECT, HEAD, PeerAnswer, PeerSilent
from mirror.peers.peer_health import PeerHealth
from mirror.peers.peer_signer import PeerSigner, SignedCall
from mirror.policy.cluster.peer_signatures import PeerRefused, content_digest

_T = TypeVar("_T")

#: Bytes that are read from the client, and written to the replica, at once.
_PIECE: Final = 1 << 20
#: Seconds until the replica counts as gone, if it takes less of the body than these bytes, which are written at once.
_STALLED: Final = 10.0
_SLICE: Final = 64 << 10
#: Bytes of the head and the content of an answer.
_LARGEST: Final = 64 << 10
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]")
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
#: What a write fails with if the other side has closed the connection.
_CLOSED: Final = (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError, ssl.SSLZeroReturnError)


class Source(Protocol):
    """The body of a client's request, as `mirror.repository.protocol.PushBody` has it."""

    @property
    def length(self) -> int | None:
        """Bytes of the whole body; None if that is not known."""

    async def wait(self) -> bool:
        """Returns once bytes can be read; False at the end of the body."""

    def readinto(self, buffer: memoryview) -> int:
        """Reads what is here, in a thread; 0 if nothing is at the moment."""

    def abort(self) -> None:
        """Makes `readinto` fail."""


class UploadExchange:
    """One request, to one member. `alive` asks whether the member still has the session, on another connection."""

    def __init__(
        self,
        member: str,
        signer: PeerSigner,
        health: PeerHealth,
        threads: Executor,
        *,
        alive: Callable[[], Awaitable[bool]],
        tls: ssl.SSLContext | None = None,
        tls_name: str | None = None,
        connect: float = CONNECT,
        look: float = HEAD,
    ) -> None:
        """`connect` is how long a connection may take; `look` after how many seconds without an answer `alive` is
        asked, again and again.
        """
        self._member = member
        self._signer = signer
        self._health = health
        self._threads = threads
        self._alive = alive
        self._tls = tls
        self._tls_name = tls_name
        self._connect = connect
        self._look = look
        #: True once bytes of the body may have reached the member.
        self.sent = False
        #: An answer to HEAD has no content, whatever its length says (RFC 9110, 9.3.2).
        self._is_head = False
        self._socket: socket.socket | None = None
        self._received = b""

    def __repr__(self) -> str:
        return f"<UploadExchange with {self._member}>"

    async def run(self, method: str, target: str, headers: Mapping[str, str], body: Source | None) -> PeerAnswer:
        """Sends the request, and returns the answer. Raises `PeerSilent`, `PeerRefused`, and what the body raises."""
        # also if it is left alone: nobody else has the session, and to begin anew costs the client more than the wait
        ticket = self._health.admit(self._member)
        began = time.perf_counter()
        try:
            try:
                answer = await self._exchange(method, target, headers, body)
            finally:
                self._close()
        except (OSError, TimeoutError, EOFError) as error:
            reason = str(error) or "no answer in time"
            self._health.failed(self._member, ticket, reason)
            telemetry.PEER_REQUESTS.labels("upload", "silent").inc()
            raise PeerSilent(f"{self._member} does not answer: {reason}") from error
        except PeerRefused as error:
            self._health.failed(self._member, ticket, str(error))
            telemetry.PEER_REQUESTS.labels("upload", "refused").inc()
            raise
        except BaseException:
            # the client, most often
            self._health.withdraw(self._member, ticket)
            raise
        self._health.answered(self._member, ticket)
        if self._signer.learn(self._member, answer.status, answer.headers):
            # the body cannot be sent twice; the next request is right
            raise PeerSilent(f"the clock of {self._member} is another one")
        telemetry.PEER_REQUESTS.labels("upload", "answered" if answer.status < 400 else "failed").inc()
        telemetry.PEER_SECONDS.labels("upload").observe(time.perf_counter() - began)
        return answer

    async def _exchange(self, method: str, target: str, headers: Mapping[str, str], body: Source | None) -> PeerAnswer:
        self._is_head = method == "HEAD"
        sent = dict(headers)
        chunked = body is not None and body.length is None
        if body is not None and not chunked:
            sent["Content-Length"] = str(body.length)
        signed = self._signer.sign(self._member, method, target, sent)
        sent |= {"Authorization": signed.authorization, "Connection": "close"}
        if chunked:
            sent["Transfer-Encoding"] = "chunked"
        await self._run(self._open, _head(method, target, urlsplit(self._member).netloc, sent))
        if body is not None:
            await self._send(body, chunked=chunked)
        return await self._answer(signed)

    async def _send(self, body: Source, *, chunked: bool) -> None:
        """Sends the body as it comes, until its end or until the replica answers."""
        buffer = bytearray(_PIECE)
        while await body.wait():
            self.sent = True
            if not await self._run(self._pass, body, buffer, chunked, stop=body.abort):
                return
        if chunked:
            await self._run(self._write, b"0\r\n\r\n")

    async def _answer(self, signed: SignedCall) -> PeerAnswer:
        while (answer := self._parsed(signed)) is None:
            try:
                async with asyncio.timeout(self._look):
                    await self._readable()
            except TimeoutError:
                if not await self._alive():
                    raise
                continue
            await self._run(self._receive)
        return answer

    def _parsed(self, signed: SignedCall) -> PeerAnswer | None:
        """The answer, if it is here as a whole. Raises `PeerRefused`."""
        head, end, content = self._received.partition(b"\r\n\r\n")
        if not end:
            return None
        status, headers = _parse_head(head)
        if not self._is_head and status != 204 and len(content) < int(headers.get("content-length", "0")):
            return None
        return _judged(signed, status, headers, content)

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        descriptor = self._opened().fileno()
        ready = asyncio.Event()
        loop.add_reader(descriptor, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(descriptor)

    async def _run(self, work: Callable[..., _T], *arguments: object, stop: Callable[[], None] | None = None) -> _T:
        return await run_uninterrupted(self._threads, work, *arguments, stop=stop)

    # ------------------------------------------------------------------------------------------- in a thread

    def _open(self, head: bytes) -> None:
        parts = urlsplit(self._member)
        plain = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=self._connect)
        self._socket = plain
        if self._tls is not None:
            self._socket = self._tls.wrap_socket(plain, server_hostname=self._tls_name)
        self._socket.settimeout(_STALLED)
        self._write(head)

    def _pass(self, body: Source, buffer: bytearray, chunked: bool) -> bool:
        """Passes on what is here. False if the replica has answered: it wants no more."""
        view = memoryview(buffer)
        while count := body.readinto(view):
            if self._has_answered():
                return False
            try:
                self._write(b"%x\r\n" % count if chunked else b"")
                self._write(view[:count])
                self._write(b"\r\n" if chunked else b"")
            except _CLOSED:
                # it may have answered before it closed the connection
                return False
        return True

    def _write(self, content: bytes | memoryview) -> None:
        # the time-out of a socket is that of all that `sendall` is given: of a large piece, a slow network would take
        # too little in that time
        view = memoryview(content)
        for start in range(0, len(view), _SLICE):
            self._opened().sendall(view[start : start + _SLICE])

    def _has_answered(self) -> bool:
        opened = self._opened()
        poll = select.poll()
        poll.register(opened, select.POLLIN)
        if not poll.poll(0):
            return False
        if not isinstance(opened, ssl.SSLSocket):
            return True
        # what has come may be of TLS alone, such as a ticket for the next session
        opened.settimeout(0)
        try:
            self._received += opened.recv(_LARGEST)
        except ssl.SSLWantReadError:
            return False
        finally:
            opened.settimeout(_STALLED)
        return True

    def _receive(self) -> None:
        """Reads what is here. Raises `EOFError` at the end of the connection."""
        opened = self._opened()
        opened.settimeout(self._look)
        try:
            piece = opened.recv(_LARGEST)
        except TimeoutError:
            # a record of TLS without content
            return
        self._received += piece
        while isinstance(opened, ssl.SSLSocket) and opened.pending():
            # what is decrypted already does not make the descriptor readable
            self._received += opened.recv(_LARGEST)
        if not piece or len(self._received) > 2 * _LARGEST:
            raise EOFError("the connection was closed before the end of the answer")

    def _opened(self) -> socket.socket:
        if self._socket is None:
            raise EOFError("not connected")
        return self._socket

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()


def _head(method: str, target: str, host: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers.items())]
    # bytes of the client's that are not ASCII go on as they came
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers, with names in lower case. Raises `PeerRefused`."""
    found = _STATUS.match(head)
    lines = head.split(b"\r\n")[1:]
    if found is None or not all(b":" in line for line in lines):
        raise PeerRefused("answer", "the answer is not that of a replica")
    fields = (line.decode("latin-1").partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in fields}
    if not _LENGTH.fullmatch(headers.get("content-length", "0")):
        raise PeerRefused("answer", "the answer is not that of a replica")
    return int(found[1]), headers


def _judged(signed: SignedCall, status: int, headers: dict[str, str], content: bytes) -> PeerAnswer:
    """Raises `PeerRefused` if the answer is not that of the member."""
    signed.check(status, headers)
    if content and content_digest(content) != headers.get("mirror-content-digest"):
        raise PeerRefused("answer", f"the content of the answer ({status}) was changed on the way")
    return PeerAnswer(status, headers, content)

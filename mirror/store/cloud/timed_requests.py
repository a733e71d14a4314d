"""Small requests over HTTP, each of which ends at its deadline however slowly the answer comes.

    ask() ── connect, request, head, body, redirects ──┬── all of it came in time: the answer, whatever its status
                                                       └── deadline: `TimeoutError`

The library's own time limit counts from one byte to the next, so an answer that drips would occupy a thread for hours.
"""

from __future__ import annotations

import io
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from typing import Any


@dataclass(frozen=True, slots=True)
class TimedAnswer:
    """Status and body of an answer, whatever the status."""

    status: int
    content: bytes


@dataclass(frozen=True, slots=True)
class _Deadline:
    """The moment at which a request ends, `limit` seconds after it began; each wait takes `stall` seconds at most."""

    at: float
    limit: float
    stall: float
    now: Callable[[], float]

    def wait(self) -> float:
        """For how many seconds to wait now. Raises `TimeoutError` if no time is left."""
        left = self.at - self.now()
        if left <= 0:
            raise TimeoutError(f"the answer was not complete after {self.limit:g} s")
        return min(left, self.stall)


class TimedRequests:
    """Sends requests with the same certificates and proxies. May be used from any thread."""

    def __init__(
        self,
        *,
        context: ssl.SSLContext | None = None,
        proxies: Mapping[str, str] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`context` is for HTTPS; None: the library's. `proxies` by scheme; None: those of the environment. `now` is in
        seconds.
        """
        self._context = context
        self._proxies = None if proxies is None else dict(proxies)
        self._now = now

    def __repr__(self) -> str:
        return f"<TimedRequests by {sorted(self._proxies or ())}>"

    def ask(
        self, request: urllib.request.Request, limit: float, longest: int, *, stall: float | None = None
    ) -> TimedAnswer:
        """The answer, of whose body up to `longest` bytes are read, within `limit` seconds in all. `stall`: seconds in
        which no byte moves; None: as many. Raises `OSError`, `HTTPException`.
        """
        deadline = _Deadline(self._now() + limit, limit, limit if stall is None else stall, self._now)
        opener = urllib.request.build_opener(
            _Http(deadline), _Https(deadline, self._context), urllib.request.ProxyHandler(self._proxies)
        )
        try:
            with opener.open(request, timeout=deadline.stall) as answer:
                return TimedAnswer(answer.status, answer.read(longest))
        except urllib.error.HTTPError as error:
            with error:
                return TimedAnswer(error.code, error.read(longest))


def succeeded(answer: TimedAnswer) -> bytes:
    """The body of an answer. Raises `OSError` if its status is not that of a success."""
    if not 200 <= answer.status < 300:
        raise OSError(f"the answer has the status {answer.status}")
    return answer.content


class _Http(urllib.request.HTTPHandler):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(partial(_timed, HTTPConnection, self._deadline), req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, deadline: _Deadline, context: ssl.SSLContext | None) -> None:
        super().__init__(context=context)
        self._deadline = deadline
        self._certificates = context

    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(partial(_timed, HTTPSConnection, self._deadline, context=self._certificates), req)


def _timed(make: Callable[..., HTTPConnection], deadline: _Deadline, host: str, **options: Any) -> HTTPConnection:
    """A connection whose answers, that of a proxy included, end at the deadline."""
    connection = make(host, **{**options, "timeout": deadline.wait()})
    connection.response_class = partial(_TimedResponse, deadline)  # type: ignore[assignment]
    return connection


class _TimedResponse(HTTPResponse):
    def __init__(self, deadline: _Deadline, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_TimedReads(deadline, sock))


class _TimedReads(io.RawIOBase):
    """What a socket receives until a deadline."""

    def __init__(self, deadline: _Deadline, connection: socket.socket) -> None:
        self._deadline = deadline
        self._connection = connection
        # keeps the connection open when the library closes its own end
        self._pieces = connection.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._connection.settimeout(self._deadline.wait())
        return self._pieces.readinto(buffer)

    def close(self) -> None:
        self._pieces.close()
        super().close()

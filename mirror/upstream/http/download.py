"""Blobs from upstream: blocking HTTP/1.1 in a thread, so that bytes never cross the event loop.

An exchange:

    get ── dial or reuse ── request ── head ──┬── 3xx: checked, next hop (at most 5)
                                              ├── 2xx: a `body.HttpBody`, read by the caller in a thread
                                              └── else: the answer's text, up to 64 KiB

Some servers refuse every request for a part, by a limit on `Range` or a rule of a firewall, and answer the same request
without one. Others refuse for a moment, or whatever is asked. Only further requests tell them apart:

    part refused ── the whole ──┬── no answer ──> the refusal
                                ├── refused too ──> the refusal; the whole is not tried again for a minute
                                └── answered ──┬── from byte 0 on ────────────────────────────> the whole
                                               └── else: the part again ──┬── answered ───────> the part
                                                                          └── refused again ──> the whole

Everything here blocks and uses no event loop. A `Transfer` belongs to one endpoint: endpoints never share connections,
nor what the other side may associate with a connection.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from multidict import CIMultiDict, MultiMapping

from mirror.errors import (
    UpstreamError,
    UpstreamInvalid,
    UpstreamOffLimits,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from mirror.oci.span import parse_content_range
from mirror.policy.upstream.url_bounds import Origin, Url, UrlRefused, parse_url, surviving_headers
from mirror.upstream.http.body import EncodedBody, Framing, HttpBody, RateFloor, describe
from mirror.upstream.http.connection import Connection, IdleConnections
from mirror.upstream.http.dialing import AddressRefused, check_literal, dial
from mirror.upstream.http.proxies import Proxy, open_tunnel
from mirror.upstream.http.throttled_hosts import ThrottledHosts
from mirror.upstream.http.tls_stream import TlsStream
from mirror.upstream.http.transport import Endpoint

#: The most bytes of an error's text that are read; the rest is dropped.
LARGEST_ERROR: Final = 64 * 1024

#: Statuses whose `Location` is followed (RFC 9110, 15.4). Only GET and HEAD are sent, so the method never changes.
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

#: Statuses that are accepted for content, whichever of them it is: the digest decides whether the bytes are right.
CONTENT: Final = frozenset({200, 201, 203, 206})

#: Statuses by which a server may refuse a request because of its range. 416 alone says that it was the range.
_MAY_REFUSE_RANGES: Final = frozenset({400, 403, 429, 503})
#: Seconds for which the whole is not asked for after a refused part, because the whole was refused as well.
_REFUSES_ALL: Final = 60.0

_LONGEST_LINE: Final = 64 * 1024
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\r\n]*)?\r?\n")
_DECIMAL: Final = re.compile(r"[0-9]{1,18}")
_FIELD_VALUE: Final = re.compile(r"[\t -~\x80-\xff]*")
_FIELD: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\r\n\0]*)")
_MOST_FIELDS: Final = 200
_MOST_INTERIM: Final = 8


class DialFailed(UpstreamUnavailable):
    """No connection could be made: name, address, TCP or TLS. The circuit breaker counts these."""


class DialTimedOut(UpstreamTimeout):
    """No connection could be made in time. The circuit breaker counts these, too."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The last answer after all redirects, given by `url`.

    Of a small answer, `content` is its content without its `Content-Encoding`, and `sent` as it was sent. Of a blob,
    `body` is set, and the caller closes it. Of an error, `content` is its text, at most 64 KiB. `instead_of` is the
    refusal of a part in whose place this whole has come.
    """

    status: int
    fields: MultiMapping[str]
    url: Url
    content: bytes = b""
    body: HttpBody | EncodedBody | None = None
    sent: bytes = b""
    instead_of: Answer | None = None


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """The head of an answer, and the connection on which its body follows."""

    wire: Connection
    status: int
    fields: MultiMapping[str]
    framing: Framing


class Cancel:
    """Ends an exchange whose caller has given up. The thread of the exchange calls `on`; any thread calls `now`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wire: Connection | HttpBody | None = None
        self._over = threading.Event()

    @property
    def is_over(self) -> bool:
        """True once the caller has given up."""
        return self._over.is_set()

    def on(self, wire: Connection | HttpBody | None) -> None:
        """Set what is read from now on (None: nothing). Raises `EOFError` if `now` was called already."""
        with self._lock:
            self._wire = wire
            if self._over.is_set() and wire is not None:
                raise EOFError("aborted")

    def now(self) -> None:
        """End the exchange: a blocked read fails soon."""
        with self._lock:
            self._over.set()
            if isinstance(self._wire, Connection):
                self._wire.shut_down()
            elif self._wire is not None:
                self._wire.abort()

    def pause(self, seconds: float) -> None:
        """Wait in the thread of the exchange. Raises `EOFError` if it is ended meanwhile."""
        if self._over.wait(seconds):
            raise EOFError("aborted")


class Transfer:
    """Blob exchanges with one endpoint and with the hosts to which it redirects.

    `hosts` are the hosts that asked to be left alone. `clock` counts seconds. At most `most_idle` connections wait for
    another request, for at most `longest_idle` seconds. Without `follows`, a redirect is the answer.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        hosts: ThrottledHosts | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        most_idle: int = 8,
        longest_idle: float = 20.0,
        follows: bool = True,
    ) -> None:
        self._endpoint = endpoint
        self._upstream = endpoint.name
        self._follows = follows
        self._hosts = hosts or ThrottledHosts(endpoint.name, clock)
        self._clock = clock
        self._idle = IdleConnections(most_idle, longest_idle, clock)
        #: Until when a refusal is not taken for one of ranges. Several threads set it; any of their values will do.
        self._refuses_all_until = float("-inf")

    def get(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        start: int = 0,
        stop: int | None = None,
        attempts: int = 2,
        cancel: Cancel | None = None,
        passes: Mapping[Origin, str] = MappingProxyType({}),
    ) -> Answer:
        """GET a URL from byte `start` up to, but not including, `stop` (None: to its end) and follow redirects.
        Blocking. A `Range` among the headers is sent as it is, instead of the one that says that.

        `passes` are the `Authorization` headers for other origins, to which a redirect may lead. With `cancel` another
        thread can end the exchange until there is an answer.

        The answer has a body if its status is in `CONTENT`; so has a 416 to a range that begins where the blob ends.
        The body's `start` is 0 if upstream ignored the range, and its `stop` says whether it goes on after `stop`. The
        request is repeated without a range if a 206 begins after `start`, names no range, or is a part of an encoded
        body, and if the range is refused otherwise; see the head of this file for refusals that do not say that it was
        the range. With `attempts=1` nothing is repeated. The first byte alone may be encoded: nobody reads it.

        Raises `DialFailed`, `DialTimedOut`, `UpstreamUnavailable`, `UpstreamTimeout`, `UpstreamInvalid`,
        `UpstreamOffLimits`, `HostThrottled`.
        """
        wanted = dict(headers)
        ranged = start > 0 or stop is not None
        if ranged:
            wanted.setdefault("Range", f"bytes={start}-{'' if stop is None else stop - 1}")
        wanted["Accept-Encoding"] = "identity"
        cancel = cancel or Cancel()
        answer = self._follow(url, wanted, (start, stop) if ranged else None, cancel, passes)
        if ranged and attempts > 1 and answer is not None and answer.status in _MAY_REFUSE_RANGES:
            return self._past_refusal(
                answer,
                lambda: self.get(url, headers, attempts=attempts - 1, cancel=cancel, passes=passes),
                # nothing comes in vain if the whole is taken from its first byte on
                (lambda: self._follow(url, wanted, (start, stop), cancel, passes)) if start else None,
            )
        if answer is not None and not (answer.status == 416 and ranged):
            return answer
        if not ranged or attempts <= 1:
            raise self._endpoint.invalid("the answer has another Content-Range than requested")
        return self.get(url, headers, attempts=attempts - 1, cancel=cancel, passes=passes)

    def close(self) -> None:
        """Close the idle connections. Bodies that are being read stay open. Repeatable."""
        self._idle.close()

    def _past_refusal(
        self, refusal: Answer, ask_whole: Callable[[], Answer], ask_part: Callable[[], Answer | None] | None
    ) -> Answer:
        """The answer to a request for a part that was refused: the refusal, or an answer with a body. `ask_part` sends
        that request again; None: the whole is as good.
        """
        if self._clock() < self._refuses_all_until:
            return refusal
        whole = _answer_of(ask_whole)
        if whole is None:
            return refusal
        if whole.body is None:
            self._refuses_all_until = self._clock() + _REFUSES_ALL
            return refusal
        part = None if ask_part is None else _answer_of(ask_part)
        if part is None or part.body is None:
            return replace(whole, instead_of=refusal)
        # the server refuses for a moment: what is here already need not come again
        whole.body.abort()
        whole.body.close()
        return part

    def _follow(
        self,
        text: str,
        headers: dict[str, str],
        wanted: tuple[int, int | None] | None,
        cancel: Cancel,
        passes: Mapping[Origin, str],
    ) -> Answer | None:
        """The last answer of a chain of redirects; None if its range is not the one that was requested. `wanted` is
        where that begins and ends (None: with the blob); None: no range was requested.
        """
        hops = 0
        url: Url | None = None
        try:
            with self._translated():
                url = parse_url(text)
                while True:
                    head = self._exchange(url, headers, cancel)
                    if head.status not in REDIRECTS or not self._follows:
                        return self._answer(head, url, wanted)
                    self._leave(head, url)
                    entered = self._endpoint.bounds.next_hop(url, head.fields.get("Location"), hops)
                    headers = surviving_headers(headers, url, entered, passes)
                    url, hops = entered, hops + 1
                    self._hosts.check(url)
        except UpstreamError as error:
            error.elsewhere = url is not None and not self._endpoint.is_at(url)
            raise

    def _answer(self, head: AnswerHead, url: Url, wanted: tuple[int, int | None] | None) -> Answer | None:
        start, stop = (None, None) if wanted is None else wanted
        wire, status, fields, framing = head.wire, head.status, head.fields, head.framing
        if status not in CONTENT:
            body = self._body(wire, framing, url)
            if status == 416 and start is not None and _total_of_unsatisfied(fields) == start:
                self._finish(body)
                return Answer(206, fields, url, body=self._body(None, Framing(0, False, False), url, start, start))
            return Answer(status, fields, url, content=self._finish(body))
        encoded = (fields.get("Content-Encoding") or "").strip().lower() in ("gzip", "x-gzip")
        begin, size, end = 0, framing.length, None
        content_range = parse_content_range(fields.get("Content-Range")) if status == 206 else None
        # without a requested range, a 206 that names none is the whole; a part of an encoded body cannot be used
        if status == 206 and (content_range is not None or start is not None):
            if (
                content_range is None
                or content_range[0].start > (start or 0)
                or (encoded and wanted not in (None, (0, 1)))
            ):
                wire.close()
                return None
            if framing.length is not None and framing.length != content_range[0].length:
                wire.close()
                raise self._endpoint.invalid("Content-Range and Content-Length contradict each other", status)
            begin, size = content_range[0].start, content_range[1]
            # a server may send less than was asked for (RFC 9110, 14.2)
            end = None if stop is None else min(stop, content_range[0].stop)
        body = self._body(wire, framing, url, begin, size, end)
        if not encoded or begin:
            return Answer(status, fields, url, body=body)
        try:
            return Answer(status, fields, url, body=EncodedBody(body))
        except BaseException:
            body.close()
            raise

    def _exchange(self, url: Url, headers: Mapping[str, str], cancel: Cancel) -> AnswerHead:
        """Send one request; return the head of the answer."""
        proxy = self._endpoint.proxies.for_url(url)
        relayed = proxy is not None and url.scheme == "http"
        request = request_head(url, {**headers, **self._endpoint.proxies.headers(url)}, relayed=relayed)
        while idle := self._idle.take(url.origin):
            # the other end may have closed the connection just now, or surplus bytes of the last answer may be read as
            # the beginning of this one; a GET can be sent again
            try:
                return self._converse(idle, request, cancel)
            except TimeoutError:
                raise
            except (OSError, EOFError, UpstreamInvalid):
                if cancel.is_over:
                    raise
        return self._converse(self._connect(url, proxy), request, cancel)

    def _connect(self, url: Url, proxy: Proxy | None) -> Connection:
        try:
            connection = self._dial(url, proxy)
            tls = None
            if url.scheme == "https":
                # anew: what TCP has left may be too short for TLS
                connection.settimeout(self._endpoint.timeouts.connect)
                context = self._endpoint.identity_for(url) or self._endpoint.tls.context
                try:
                    tls = TlsStream(connection, context, self._endpoint.tls.name or url.host, clock=self._clock)
                except BaseException:
                    connection.close()
                    raise
        except AddressRefused:
            raise
        except TimeoutError as error:
            raise DialTimedOut(
                f"{url.authority} did not accept a connection in time", upstream=self._upstream
            ) from error
        except (OSError, ValueError) as error:
            raise DialFailed(f"no connection to {url.authority}: {describe(error)}", upstream=self._upstream) from error
        return Connection(connection, url.origin, self._endpoint.timeouts.read, self._clock, tls)

    def _dial(self, url: Url, proxy: Proxy | None) -> socket.socket:
        if proxy is None:
            return dial(self._endpoint.bounds, url.host, url.port, self._endpoint.timeouts.connect, self._clock)
        check_literal(self._endpoint.bounds, url.host)
        if url.scheme == "https":
            return open_tunnel(proxy, url.host, url.port, self._endpoint.timeouts.connect, self._clock)
        return dial(proxy.bounds, proxy.url.host, proxy.url.port, self._endpoint.timeouts.connect, self._clock)

    def _converse(self, wire: Connection, request: bytes, cancel: Cancel) -> AnswerHead:
        try:
            cancel.on(wire)
            wire.begin(self._endpoint.timeouts.answer)
            wire.send(request)
            return self._read_head(wire)
        except BaseException:
            wire.close()
            raise
        finally:
            # from here on the connection may belong to another exchange
            cancel.on(None)

    def _read_head(self, wire: Connection) -> AnswerHead:
        """Read the head of the answer that comes on this connection, past interim answers."""
        for _ in range(_MOST_INTERIM):
            line = wire.stream.readline(_LONGEST_LINE)
            if not line:
                raise EOFError("closed before the answer")
            status_line = _STATUS_LINE.fullmatch(line)
            if not status_line:
                raise self._endpoint.invalid("the answer is not HTTP/1")
            fields = self._fields(wire)
            status = int(status_line[2])
            if status < 200:
                continue
            framing = Framing.read(status, fields, int(status_line[1]))
            if framing is None:
                raise self._endpoint.invalid("the length of the answer is ambiguous", status)
            wire.end_of_head()
            return AnswerHead(wire, status, fields, framing)
        raise self._endpoint.invalid(f"more than {_MOST_INTERIM} interim answers")

    def _fields(self, wire: Connection) -> MultiMapping[str]:
        """The header lines up to the empty line (RFC 9112, 5).

        Raises `EOFError` if the head is cut short, since a number cut short is a wrong length, and `UpstreamInvalid`.
        """
        pairs: list[tuple[str, str]] = []
        for _ in range(_MOST_FIELDS):
            line = wire.stream.readline(_LONGEST_LINE)
            if line in (b"\r\n", b"\n"):
                return CIMultiDict(pairs)
            if not line.endswith(b"\n"):
                if len(line) == _LONGEST_LINE:
                    break
                raise EOFError("closed in the middle of the headers")
            text = line.decode("latin-1").rstrip("\r\n")
            if text[:1] in (" ", "\t") and pairs:
                name, value = pairs.pop()
                pairs.append((name, f"{value} {text.strip()}".strip()))
            elif field := _FIELD.fullmatch(text):
                pairs.append((field[1], field[2].strip()))
            else:
                break
        raise self._endpoint.invalid("the headers of the answer cannot be parsed")

    def _leave(self, head: AnswerHead, url: Url) -> None:
        """Read the text of a redirect if it is short or chunked, so that the connection can be used again.

        Otherwise close the connection.
        """
        length = head.framing.length
        if head.framing.chunked or (length is not None and length < LARGEST_ERROR):
            self._finish(self._body(head.wire, head.framing, url))
        else:
            head.wire.close()

    def _finish(self, body: HttpBody) -> bytes:
        """The text of an answer that is no blob, at most `LARGEST_ERROR` bytes. Keeps the connection if that is all."""
        content = bytearray()
        room = memoryview(bytearray(16 * 1024))
        with contextlib.closing(body), contextlib.suppress(UpstreamUnavailable):
            while len(content) < LARGEST_ERROR and (count := body.readinto(room)):
                content += room[:count]
        return bytes(content[:LARGEST_ERROR])

    def _body(
        self,
        wire: Connection | None,
        framing: Framing,
        url: Url,
        start: int = 0,
        size: int | None = None,
        stop: int | None = None,
    ) -> HttpBody:
        return HttpBody(
            self._upstream,
            url,
            wire,
            framing,
            start=start,
            size=size,
            wanted=stop,
            pace=RateFloor(self._endpoint.timeouts.lowest_rate, self._endpoint.timeouts.rate_window),
            give_back=self._idle.put,
            clock=self._clock,
        )

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Translate the exceptions of sockets, TLS and the header parser into `UpstreamError`s."""
        try:
            yield
        except UrlRefused as error:
            raise self._endpoint.invalid(str(error)) from error
        except AddressRefused as error:
            raise UpstreamOffLimits(str(error), upstream=self._upstream) from error
        except (TimeoutError, BlockingIOError) as error:
            raise UpstreamTimeout("no answer in time", upstream=self._upstream) from error
        except (OSError, EOFError) as error:
            raise UpstreamUnavailable(f"the connection broke: {describe(error)}", upstream=self._upstream) from error

    def __repr__(self) -> str:
        return f"<Transfer from {self._endpoint.described}, {self._idle!r}>"


def _answer_of(ask: Callable[[], Answer | None]) -> Answer | None:
    """What a request on which nothing depends has brought; None if it failed, or was cancelled: that is no refusal."""
    try:
        return ask()
    except UpstreamError:
        return None


def request_head(url: Url, headers: Mapping[str, str], *, relayed: bool, method: str = "GET") -> bytes:
    """The head of a request. `relayed`: it goes to a proxy. Raises `UrlRefused` for a header that cannot be sent."""
    lines = [f"{method} {url if relayed else url.target} HTTP/1.1", f"Host: {url.authority}"]
    for name, value in headers.items():
        if not _FIELD_VALUE.fullmatch(value):
            raise UrlRefused(f"the header {name} contains characters that cannot be sent")
        lines.append(f"{name}: {value}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _total_of_unsatisfied(fields: MultiMapping[str]) -> int | None:
    """The size in `Content-Range: bytes */size` of a 416 (RFC 9110, 14.4); None if it names none."""
    unit, _, total = (fields.get("Content-Range") or "").partition("*/")
    return int(total) if unit.strip().lower() == "bytes" and _DECIMAL.fullmatch(total) else None

"""Blobs to upstream: one request with a large body, in a thread, so that its bytes never cross the event loop.

    connect ── head ── pieces of the body ──┬── all sent ─────────────────────> the answer is read
                                            ├── the other side has answered ──> its answer is read, no more is sent
                                            └── the connection broke ─────────> the answer that came before, if any

Each request has a connection of its own, which is closed afterwards: after a body that was not sent whole, nobody knows
where the next request would begin.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Final, TypeAlias, TypeVar

from mirror.aio.threads import run_uninterrupted
from mirror.errors import UpstreamError
from mirror.policy.upstream.url_bounds import Url, parse_url
from mirror.ports import BlobReader
from mirror.upstream.http.connection import Connection
from mirror.upstream.http.download import Answer, Cancel, Transfer, request_head
from mirror.upstream.http.throttled_hosts import ThrottledHosts
from mirror.upstream.http.transport import Endpoint

T = TypeVar("T")

#: A part of a body, and the seconds to wait before it is sent.
Piece: TypeAlias = tuple[bytes, float]

#: Bytes of the body that are sent at a time.
_PIECE: Final = 256 * 1024
#: Seconds until the answer once the body is sent: some registries hash or move the whole blob first.
_LONGEST_ANSWER: Final = 300.0


class BlobSender(Transfer):
    """Requests with a blob, or the rest of it, as their body; blocking."""

    def send(
        self, method: str, text: str, headers: Mapping[str, str], pieces: Iterable[Piece], cancel: Cancel | None = None
    ) -> Answer:
        """Send a request and return its answer, with the first 64 KiB of its text. No redirect is followed. `pieces`
        are the body, whose `Content-Length` is among the headers. With `cancel` another thread can end the exchange.

        Raises what reading the pieces raises, and `DialFailed`, `DialTimedOut`, `UpstreamUnavailable`,
        `UpstreamTimeout`, `UpstreamInvalid`, `UpstreamOffLimits`.
        """
        url: Url | None = None
        try:
            with self._translated():
                url = parse_url(text)
                return self._send(method, url, {**headers, "Connection": "close"}, pieces, cancel or Cancel())
        except UpstreamError as error:
            error.elsewhere = url is not None and not self._endpoint.is_at(url)
            raise

    def _send(
        self, method: str, url: Url, headers: Mapping[str, str], pieces: Iterable[Piece], cancel: Cancel
    ) -> Answer:
        proxy = self._endpoint.proxies.for_url(url)
        relayed = proxy is not None and url.scheme == "http"
        more = {**headers, **self._endpoint.proxies.headers(url)}
        request = request_head(url, more, relayed=relayed, method=method)
        wire = self._connect(url, proxy)
        try:
            cancel.on(wire)
            wire.begin(self._endpoint.timeouts.read)
            wire.send(request)
            broken = self._send_pieces(wire, pieces, cancel)
            wire.begin(_LONGEST_ANSWER)
            try:
                head = self._read_head(wire)
            except (OSError, EOFError) as error:
                raise broken or error from error
            return Answer(head.status, head.fields, url, self._finish(self._body(wire, head.framing, url)))
        finally:
            cancel.on(None)
            wire.close()

    def _send_pieces(self, wire: Connection, pieces: Iterable[Piece], cancel: Cancel) -> OSError | None:
        """Send the body. Returns why the connection broke, if it did: the other side may have answered before."""
        for piece, wait in pieces:
            if wait > 0:
                cancel.pause(wait)
            if not wire.is_tls and _has_answered(wire):
                return None
            try:
                wire.begin(self._endpoint.timeouts.read)
                wire.send(piece)
            except TimeoutError:
                raise
            except OSError as error:
                return error
        return None


def _has_answered(wire: Connection) -> bool:
    """True if bytes can be read: an answer that does not wait for the rest of the body, or the end. Over TLS this
    cannot be told, since bytes may belong to TLS itself.
    """
    poll = select.poll()
    poll.register(wire.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
    return bool(poll.poll(0))


def pieces_of(
    reader: BlobReader, start: int, size: int, take: Callable[[int], float], sent: Callable[[int], None]
) -> Iterable[Piece]:
    """The bytes of a blob from `start` up to `size`, in pieces. `take` is called with the number of bytes before each
    of them is sent, and returns how long to wait; `sent` with the offset after that.
    """
    offset = start
    while offset < size:
        piece = reader.pread(min(_PIECE, size - offset), offset)
        if not piece:
            return
        yield piece, take(len(piece))
        offset += len(piece)
        sent(offset)


class BlobSendingClient:
    """Sends blobs by a `BlobSender`, in threads of `executor`."""

    def __init__(self, endpoint: Endpoint, hosts: ThrottledHosts, executor: Executor) -> None:
        self._sender = BlobSender(endpoint, hosts)
        self._executor = executor

    def __repr__(self) -> str:
        return f"<BlobSendingClient {self._sender!r}>"

    async def send(self, method: str, url: str, headers: Mapping[str, str], pieces: Iterable[Piece]) -> Answer:
        """See `BlobSender.send`. If the caller is cancelled, the exchange is ended, and the thread is waited for: it
        reads the blob.
        """
        cancel = Cancel()
        send = partial(self._sender.send, method, url, headers, pieces, cancel)
        return await run_uninterrupted(self._executor, send, stop=cancel.now)

    async def run(self, work: Callable[[], T], *, unwanted: Callable[[T], None] | None = None) -> T:
        """Runs something short in a thread. If the caller is cancelled meanwhile, `unwanted` gets the result."""
        return await run_uninterrupted(self._executor, work, unwanted=unwanted)

    def close(self) -> None:
        """Close the connections. Repeatable."""
        self._sender.close()

"""A connection before it speaks HTTP: it is counted when accepted, and has as long for its TLS handshake as for the
head of a request.

    accepted ──┬── its address has the most it may have ────> dropped ("many")
               └── handshake ──┬── done ────────────────────> passed to `serve`, over TLS
                               ├── not done in time ────────> dropped ("slow")
                               └── failed, or client left ──> closed

The event loop's own TLS server reports a connection only after the handshake, so connections that never finish it would
not be counted.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Protocol, cast

from mirror.server.registry.connection_limit import ConnectionLimiter


class Secured(Protocol):
    """The protocol served over TLS. The connection is passed to it by `secured`, instead of `connection_made`."""

    def secured(self, transport: asyncio.Transport, key: str | None) -> None:
        """The handshake is done; `key` is to be passed to `ConnectionLimiter.leave` when the connection ends."""


class Handshake(asyncio.Protocol):
    """The handshake of one connection, which is in `under_way` until the handshake is over."""

    def __init__(
        self,
        serve: Callable[[], Secured],
        context: ssl.SSLContext,
        limiter: ConnectionLimiter,
        under_way: set[Handshake],
    ) -> None:
        self._serve = serve
        self._context = context
        self._limiter = limiter
        self._under_way = under_way
        self._peer: object = None
        self._key: str | None = None
        self._served = False
        self._early = bytearray()
        self._late: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        plain = cast(asyncio.Transport, transport)
        self._peer = plain.get_extra_info("peername")
        stays, self._key = self._limiter.enter(self._peer)
        if not stays:
            plain.abort()
            return
        # TLS stops writing as soon as the socket takes no more, and then makes its own caller wait
        plain.set_write_buffer_limits(high=0)
        loop = asyncio.get_running_loop()
        self._under_way.add(self)
        self._late = loop.call_later(self._limiter.head, self._too_late)
        self._task = loop.create_task(self._secure(plain))
        self._task.add_done_callback(lambda _: self._end(plain))
        # runs right after the first step of the task, which makes TLS the transport's protocol instead of this object
        loop.call_soon(self._hand_over, plain)

    def data_received(self, data: bytes) -> None:
        """Bytes that the event loop read before TLS took over."""
        self._early += data

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection ended before TLS took over."""
        self.cancel()

    def cancel(self) -> None:
        """Abandon the handshake and close the connection."""
        if self._task is not None:
            self._task.cancel()

    def _hand_over(self, plain: asyncio.Transport) -> None:
        tls = plain.get_protocol()
        while self._early and tls is not self:
            room = cast(memoryview, cast(asyncio.BufferedProtocol, tls).get_buffer(len(self._early)))
            count = min(len(room), len(self._early))
            room[:count] = self._early[:count]
            cast(asyncio.BufferedProtocol, tls).buffer_updated(count)
            del self._early[:count]

    async def _secure(self, plain: asyncio.Transport) -> None:
        served = self._serve()
        try:
            tls = await asyncio.get_running_loop().start_tls(
                plain,
                cast(asyncio.BaseProtocol, served),
                self._context,
                server_side=True,
                # our own timer ends the handshake earlier, and counts it
                ssl_handshake_timeout=2 * self._limiter.head,
                # closing waits for the client's `close_notify` (RFC 8446, 6.1), which it need not send
                ssl_shutdown_timeout=self._limiter.head,
            )
        except OSError:
            # the handshake failed, or the client left; TLS errors are OSErrors, too
            return
        if tls is not None and not plain.is_closing():
            self._served = True
            served.secured(tls, self._key)

    def _end(self, plain: asyncio.Transport) -> None:
        self._under_way.discard(self)
        if self._late is not None:
            self._late.cancel()
        if not self._served:
            plain.abort()
            self._limiter.leave(self._key)

    def _too_late(self) -> None:
        self._late = None
        self._limiter.dropped("slow", self._peer)
        self.cancel()

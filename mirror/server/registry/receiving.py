"""The body of a client's request, received off the event loop.

    plain TCP, length known   the socket itself: the reader's thread takes bytes as long as they come (splice, or recv)
    TLS, chunked, small       through aiohttp's stream, in large pieces, which the reader's thread takes from memory

                 ┌── bytes are here ──> readinto(), plain_socket() … in a thread ── none at the moment ──┐
    ── wait() ───┤                                                                                      │
         ^       ├── the end ──> close(): the connection goes on with its next request                   │
         │       └── broke off, too slow ──> UploadBroken                                                │
         └───────────────────────────────────────────────────────────────────────────────────────────────┘

A client that sends nothing costs a task and a descriptor, but no thread: its reader waits on the event loop. A thread
stays with a body only while bytes come at a fair rate (`_FAIR`).

To take the socket, the connection stops reading from it (`Lender.lend`). The bytes that had arrived by then come first;
the others are read from a duplicate of the descriptor, as in sending.py. When the body is over, or given up, the
connection goes on (`Lender.give_back`): with a new parser, because the old one still waits for the body.
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, cast

from aiohttp import HttpVersion11, web
from aiohttp.client_exceptions import ClientError
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestPayloadError

from mirror.errors import ManifestTooLarge, TooManyUploads, UploadBroken, reason_of
from mirror.repository import protocol
from mirror.server.registry.upload_pace import UploadPace

#: Bytes from which a body is worth the switch to its socket.
_WORTH_IT: Final = 256 << 10
#: Bytes that aiohttp's stream collects before it stops reading from the client, halved.
_PIECE: Final = 512 << 10
#: Seconds for which a small piece waits for more to come with it.
_GATHER: Final = 0.002
#: Bytes a second from which on a thread waits for a client's next bytes, and the longest time that it does so.
_FAIR: Final = 1 << 20
_LINGER: Final = 0.05
#: Seconds over which the rate of a body is averaged.
WINDOW: Final = 30.0
#: Most bytes of bodies in memory, in one process. Manifests of some kilobytes arrive at once.
_MOST_HELD: Final = 128 << 20

#: Called once a client has sent nothing for a while.
Idle = Callable[[], Awaitable[None]]

#: Set in a request once its client was told to send the body.
CONTINUED: Final = web.RequestKey("continued", bool)


class Lender(Protocol):
    """A connection that lends its socket for the rest of a body."""

    def lend(self, body: StreamReader) -> tuple[int, bytes] | None:
        """A duplicate of the socket's descriptor, which the caller closes, and the bytes of the body that were read
        from it before. None if it cannot be lent. No byte is read from the socket until `give_back`.
        """

    def give_back(self, body: StreamReader, rest: int) -> None:
        """The next `rest` bytes from the socket still belong to the body; after them comes the next request."""


class Sending(Protocol):
    """A connection whose client is sending a body."""

    def drop(self, reason: str) -> None:
        """End the connection at once."""


class HeldBodies:
    """The bodies that one process has received into memory, such as manifests, limited together: clients that send
    slowly, or many at once, must not hold any amount of it.

        begun ── a piece has come ──> grows ──┬── whole ──> kept until it is worked on ──> left
                                              ├── broken off ────────────────────────────> left
                                              └── too large ──┬── for what is whole: this one ends (`TooManyUploads`)
                                                              └── for all others: the longest is dropped ("memory")
    """

    def __init__(self, most: int = _MOST_HELD) -> None:
        """`most` is in bytes."""
        self._most = most
        #: Bodies that are still coming, in the order in which they began, and those that are whole, with their sizes.
        self._coming: dict[Sending, int] = {}
        self._whole: dict[Sending, int] = {}
        self._whole_size = self.size = 0

    def __repr__(self) -> str:
        bodies = f"{len(self._coming)} coming, {len(self._whole)} whole"
        return f"<HeldBodies {bodies}, {self.size} of {self._most} bytes>"

    def grow(self, connection: Sending, count: int) -> None:
        """The body of this connection has so many more bytes. While all bodies together are too large, drops the
        connections whose bodies began before this one. Raises `TooManyUploads` if those that are whole leave no room
        for this one: nobody else is dropped for it then.
        """
        self._coming[connection] = self._coming.get(connection, 0) + count
        self.size += count
        if self._whole and self._whole_size + self._coming[connection] > self._most:
            raise TooManyUploads("too many manifests are being pushed at this moment")
        while self.size > self._most and (longest := next(iter(self._coming))) is not connection:
            self.leave(longest)
            longest.drop("memory")

    def arrived(self, connection: Sending) -> None:
        """The body of this connection is whole; it stays in memory until `leave`."""
        size = self._whole[connection] = self._coming.pop(connection, 0)
        self._whole_size += size

    def leave(self, connection: Sending) -> None:
        """The body of this connection is in memory no more. Repeatable."""
        whole = self._whole.pop(connection, 0)
        self._whole_size -= whole
        self.size -= self._coming.pop(connection, 0) + whole


class Receiver:
    """Makes the bodies of one process. A body that brings less than `lowest` bytes a second over `window` seconds is
    given up; 0: none is.
    """

    def __init__(self, lowest: float, *, window: float = WINDOW, clock: Callable[[], float] = time.monotonic) -> None:
        self._lowest = lowest
        self._window = window
        self._clock = clock
        self.held = HeldBodies()

    def __repr__(self) -> str:
        return f"<Receiver at least {self._lowest:g} bytes a second>"

    def body(self, request: web.BaseRequest, start: int = 0) -> ClientBody:
        """The body of a request, which begins at `start` of the blob. The caller closes it."""
        pace = UploadPace(self._lowest, self._window)
        return ClientBody(request, pace, self.held, start=start, clock=self._clock)


class ClientBody:
    """A `PushBody`. The event loop calls `wait`, `read` and `close`; one thread at a time calls the others, and only
    between two calls of `wait`.
    """

    def __init__(
        self,
        request: web.BaseRequest,
        pace: UploadPace,
        held: HeldBodies,
        *,
        start: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.start = start
        #: The size of the whole blob: a request's body may be a part of it.
        self.size: int | None = None
        self._request = request
        self._stream = request._payload
        self._pace = pace
        self._held = held
        self._clock = clock
        self._length = _length(request)
        self._received = 0
        #: Bytes that are in memory here, and how many of them were given out.
        self._piece = b""
        self._given = 0
        #: The duplicate of the socket, and how many bytes of the body are still to be read from it.
        self._socket = -1
        self._rest = 0
        self._begun = False
        self._ended = False
        self._aborted = False
        #: Seconds for which the thread may still wait for bytes.
        self._credit = 0.0

    def __repr__(self) -> str:
        return f"<ClientBody {self._received}/{self._length}{' from the socket' if self._socket >= 0 else ''}>"

    @property
    def length(self) -> int | None:
        """Size in bytes of the whole body; None if the client does not say it."""
        return self._length

    @property
    def received(self) -> int:
        """How many bytes were given to the reader."""
        return self._received

    # -------------------------------------------------------------------------------------- on the event loop

    async def wait(self, idle: Idle | None = None) -> bool:
        """Returns once bytes can be read; False at the end of the body. Raises `UploadBroken`. See `PushBody.wait`."""
        if self._given < len(self._piece):
            return True
        if self._ended or self._aborted:
            return False
        if not self._begun:
            self._begin()
            if self._piece:
                return True
        self._credit = _GATHER
        if self._socket >= 0:
            if not self._rest:
                self._ended = True
                return False
            await self._readable(idle)
            return True
        return await self._more(idle)

    async def read(self, limit: int) -> bytes:
        """The whole body, which must be small; it counts as held in memory until `close`. Raises `ManifestTooLarge`
        above `limit` bytes, `UploadBroken`, `TooManyUploads`.
        """
        if self._length is not None and self._length > limit:
            raise ManifestTooLarge(f"{self._length} bytes, more than the {limit} that a manifest may have")
        content, connection = bytearray(), cast(Sending, self._request.protocol)
        self._begun = True
        self._continue()
        while await self.wait():
            piece = self._piece[self._given :]
            content += piece
            self._received += len(piece)
            self._given = len(self._piece)
            if len(content) > limit:
                raise ManifestTooLarge(f"more than the {limit} bytes that a manifest may have")
            self._held.grow(connection, len(piece))
        self._held.arrived(connection)
        return bytes(content)

    def close(self) -> None:
        """Gives the connection back, before the answer is sent. Repeatable."""
        self._ended = True
        self._piece = b""
        self._given = 0
        self._held.leave(cast(Sending, self._request.protocol))
        if self._socket >= 0:
            os.close(self._socket)
            self._socket = -1
            cast(Lender, self._request.protocol).give_back(self._stream, self._rest)

    def _begin(self) -> None:
        """The client is told to go on if it waits for that; a large body's socket is taken."""
        self._begun = True
        self._continue()
        if self._length is None or self._stream.is_eof():
            return
        if self._length - self._stream.total_bytes < _WORTH_IT:
            return
        lent = cast(Lender, self._request.protocol).lend(self._stream)
        if lent is not None:
            self._socket, self._piece = lent
            self._given = 0
            self._rest = self._length - len(self._piece)

    def _continue(self) -> None:
        """RFC 9110, 10.1.1. Whoever answers before this costs the client no body."""
        request = self._request
        if expects_continue(request) and not self._stream.is_eof():
            request[CONTINUED] = True
            if request.transport is not None:
                request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def _readable(self, idle: Idle | None) -> None:
        loop = asyncio.get_running_loop()
        began = self._clock()
        while True:
            ready = loop.create_future()
            loop.add_reader(self._socket, _set, ready)
            try:
                async with asyncio.timeout(self._patience(idle)):
                    await ready
                return self._keep_up(0, began)
            except TimeoutError:
                self._keep_up(0, began)
                if idle is not None:
                    await idle()
                    idle = None
                began = self._clock()
            finally:
                loop.remove_reader(self._socket)

    def _patience(self, idle: Idle | None) -> float | None:
        """How many seconds the next wait may take; None: for ever."""
        longest = self._pace.patience
        return longest if idle is None else min(protocol.IDLE, longest if longest is not None else protocol.IDLE)

    async def _more(self, idle: Idle | None = None) -> bool:
        """The next piece from aiohttp's stream; False at the end of the body."""
        stream = self._stream
        while True:
            began = self._clock()
            try:
                async with asyncio.timeout(self._patience(idle)):
                    piece = await stream.readany()
                if not piece and stream.at_eof():
                    self._ended = True
                    return False
                if len(piece) < _PIECE and not stream.is_eof():
                    # one switch to a thread for a large piece, rather than many
                    await asyncio.sleep(_GATHER)
                    piece += stream.read_nowait()
            except TimeoutError:
                piece = b""
            except RequestPayloadError as error:
                raise self._broken(f"it is malformed: {error}") from error
            except (ConnectionError, ClientError, RuntimeError) as error:
                raise self._broken("the client left") from error
            self._keep_up(len(piece), began)
            if piece:
                self._piece, self._given = piece, 0
                return True
            if idle is not None:
                await idle()
                idle = None

    def _keep_up(self, count: int, began: float) -> None:
        if not self._pace.keeps_up(count, self._clock() - began):
            raise self._broken(f"it came more slowly than {self._pace.demand}")

    def _broken(self, reason: str) -> UploadBroken:
        of = "" if self._length is None else f" of {self._length}"
        return UploadBroken(f"the body broke off after {self._received}{of} bytes: {reason}")

    # ------------------------------------------------------------------------------------------- in a thread

    def readinto(self, buffer: memoryview) -> int:
        """Returns the number of bytes written to the buffer; 0 if none is here at the moment, or at the end.

        Raises `UploadBroken`.
        """
        if self._aborted:
            raise self._broken("the request was given up")
        left = len(self._piece) - self._given
        if left:
            count = min(left, len(buffer))
            buffer[:count] = self._piece[self._given : self._given + count]
            self._given += count
            self._received += count
            if count == left:
                self._piece, self._given = b"", 0
            return count
        if self._socket < 0 or not self._rest:
            return 0
        try:
            count = os.readv(self._socket, [buffer[: self._rest]])
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._broken(reason_of(error)) from error
        self.advance(count)
        return count

    def plain_socket(self) -> tuple[int, int] | None:
        """The descriptor of a socket that does not block and has bytes, and how many bytes of the body are left in it.

        None if nothing has come for a moment, or if the next bytes are in memory (`readinto`).
        """
        if self._socket < 0 or not self._rest or self._piece or self._aborted:
            return None
        return (self._socket, self._rest) if self._comes() else None

    def advance(self, count: int) -> None:
        """Notes that `count` bytes were taken from the socket. Raises `UploadBroken` for 0, the end of the socket."""
        if not count:
            raise self._broken("the client left")
        self._rest -= count
        self._received += count
        self._pace.keeps_up(count, 0.0)
        self._credit = min(self._credit + count / _FAIR, _LINGER)

    def abort(self) -> None:
        """Makes `readinto` fail. May be called from any thread, and repeatedly."""
        self._aborted = True

    def _comes(self) -> bool:
        """Whether bytes are in the socket, or come while the thread may wait for them."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if poll.poll(0):
            return True
        began = time.monotonic()
        comes = bool(poll.poll(self._credit * 1000))
        self._credit = max(0.0, self._credit - (time.monotonic() - began))
        return comes


def expects_continue(request: web.BaseRequest) -> bool:
    """Whether the client waits for a `100 Continue` before it sends the body."""
    return (
        request.headers.get("Expect", "").strip().lower() == "100-continue"
        and request.version >= HttpVersion11
        and CONTINUED not in request
    )


def _length(request: web.BaseRequest) -> int | None:
    """The body's length; None if it is chunked. A request without either header has no body (RFC 9112, 6.3)."""
    if request._message.chunked:
        return None
    return int(request.headers.get("Content-Length", "0"))


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)

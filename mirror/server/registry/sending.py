"""Send bytes from an open file to a client's socket, without copying them through this process if possible.

    plain TCP     `os.sendfile` on a duplicate of the socket, as much as the socket takes, then wait until it takes more
    TLS, chunked  read a piece, in a thread unless it is in memory, write it to the transport, wait until it has left

Several parts of a file are sent in the same ways, one after the other, with a few bytes from memory before each.

The duplicate is needed because the event loop does not hand out the socket of a transport; to the kernel both are one
socket. The loop must have sent the headers before the first byte of the file.

A stalled client costs a task and a descriptor, but no buffer: unread bytes stay in the page cache. A file that is not
in the page cache is sent from a thread, so that the event loop never waits for the disk.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Executor
from typing import Final, cast

from aiohttp import web

from mirror.aio.threads import uninterrupted
from mirror.errors import BlobDamaged, BlobUnreadable, StoreError, reason_of
from mirror.oci.span import Span
from mirror.ports import BlobReader, SupportsFileno
from mirror.server.registry.send_turns import SendTurns
from mirror.server.registry.writing import Waiting

#: Waits until bytes after a position may be sent, and returns up to where; see `BlobContent.wait_past`.
WaitPast = Callable[[int], Awaitable[int]]

#: Bytes that one call may send before other clients get their turn. TLS pieces are small because each is copied twice.
_SENDFILE: Final = 4 << 20
_PIECE: Final = 256 << 10
#: The first call of an answer waits for no turn, and is short: if many clients begin at once, none waits for megabytes
#: of another.
_FIRST: Final = 64 << 10
#: Bytes that the kernel sends from a file while a byte of a piece is read and encrypted.
_PIECE_COST: Final = 4

_GONE: Final = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ETIMEDOUT, errno.ENOTCONN, errno.ESHUTDOWN})


def up_to(stop: int) -> WaitPast:
    """The `WaitPast` of bytes that are here, up to `stop`."""

    async def wait_past(position: int) -> int:
        return stop

    return wait_past


class ClientGone(ConnectionError):
    """The client left, or read nothing for too long."""


class Sender:
    """Sends for this process. `stall` is how many seconds a client may read nothing before its connection is
    dropped; writes through its transport are limited by the connection itself (`handler.py`).
    """

    def __init__(self, executor: Executor, *, stall: float) -> None:
        self._executor = executor
        self._stall = stall
        self._turns = SendTurns()

    async def send(
        self,
        request: web.BaseRequest,
        response: web.StreamResponse,
        reader: BlobReader,
        start: int,
        stop: int | None,
        wait_past: WaitPast,
        sent: Callable[[int], None],
        *,
        first: bool,
    ) -> None:
        """Send from `start` up to `stop` (None: to the end, in chunks) after the headers; `sent` is called with each
        count of bytes. `first`: nothing of the body was sent before. All that follows waits for its turn.

        Raises `ClientGone`, `BlobDamaged` if the file is shorter than promised, `StoreError`, and the errors of
        `wait_past`.
        """
        out = self._past_the_loop(request, reader) if stop is not None else -1
        if out < 0 or stop is None or not isinstance(reader, SupportsFileno):
            await self._send_pieces(response, reader, start, stop, wait_past, sent, first=first)
            return
        try:
            await self._flush(request)
            await self._send_file(request, out, reader, start, stop, wait_past, sent, first=first)
        finally:
            os.close(out)

    async def send_parts(
        self,
        request: web.BaseRequest,
        response: web.StreamResponse,
        reader: BlobReader,
        parts: Iterable[tuple[bytes, Span]],
        end: bytes,
        wait_past: Callable[[Span], WaitPast],
        sent: Callable[[int], None],
    ) -> None:
        """Send each part after its bytes from memory, then `end`. `wait_past` returns the function to wait with for a
        part. Raises the same errors as `send`.
        """
        out = self._past_the_loop(request, reader)
        first = True
        if out < 0 or not isinstance(reader, SupportsFileno):
            for head, span in parts:
                await self.write(response, head)
                sent(len(head))
                await self._send_pieces(response, reader, span.start, span.stop, wait_past(span), sent, first=first)
                first = False
            await self.write(response, end)
            sent(len(end))
            return
        with socket.socket(fileno=out) as direct:
            await self._flush(request)
            for head, span in parts:
                # these bytes leave together with the first ones of the part
                await self._send_bytes(request, direct, head, socket.MSG_MORE)
                sent(len(head))
                await self._send_file(request, out, reader, span.start, span.stop, wait_past(span), sent, first=first)
                first = False
            await self._send_bytes(request, direct, end, 0)
            sent(len(end))

    def _past_the_loop(self, request: web.BaseRequest, reader: BlobReader) -> int:
        """A duplicate of the client's socket, which the caller closes; -1 if bytes must go through the transport.

        Raises `ClientGone`.
        """
        transport = request.transport
        if transport is None:
            raise ClientGone("left before the answer")
        lent = transport.get_extra_info("socket")
        if lent is None or not isinstance(reader, SupportsFileno) or _is_tls(transport):
            return -1
        try:
            return os.dup(lent.fileno())
        except OSError:
            # no descriptor is free; sending in pieces needs none
            return -1

    async def _flush(self, request: web.BaseRequest) -> None:
        """Wait until the headers have left the transport: bytes sent past it must not overtake them. Raises
        `ClientGone`.
        """
        transport = request.transport
        if transport is None:
            raise ClientGone("left before the answer")
        transport.set_write_buffer_limits(high=0)
        while transport.get_write_buffer_size():
            await request.writer.drain()
            if transport.is_closing():
                raise ClientGone("left before the answer")
            if transport.get_write_buffer_size():
                await asyncio.sleep(0)

    async def _send_file(
        self,
        request: web.BaseRequest,
        out: int,
        reader: SupportsFileno,
        position: int,
        stop: int,
        wait_past: WaitPast,
        sent: Callable[[int], None],
        *,
        first: bool,
    ) -> None:
        """`first`: these are the first bytes of the answer."""
        loop = asyncio.get_running_loop()
        # what a call may send, and what it is expected to send
        most, cost = _FIRST, 0 if first else _FIRST
        while position < stop:
            limit = min(stop, await wait_past(position))
            if limit <= position:
                raise BlobDamaged(f"the blob ends at {position}, {stop} bytes were announced")
            while position < limit:
                count = min(limit - position, most)
                if cost:
                    await self._turns.take(min(count, cost))
                try:
                    if _is_cached(reader.fileno(), position, count):
                        moved = os.sendfile(out, reader.fileno(), position, count)
                    else:
                        moved = await self._send_in_thread(loop, out, reader.fileno(), position, count)
                except BlockingIOError:
                    await self._writable(request, out)
                    continue
                except OSError as error:
                    raise _translated(error) from error
                if not moved:
                    raise BlobDamaged(f"the file ends at {position}, {stop} bytes were announced")
                position += moved
                sent(moved)
                if not cost and position < stop:
                    await self._others_begin()
                most, cost = _SENDFILE, _SENDFILE if most == _FIRST else moved

    async def _send_bytes(self, request: web.BaseRequest, out: socket.socket, content: bytes, flags: int) -> None:
        while content:
            try:
                content = content[out.send(content, flags | socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                await self._writable(request, out.fileno())
            except OSError as error:
                raise _translated(error) from error

    async def _send_in_thread(
        self, loop: asyncio.AbstractEventLoop, out: int, file: int, position: int, count: int
    ) -> int:
        """Waits for the thread even if cancelled: afterwards the numbers of both descriptors may be reused."""
        return await uninterrupted(loop.run_in_executor(self._executor, os.sendfile, out, file, position, count))

    async def _writable(self, request: web.BaseRequest, out: int) -> None:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        loop.add_writer(out, _set, ready)
        try:
            async with asyncio.timeout(self._stall):
                await ready
        except TimeoutError as error:
            cast(Waiting, request.protocol).drop("stalled")
            raise ClientGone("read nothing for too long") from error
        finally:
            loop.remove_writer(out)

    async def _send_pieces(
        self,
        response: web.StreamResponse,
        reader: BlobReader,
        position: int,
        stop: int | None,
        wait_past: WaitPast,
        sent: Callable[[int], None],
        *,
        first: bool,
    ) -> None:
        """`first`: these are the first bytes of the answer."""
        loop = asyncio.get_running_loop()
        most = _FIRST
        while stop is None or position < stop:
            limit = await wait_past(position)
            limit = limit if stop is None else min(stop, limit)
            if limit <= position:
                if stop is None:
                    return
                raise BlobDamaged(f"the blob ends at {position}, {stop} bytes were announced")
            while position < limit:
                size = min(limit - position, most)
                if not first:
                    await self._turns.take(size * _PIECE_COST)
                if isinstance(reader, SupportsFileno) and _is_cached(reader.fileno(), position, size):
                    piece = reader.pread(size, position)
                else:
                    piece = await loop.run_in_executor(self._executor, reader.pread, size, position)
                if not piece:
                    raise BlobDamaged(f"the file ends at {position}, {limit} bytes were announced")
                await self.write(response, piece)
                position += len(piece)
                sent(len(piece))
                if first and position != stop:
                    await self._others_begin()
                first, most = False, _PIECE

    async def _others_begin(self) -> None:
        """After the first bytes of an answer: whoever begins in the same round of the loop has its own before more of
        this one are sent.
        """
        await asyncio.sleep(0)

    async def write(self, response: web.StreamResponse, piece: bytes) -> None:
        """Write one piece of a body, once the client has taken the one before. Raises `ClientGone`."""
        try:
            # the connection limits the wait, as for any other answer
            await response.write(piece)
        except ClientGone:
            raise
        except (ConnectionError, RuntimeError) as error:
            raise ClientGone("left") from error


def _is_tls(transport: asyncio.BaseTransport) -> bool:
    return transport.get_extra_info("sslcontext") is not None


_probe: Final = [bytearray(1)]


def _is_cached(descriptor: int, position: int, count: int) -> bool:
    """True if the first and the last byte can be read without the disk; the bytes between them nearly always can,
    too.
    """
    try:
        return bool(
            os.preadv(descriptor, _probe, position, os.RWF_NOWAIT)
            and os.preadv(descriptor, _probe, position + count - 1, os.RWF_NOWAIT)
        )
    except OSError:
        # EAGAIN: not in memory. EOPNOTSUPP: this filesystem cannot tell, so a thread is the safe way
        return False


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _translated(error: OSError) -> Exception:
    if error.errno in _GONE:
        return ClientGone("left")
    # a socket never gives EIO, so the error is the file's
    kind = BlobUnreadable if error.errno == errno.EIO else StoreError
    return kind(f"sending a blob: {reason_of(error)}")

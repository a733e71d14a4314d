"""The body of one HTTP/1.1 answer: where it ends, whether it arrives fast enough, and the errors if it does not.

HttpBody     reading ──┬── all bytes arrived ──> the connection is given back
                       ├── cut, stalled, too slow ──> UpstreamUnavailable, UpstreamTimeout; connection closed
                       └── abort(), from any thread ──> a blocked read fails; connection closed
"""

from __future__ import annotations

import fcntl
import os
import re
import ssl
import sys
import termios
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from multidict import MultiMapping

from mirror.errors import UpstreamInvalid, UpstreamTimeout, UpstreamUnavailable
from mirror.policy.upstream.url_bounds import Url
from mirror.upstream.http.connection import Connection
from mirror.upstream.http.dialing import no_tls

_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")
_DECIMAL: Final = re.compile(r"[0-9]{1,18}")
_MOST_TRAILERS: Final = 64
#: The first bytes of blobs that a server does not store compressed once more: gzip, zstd, JSON.
_OF_ITSELF: Final = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"{")

#: The most bytes that decoding a blob may give: a fixed number, plus a number for each encoded byte. More is treated as
#: a decompression bomb: of the forms above only JSON compresses well, and less than a hundredfold.
_MOST_FROM_NOTHING: Final = 1 << 20
_MOST_FROM_A_BYTE: Final = 100


@dataclass(frozen=True, slots=True)
class Framing:
    """Where a body ends (RFC 9112, 6.3): after `length` bytes, with its last chunk, or with the connection.

    `keeps` is True if the connection may take another request afterwards.
    """

    length: int | None
    chunked: bool
    keeps: bool

    @classmethod
    def read(cls, status: int, fields: MultiMapping[str], minor: int) -> Framing | None:
        """The framing of an answer to GET; `minor` is the HTTP/1 minor version.

        None if two readers could disagree about the end: a bad length, lengths that differ, a length beside a transfer
        coding, a coding other than chunked alone, or any coding in HTTP/1.0.
        """
        tokens = {token.strip().lower() for line in fields.getall("Connection", ()) for token in line.split(",")}
        keeps = "close" not in tokens and (minor == 1 or "keep-alive" in tokens)
        if status in (204, 304):
            return cls(0, False, keeps)
        codings = [
            coding.strip().lower() for line in fields.getall("Transfer-Encoding", ()) for coding in line.split(",")
        ]
        lengths = {length.strip() for line in fields.getall("Content-Length", ()) for length in line.split(",")}
        if codings:
            if codings != ["chunked"] or lengths or minor == 0:
                return None
            return cls(None, True, keeps)
        if not lengths:
            return cls(None, False, False)
        length = lengths.pop()
        if lengths or not _DECIMAL.fullmatch(length):
            return None
        return cls(int(length), False, keeps)


class RateFloor:
    """Measures whether a body arrives fast enough. Only the time spent waiting for upstream counts, not our own.

    `lowest` is in bytes a second, averaged over `window` seconds of waiting.
    """

    def __init__(self, lowest: float, window: float) -> None:
        self.lowest = lowest
        self.window = window
        self._bytes = 0
        self._waited = 0.0

    def keeps_up(self, count: int, waited: float) -> bool:
        self._bytes += count
        self._waited += waited
        if self._waited < self.window:
            return True
        fast_enough = self._bytes >= self.lowest * self._waited
        self._bytes, self._waited = 0, 0.0
        return fast_enough


class HttpBody:
    """A `mirror.ports.Body` over one answer. One thread at a time may read; any thread may call `abort` and `close`.

    `start` is the offset of the body in the blob, `size` the size of the whole blob, and `wanted` the offset up to
    which the range was requested (None: to the end). If `connection` is None, no more bytes follow. `give_back`
    receives the connection if it can take another request.

    A reader that can take bytes from the socket itself (splice) calls `plain_socket` and reports with `advance`.
    """

    def __init__(
        self,
        upstream: str,
        url: Url,
        connection: Connection | None,
        framing: Framing,
        *,
        start: int = 0,
        size: int | None = None,
        wanted: int | None = None,
        pace: RateFloor,
        give_back: Callable[[Connection], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self.upstream = upstream
        self._url = url
        self.start = start
        self.size = framing.length if size is None and start == 0 and wanted is None else size
        #: The offset before which the answer must not end; None if that is not known.
        self._least = self.size if wanted is None else wanted if self.size is None else min(wanted, self.size)
        #: See `SaysStop`.
        self.stop = self._least if framing.length is None else start + framing.length
        #: See `SaysThrottled`; set by whoever has asked for a part.
        self.throttled: float | None = None
        self._received = 0
        self._keeps = framing.keeps
        self._remaining = framing.length
        self._chunked = framing.chunked
        self._chunk_remaining: int | None = None
        self._ended = connection is None
        self._pace = pace
        self._give_back = give_back
        self._clock = clock
        self._lock = threading.Lock()
        self._reading = False
        self._aborted = False
        self._closed = False
        self._lent = False
        self._lent_at = 0.0

    def readinto(self, buffer: memoryview) -> int:
        """Return the number of bytes read, as soon as some arrive; 0 only at a proper end (see `ports.Body`). Blocking.

        A body of known length ends after that length. A body without one ends when the connection closes, which does
        not prove that it is complete: the digest decides. Raises `UpstreamTimeout`, and `UpstreamUnavailable` if the
        body breaks off or its chunks are broken.
        """
        if self._ended or not len(buffer):
            return self._end() if self._ended else 0
        with self._connected() as connection:
            began = self._clock()
            count = self._receive(connection, buffer)
        self._count(count, self._clock() - began)
        return count or self._end()

    def await_first(self) -> None:
        """Block until there are bytes to read, or the body has ended; none is taken. To be called before `readinto`.
        Raises like `readinto`.
        """
        if self._ended or self._remaining == 0:
            return
        with self._connected() as connection:
            there = connection.stream.peek(1)
        if not there and (self._chunked or self._remaining):
            raise self._broken("the connection was closed")

    def plain_socket(self) -> tuple[int, int] | None:
        """The socket's descriptor and how many bytes of the body are left to read from it; None if it cannot be used.

        It can be used only for plain TCP with a `Content-Length`, while bytes are left, and after `readinto` has
        returned everything that was read along with the headers. The descriptor is blocking, for at most `read_timeout`
        seconds a call (SO_RCVTIMEO: then EAGAIN). The caller takes at most that many bytes and reports each count to
        `advance`.
        """
        with self._lock:
            connection = self._connection
            if connection is None or self._closed or self._aborted or not self._remaining:
                return None
            if connection.is_tls or not connection.is_drained():
                return None
            if not self._lent:
                self._lent, self._lent_at = True, self._clock()
            return connection.fileno(), self._remaining

    def advance(self, count: int) -> None:
        """Report that `count` bytes were taken from `plain_socket`, or 0 if the socket has ended.

        Raises like `readinto`, and `ValueError` for more bytes than the body has.
        """
        now = self._clock()
        waited, self._lent_at = now - self._lent_at, now
        if self._remaining is None or count > self._remaining:
            raise ValueError("more bytes than the body has")
        if count == 0:
            raise self._broken("the connection was closed")
        self._remaining -= count
        self._count(count, waited)

    def waiting(self) -> int:
        """See `SaysWaiting`: what the kernel has, encrypted or not."""
        with self._lock:
            if self._connection is None:
                return 0
            count = fcntl.ioctl(self._connection.fileno(), termios.FIONREAD, bytes(4))
        return int.from_bytes(count, sys.byteorder)

    def abort(self) -> None:
        """Make a blocked `readinto` fail soon. Callable from any thread, repeatable."""
        with self._lock:
            self._aborted = True
            if self._connection is not None:
                self._connection.shut_down()

    def close(self) -> None:
        """Close the body. The connection is given back if the body was read to its end.

        Callable from any thread, repeatable; never blocks.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._reading:
                # the reader closes it: if it were closed here, another file could get the number of its descriptor
                if self._connection is not None:
                    self._connection.shut_down()
                return
            connection, self._connection = self._connection, None
            complete = self._remaining == 0 if not self._chunked else self._ended
            lent = self._lent
        if connection is None:
            return
        if complete and self._keeps and not self._aborted and connection.is_clean():
            self._give_back(connection)
        elif lent:
            # a thread may still be in a system call on the descriptor: it is closed once this body is unreferenced
            weakref.finalize(self, os.close, connection.detach())
        else:
            connection.close()

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """The connection, which nobody closes meanwhile. Errors of reading it become those of an upstream."""
        connection = self._enter()
        try:
            yield connection
        except (TimeoutError, BlockingIOError) as error:
            raise UpstreamTimeout(f"no bytes for {connection.read_timeout:g} s", upstream=self.upstream) from error
        except (OSError, ValueError) as error:
            raise self._broken(describe(error)) from error
        finally:
            self._leave()

    def _enter(self) -> Connection:
        with self._lock:
            if self._connection is None or self._closed or self._aborted:
                raise self._broken("aborted")
            self._reading = True
            return self._connection

    def _leave(self) -> None:
        with self._lock:
            self._reading = False
            connection = self._connection if self._closed else None
            if connection is not None:
                self._connection = None
        if connection is not None:
            connection.close()

    def _receive(self, connection: Connection, buffer: memoryview) -> int:
        if self._chunked:
            return self._receive_chunk(connection, buffer)
        if self._remaining is None:
            count = connection.take(buffer)
        elif self._remaining == 0:
            return 0
        else:
            count = connection.take(buffer[: self._remaining])
            if not count:
                raise self._broken("the connection was closed")
            self._remaining -= count
        return count

    def _receive_chunk(self, connection: Connection, buffer: memoryview) -> int:
        """Read from a chunked body (RFC 9112, 7.1), through the buffer that may hold bytes read with the headers."""
        while not self._chunk_remaining:
            if self._chunk_remaining == 0 and connection.stream.readline(3) not in (b"\r\n", b"\n"):
                raise self._broken("a chunk does not end where it should")
            line = connection.stream.readline(1024)
            size = _CHUNK_LINE.fullmatch(line)
            if not size:
                raise self._broken(
                    "the connection was closed" if not line.endswith(b"\n") else "a chunk has no valid size"
                )
            self._chunk_remaining = int(size[1], 16)
            if not self._chunk_remaining:
                for _ in range(_MOST_TRAILERS):
                    trailer = connection.stream.readline(8192)
                    if trailer in (b"\r\n", b"\n"):
                        return 0
                    if not trailer.endswith(b"\n"):
                        break
                raise self._broken("the trailer is cut short or too long")
        count = connection.stream.readinto1(buffer[: self._chunk_remaining])
        if not count:
            raise self._broken("the connection was closed")
        self._chunk_remaining -= count
        return count

    def _count(self, count: int, waited: float) -> None:
        self._received += count
        if count and not self._pace.keeps_up(count, waited):
            raise UpstreamTimeout(
                f"fewer than {self._pace.lowest:g} bytes a second for {self._pace.window:g} s", upstream=self.upstream
            )

    def _end(self) -> int:
        """Return 0 at the end of the answer. Raises `UpstreamUnavailable` if that is not the end of the blob."""
        if self._aborted:
            raise self._broken("aborted")
        self._ended = True
        if self._least is not None and self.start + self._received < self._least:
            raise self._broken("the answer is shorter than the blob's stated size")
        return 0

    def _broken(self, reason: str) -> UpstreamUnavailable:
        of = "" if self.size is None else f" of {self.size}"
        reason = "aborted" if self._aborted else reason
        return UpstreamUnavailable(
            f"the body from {self._url.authority} broke off at byte {self.start + self._received}{of}: {reason}",
            upstream=self.upstream,
        )

    def __repr__(self) -> str:
        return f"<HttpBody {self._url.authority} {self.start + self._received}/{self.size}>"


class EncodedBody:
    """A `mirror.ports.Body` of an answer that has `Content-Encoding: gzip` although identity was asked for.

    Usually the digest is that of the bytes as they were sent: the server names the coding of the file that it stores (a
    layer is a gzip file). If the decoded bytes are compressed themselves, or are JSON, then a server or proxy has
    compressed the blob on the way, and the decoded bytes are the blob. This is a guess, which the digest check confirms
    or refutes.
    """

    def __init__(self, body: HttpBody) -> None:
        """Read the first bytes to choose the form. Blocking. Raises like `HttpBody.readinto`."""
        self._body = body
        room = bytearray(64 * 1024)
        first = bytes(memoryview(room)[: body.readinto(memoryview(room))])
        decompressor = zlib.decompressobj(31)
        try:
            begins = decompressor.decompress(first, len(room))
        except zlib.error:
            begins = b""
        self._decompressor = decompressor if begins.startswith(_OF_ITSELF) else None
        self._ready = begins if self._decompressor else first
        self._pending = len(begins) == len(room) or bool(decompressor.unconsumed_tail)
        self._taken, self._given = len(first), len(begins)
        self.start, self.abort, self.close = body.start, body.abort, body.close
        #: See `SaysThrottled`; set by whoever has asked for a part.
        self.throttled: float | None = None
        # upstream does not state the decoded size
        self.size = None if self._decompressor else body.size

    def readinto(self, buffer: memoryview) -> int:
        """Like `HttpBody.readinto`.

        Also raises `UpstreamInvalid` if a body that is decoded is not valid gzip to its end, or expands too much.
        """
        while not self._ready:
            if self._decompressor is None:
                return self._body.readinto(buffer)
            if self._decompressor.eof:
                return 0
            self._ready = self._decompress(self._decompressor, len(buffer))
        piece, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)

    def _decompress(self, decompressor: zlib._Decompress, most: int) -> bytes:
        fresh = b""
        if not self._pending:
            room = bytearray(64 * 1024)
            fresh = bytes(memoryview(room)[: self._body.readinto(memoryview(room))])
            if not fresh:
                raise self._invalid("is cut short")
        try:
            piece = decompressor.decompress(decompressor.unconsumed_tail + fresh, most)
        except zlib.error as error:
            raise self._invalid("is not valid gzip") from error
        self._count(len(fresh), len(piece))
        self._pending = len(piece) == most or bool(decompressor.unconsumed_tail)
        return piece

    def _count(self, taken: int, given: int) -> None:
        self._taken += taken
        self._given += given
        if self._given > _MOST_FROM_NOTHING + _MOST_FROM_A_BYTE * self._taken:
            raise self._invalid("decompresses to far too many bytes")

    def _invalid(self, reason: str) -> UpstreamInvalid:
        return UpstreamInvalid(
            f"a blob that was sent with Content-Encoding gzip {reason}", upstream=self._body.upstream
        )


def describe(error: BaseException) -> str:
    """The system's description of an error. It never contains what was sent."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return no_tls(error)
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror)
    return str(error)[:200] or type(error).__name__

"""Objects of S3 over plain HTTP, read from the socket itself: half of the CPU time of what the library takes.

    get() ── connect, signed request, head of the answer ──┬── 200, 206: its body, which the kernel may splice
                                                           └── anything else: None, and the library asks

    reading ──> read to its end
       └──(cut, stalled)──> the library goes on from the next byte, with its repetitions

Only success is understood here: whatever else happens, the library asks anew, and its answer counts.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mirror import telemetry
from mirror.errors import BucketUnavailable, UpstreamInvalid, UpstreamUnavailable
from mirror.ports import Body
from mirror.store.cloud.clouds import TimeLimits
from mirror.store.cloud.raw_s3 import RawS3

_LONGEST_HEAD: Final = 64 << 10
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (200|206)[ \r]")
_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


@dataclass(frozen=True, slots=True)
class PlainAnswer:
    """A body that begins with `head`, of which `left` bytes follow on the socket `connection`, in an object of `size`
    bytes.
    """

    connection: socket.socket
    head: bytes
    left: int
    size: int
    e_tag: str


class PlainReader:
    """Asks for objects of one bucket over plain HTTP. May be used from any thread."""

    def __init__(self, raw: RawS3, times: TimeLimits, *, now: Callable[[], float] = time.monotonic) -> None:
        self._raw = raw
        self._times = times
        self._now = now

    def __repr__(self) -> str:
        return f"<PlainReader {self._raw!r}>"

    def get(self, key: str, start: int, stop: int | None = None) -> PlainAnswer | None:
        """An object from a byte on, up to `stop` (None: to its end); None if that is not what the store answers, or it
        does not.
        """
        ranges = {"range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start or stop is not None else {}
        try:
            host, port, request = self._raw.request_for(key, ranges)
            connection = socket.create_connection((host, port), self._times.connect)
        except (OSError, BucketUnavailable):
            return None
        try:
            answer = self._exchange(connection, request, start, stop)
        except BaseException as error:
            connection.close()
            if isinstance(error, OSError | ValueError):
                return None
            raise
        if answer is None:
            connection.close()
        return answer

    def _exchange(self, connection: socket.socket, request: bytes, start: int, stop: int | None) -> PlainAnswer | None:
        # a head that comes byte by byte must not occupy a thread for long
        deadline = self._now() + self._times.request
        connection.settimeout(self._times.read)
        connection.sendall(request)
        received = b""
        while (end := received.find(b"\r\n\r\n")) < 0:
            left = deadline - self._now()
            if left <= 0:
                return None
            connection.settimeout(min(left, self._times.read))
            piece = connection.recv(_LONGEST_HEAD)
            if not piece or len(received) > _LONGEST_HEAD:
                return None
            received += piece
        lines, head = received[:end].split(b"\r\n"), received[end + 4 :]
        status = _STATUS.match(lines[0] + b"\r")
        pairs = (line.decode("latin-1").partition(":") for line in lines[1:])
        fields = {name.strip().lower(): value.strip() for name, _, value in pairs}
        if status is None or "transfer-encoding" in fields or "content-encoding" in fields:
            return None
        length = int(fields.get("content-length", "-1"))
        size = length
        if start or stop is not None:
            found = _RANGE.fullmatch(fields.get("content-range", ""))
            if status[1] != b"206" or found is None or int(found[1]) != start:
                return None
            size = int(found[3])
        if length < len(head) or start + length != (size if stop is None else min(stop, size)):
            return None
        # the kernel's time-out leaves the descriptor blocking, as splice needs it
        connection.settimeout(None)
        whole, part = divmod(self._times.read, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", int(whole), int(part * 1e6)))
        return PlainAnswer(connection, head, length - len(head), size, fields.get("etag", ""))


class PlainBody:
    """See `mirror.ports.Body` and `SupportsSplice`."""

    def __init__(
        self, name: str, key: str, answer: PlainAnswer, start: int, rest: Callable[[int], Body | None]
    ) -> None:
        """`rest` opens the same version of the object from a byte on by way of the library; None if it is gone."""
        self.start = start
        self.size: int | None = answer.size
        self._name = name
        self._key = key
        self._stop = start + len(answer.head) + answer.left
        self._head = memoryview(answer.head)
        self._left = answer.left
        self._open_rest = rest
        self._rest: Body | None = None
        self._aborted = False
        # a thread may be in a system call on the descriptor: it is closed once this body is unreferenced
        self._descriptor = answer.connection.detach()
        weakref.finalize(self, os.close, self._descriptor)

    def __repr__(self) -> str:
        return f"<PlainBody {self._key} {self._position}/{self._stop}>"

    @property
    def _position(self) -> int:
        return self._stop - self._left - len(self._head)

    def readinto(self, buffer: memoryview) -> int:
        if self._rest is not None:
            return self._rest.readinto(buffer)
        if self._aborted:
            raise UpstreamUnavailable("the body was aborted", upstream=self._name)
        if self._head:
            count = min(len(buffer), len(self._head))
            buffer[:count] = self._head[:count]
            self._head = self._head[count:]
        elif self._left:
            try:
                count = os.readv(self._descriptor, [buffer[: self._left]])
            except OSError:
                count = 0
            if not count:
                return self._go_on().readinto(buffer)
            self._left -= count
        else:
            return 0
        telemetry.BUCKET_BYTES.labels("read").inc(count)
        return count

    def plain_socket(self) -> tuple[int, int] | None:
        if self._rest is not None or self._head or self._aborted or not self._left:
            return None
        return self._descriptor, self._left

    def advance(self, count: int) -> None:
        if count > self._left:
            raise ValueError("more bytes than the body has")
        self._left -= count
        telemetry.BUCKET_BYTES.labels("read").inc(count)

    def abort(self) -> None:
        self._aborted = True
        if self._rest is not None:
            self._rest.abort()
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._descriptor)) as connection:
            connection.shutdown(socket.SHUT_RDWR)

    def _go_on(self) -> Body:
        """Go on with the rest by way of the library, after a cut or a stall. Raises `UpstreamError`."""
        if self._aborted:
            raise UpstreamUnavailable("the body was aborted", upstream=self._name)
        try:
            rest = self._open_rest(self._position)
        except BucketUnavailable as error:
            raise UpstreamUnavailable(f"{self._key} broke off: {error}", upstream=self._name) from error
        if rest is None:
            raise UpstreamInvalid(f"{self._key} changed while it was read", upstream=self._name)
        self._rest = rest
        if self._aborted:
            rest.abort()
        return rest

"""One connection to upstream, and the connections that wait for their next request. Blocking; does not parse HTTP.

Connection  begin ── send ── head read from `stream` ── end_of_head ──┬── take … until the caller has its bytes
              ^                                                       ├── or `stream` again, for a chunked body
              └───────────────── idle, if nothing is left over (is_clean) ──────┘
"""

from __future__ import annotations

import contextlib
import io
import select
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

from mirror.upstream.http.tls_stream import TlsStream


class Connection(io.RawIOBase):
    """One connection. Heads and chunks are read through a buffer; `take` reads from the socket once it is drained.

    `origin` is the scheme, host and port that the connection serves. `read_timeout` is in seconds. `tls` is None for
    plain TCP.
    """

    def __init__(
        self,
        connection: socket.socket,
        origin: tuple[str, str, int],
        read_timeout: float,
        clock: Callable[[], float],
        tls: TlsStream | None = None,
    ) -> None:
        self._socket = connection
        self._tls = tls
        self.origin = origin
        self.is_tls = tls is not None
        self.read_timeout = read_timeout
        self._clock = clock
        self._deadline: float | None = None
        self._shut = False
        #: True once the buffer is empty; `take` then reads from the socket.
        self._drained = False
        #: While True, the buffer may return what it has, but not read more.
        self._sealed = False
        self.stream = io.BufferedReader(self, 16 * 1024)

    def begin(self, timeout: float) -> None:
        """Start a request. The whole head of its answer must arrive within `timeout` seconds."""
        self._deadline = self._clock() + timeout
        self._drained = self._sealed = False
        self._socket.settimeout(timeout)

    def send(self, request: bytes) -> None:
        """Send all of the request."""
        (self._tls or self._socket).sendall(request)

    def end_of_head(self) -> None:
        """Mark the end of the head: from here on, each single wait is limited by the read time-out."""
        self._deadline = None
        # the kernel's time-out leaves the descriptor blocking: reads need no poll before them, and splice can wait
        self._socket.settimeout(None)
        whole, part = divmod(self.read_timeout, 1)
        limit = struct.pack("@ll", int(whole), max(int(part * 1e6), 0 if whole else 1))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        if self.is_tls:
            # TLS may have to answer something of its own while it reads
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:  # io's own buffer type is not public
        """Read for the buffered stream; not for other callers."""
        if self._sealed:
            return None
        if self._deadline is not None:
            remaining = self._deadline - self._clock()
            if remaining <= 0:
                raise TimeoutError("the head of an answer took too long")
            self._socket.settimeout(remaining)
        return self._receive(memoryview(buffer))

    def take(self, buffer: memoryview) -> int:
        """Read the next bytes: first those in the buffer, then straight from the socket."""
        return self._receive(buffer) if self.is_drained() else self.stream.readinto1(buffer)

    def _receive(self, buffer: memoryview) -> int:
        """Read what the socket has. Waits only for the first byte, at most the read time-out."""
        return self._socket.recv_into(buffer) if self._tls is None else self._tls.recv_into(buffer)

    def is_drained(self) -> bool:
        """True once everything in the buffer has been returned. From the first call on, the buffer reads no more."""
        self._sealed = True
        self._drained = self._drained or not self.stream.peek(1)
        return self._drained

    def is_clean(self) -> bool:
        """True if no byte is unread and the other side has not closed: the connection can take another request.

        Bytes after the announced end would be read as the beginning of the next answer.
        """
        if self.closed or self._shut:
            return False
        if not self.is_drained():
            return False
        if self._tls is not None and not self._tls.is_drained:
            return False
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLHUP | select.POLLERR)
        return not poll.poll(0)

    def fileno(self) -> int:
        return self._socket.fileno()

    def shut_down(self) -> None:
        """Wake a thread that is blocked in a read. Callable from any thread. It shuts down the TCP socket, not TLS."""
        self._shut = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def detach(self) -> int:
        """Return the descriptor, shut down but open; the caller closes it."""
        self.shut_down()
        descriptor = self._socket.detach()
        self.close()
        return descriptor

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._socket.close()

    def __repr__(self) -> str:
        scheme, host, port = self.origin
        return f"<Connection {scheme}://{host}:{port}{' closed' if self.closed else ''}>"


class IdleConnections:
    """At most `most` connections that wait for their next request, each for at most `longest` seconds.

    The newest is used first. Callable from any thread.
    """

    def __init__(self, most: int, longest: float, clock: Callable[[], float]) -> None:
        self._most = most
        self._longest = longest
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: list[tuple[float, Connection]] = []
        self._closed = False

    def take(self, origin: tuple[str, str, int]) -> Connection | None:
        """Take a connection to this origin that seems alive; None if there is none."""
        while True:
            with self._lock:
                expired = self._expire()
                idle = next((entry for entry in reversed(self._waiting) if entry[1].origin == origin), None)
                if idle:
                    self._waiting.remove(idle)
            for wire in expired:
                wire.close()
            if idle is None:
                return None
            if idle[1].is_clean():
                return idle[1]
            idle[1].close()

    def put(self, wire: Connection) -> None:
        with self._lock:
            dropped = self._expire()
            if self._closed:
                dropped.append(wire)
            else:
                self._waiting.append((self._clock(), wire))
                while len(self._waiting) > self._most:
                    dropped.append(self._waiting.pop(0)[1])
        for old in dropped:
            old.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            dropped, self._waiting = self._waiting, []
        for _, wire in dropped:
            wire.close()

    def _expire(self) -> list[Connection]:
        oldest = self._clock() - self._longest
        expired = [wire for since, wire in self._waiting if since < oldest]
        self._waiting = [entry for entry in self._waiting if entry[0] >= oldest]
        return expired

    def __repr__(self) -> str:
        return f"<IdleConnections {len(self._waiting)} of {self._most}>"

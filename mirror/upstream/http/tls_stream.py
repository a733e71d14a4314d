"""TLS over a connected socket, for threads that receive much: large reads from the socket, decrypted from memory.

    socket ── recv, up to 256 KiB ──> memory of OpenSSL ── a record at a time ──> the caller's buffer

Python's own TLS socket lets OpenSSL read from the socket: twice for each record of at most 16 KiB, for its header and
its rest. That is 130,000 system calls for each GiB, where this takes 4,000.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Final, cast

#: Bytes that are taken from the socket at once.
_RAW: Final = 256 << 10

_buffers = threading.local()


class TlsStream:
    """The bytes of one TLS connection, after its handshake. One thread at a time may use it.

    The socket stays the caller's: its time-outs hold here too, and the caller closes it.
    """

    def __init__(
        self, plain: socket.socket, context: ssl.SSLContext, name: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Do the handshake, within the time-out of the socket. `name` is that of the server's certificate.

        Raises `OSError` (`ssl.SSLError`, `TimeoutError`) and `ValueError`.
        """
        self._plain = plain
        self._received = ssl.MemoryBIO()
        self._to_send = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._to_send, server_hostname=name)
        #: Decrypts at most so many bytes of one record into the buffer.
        self._decrypt = cast(Callable[[int, memoryview], int], self._tls.read)
        self._handshake(clock)

    def __repr__(self) -> str:
        return f"<TlsStream {self._tls.version()}, {self._received.pending} B not decrypted>"

    @property
    def is_drained(self) -> bool:
        """True if nothing that has been received is left to be decrypted, or to be read."""
        return not self._received.pending and not self._tls.pending()

    def sendall(self, content: bytes) -> None:
        """Send all of it. Raises `OSError`."""
        self._tls.write(content)
        self._flush()

    def recv_into(self, buffer: memoryview) -> int:
        """Decrypt what has arrived. Waits only for the first byte, as long as the socket's time-out says.

        Returns 0 at the end: that of TLS, or of the socket, which does not prove that the other side ended it.
        Raises `OSError` (`ssl.SSLError`; `TimeoutError` or `BlockingIOError` if no byte came in time).
        """
        count = 0
        while count < len(buffer):
            try:
                received = self._decrypt(len(buffer) - count, buffer[count:])
            except ssl.SSLWantReadError:
                if self._take(wait=not count):
                    continue
                break
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                break
            if not received:
                break
            count += received
        return count

    def _take(self, *, wait: bool) -> bool:
        """Take what the socket has. False if it has nothing, and must not be waited for.

        After the end of the socket, OpenSSL meets it.
        """
        self._flush()
        if not wait and self._plain.gettimeout() is not None:
            # a socket with a time-out of Python's waits whatever the flags say
            return False
        raw: memoryview | None = getattr(_buffers, "raw", None)
        if raw is None:
            raw = _buffers.raw = memoryview(bytearray(_RAW))
        try:
            count = self._plain.recv_into(raw, flags=0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            if wait:
                raise
            return False
        if count:
            self._received.write(raw[:count])
        else:
            self._received.write_eof()
        return True

    def _flush(self) -> None:
        """Send what TLS itself has to say: its part of a handshake, or the answer to an update of keys."""
        if self._to_send.pending:
            self._plain.sendall(self._to_send.read())

    def _handshake(self, clock: Callable[[], float]) -> None:
        limit = self._plain.gettimeout()
        deadline = None if limit is None else clock() + limit
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                if deadline is not None:
                    remaining = deadline - clock()
                    if remaining <= 0:
                        raise TimeoutError("the TLS handshake took too long") from None
                    self._plain.settimeout(remaining)
                self._take(wait=True)
            except ssl.SSLError:
                # the alert that says why
                with contextlib.suppress(OSError):
                    self._flush()
                raise
        self._flush()

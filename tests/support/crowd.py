"""Many clients at once on one blob, in one thread: raw sockets, and every byte compared with what it must be.

    Client   connecting ── head ──> body ──┬──> COMPLETE  as many bytes as were promised
                                           └──> BROKEN    the connection ended before that

All clients share one buffer: received bytes are compared at once and then dropped. The C library compares, which costs
less than hashing and also shows where the first wrong byte is.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import mmap
import selectors
import socket
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import TracebackType

from tests.support.process import PATIENCE

_BUFFER = 512 * 1024


class Outcome(Enum):
    """How a client's one answer ended."""

    RUNNING = "running"
    COMPLETE = "complete"
    BROKEN = "broken"


class Client:
    """One connection with one request. `received` counts bytes of the body, `wrong_at` is the first wrong one."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.port = connection.getsockname()[1]
        self.head = b""
        self.status: int | None = None
        self.length: int | None = None
        self.received = 0
        self.wrong_at: int | None = None
        self.outcome = Outcome.RUNNING

    def __repr__(self) -> str:
        return (
            f"<Client {self.port} {self.status} {self.received}/{self.length} {self.outcome.value}"
            f"{f', wrong at {self.wrong_at}' if self.wrong_at is not None else ''}"
            f"{f', {self.head!r}' if self.status != 200 else ''}>"
        )


class Crowd:
    """Clients of one blob at one server on loopback. `expected` is a file with the blob's bytes."""

    def __init__(self, port: int, target: str, expected: Path) -> None:
        self.clients: list[Client] = []
        self._port = port
        self._request = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept-Encoding: identity\r\n\r\n".encode()
        self._selector = selectors.DefaultSelector()
        self._buffer = bytearray(_BUFFER)
        self._memcmp = ctypes.CDLL(None).memcmp
        self._memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        with expected.open("rb") as file:
            # a private copy that is never written to: only so can its address be had
            self._expected = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.size = len(self._expected)

    def digest(self) -> str:
        """Of the expected bytes."""
        return "sha256:" + hashlib.sha256(self._expected).hexdigest()

    def join(self, count: int) -> list[Client]:
        """Connect this many more clients and send their requests."""
        joined = []
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE)
            connection.sendall(self._request)
            connection.setblocking(False)
            client = Client(connection)
            self._selector.register(connection, selectors.EVENT_READ, client)
            joined.append(client)
        self.clients += joined
        return joined

    def run(self, until: Callable[[], bool], what: str, *, timeout: float = PATIENCE) -> None:
        """Receive until the condition holds. Raises AssertionError when there is nothing to receive for `timeout` s."""
        quiet_since = time.monotonic()
        expected_at = ctypes.addressof(ctypes.c_char.from_buffer(self._expected))
        received_at = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))
        while not until():
            ready = self._selector.select(0.1)
            for key, _ in ready:
                self._receive(key.data, expected_at, received_at)
            if ready:
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since > timeout:
                raise AssertionError(f"nothing received for {timeout:g} s before {what}: {self.clients}")

    def begin(self) -> None:
        """Receive until every client has a part of the body."""
        self.run(lambda: all(client.received for client in self.clients), "bytes for every client")

    def finish(self) -> None:
        """Receive until every client has ended."""
        self.run(
            lambda: all(client.outcome is not Outcome.RUNNING for client in self.clients), "every client has ended"
        )

    def _receive(self, client: Client, expected_at: int, received_at: int) -> None:
        try:
            count = client.connection.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in (errno.ECONNRESET, errno.EPIPE):
                raise
            count = 0
        if count == 0:
            self._end(client, Outcome.BROKEN)
            return
        skipped = 0
        if client.status is None:
            client.head += bytes(self._buffer[:count])
            head, separator, body = client.head.partition(b"\r\n\r\n")
            if not separator:
                return
            self._read_head(client, head)
            skipped = count - len(body)
            client.head = client.head if client.status != 200 else head
        size = count - skipped
        if client.status == 200 and client.wrong_at is None and size:
            self._compare(client, expected_at + client.received, received_at + skipped, size)
        client.received += size
        if client.length is not None and client.received >= client.length:
            self._end(client, Outcome.COMPLETE)

    def _compare(self, client: Client, expected_at: int, received_at: int, size: int) -> None:
        if client.received + size > self.size:
            client.wrong_at = self.size
        elif self._memcmp(expected_at, received_at, size) != 0:
            start = received_at - ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))
            got, wanted = self._buffer[start : start + size], self._expected[client.received : client.received + size]
            client.wrong_at = client.received + next(n for n in range(size) if got[n] != wanted[n])

    @staticmethod
    def _read_head(client: Client, head: bytes) -> None:
        first, *lines = head.split(b"\r\n")
        client.status = int(first.split()[1])
        for line in lines:
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-length":
                client.length = int(value)

    def _end(self, client: Client, outcome: Outcome) -> None:
        client.outcome = outcome
        self._selector.unregister(client.connection)
        client.connection.close()

    def close(self) -> None:
        """Hang up. Repeatable."""
        for client in self.clients:
            client.connection.close()
        self._selector.close()

    def __enter__(self) -> Crowd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

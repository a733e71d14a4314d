"""The client that downloads, as a process of its own and the same for every system.

It lets the kernel throw the bytes of bodies away (recv with MSG_TRUNC, tcp(7)), so that it takes next to nothing of
the machine from the server beside it. Lengths are checked, contents are not: `check.py` does that, outside of
every measurement. Over TLS it decrypts the head of the answer only, and counts and throws away the records of the body
as they are.

    python -m bench.client PORTS PATHS SIZE CONNECTIONS REPEAT  prints a `Download` as JSON
    python -m bench.client PORTS PATHS SIZE CONNECTIONS tls     likewise, each connection over TLS and for one answer
    python -m bench.client PORT PATH SIZE CONNECTIONS stall     prints a line when all have stalled, ends with stdin

PORTS and PATHS are separated by commas: each connection takes the next of both.
"""

from __future__ import annotations

import json
import mmap
import select
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.content import MANIFEST_TYPE
from bench.process import BenchFailed

_ROOT: Final = Path(__file__).resolve().parent.parent
_MOST: Final = 16 << 20
#: Receive buffer in bytes of a reader that stalls, and what it reads before.
_LITTLE: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Download:
    """Seconds from the first request to the last byte, and of each connection to the first byte of its first body."""

    seconds: float
    first: tuple[float, ...]


def download(port: int, path: str, size: int, connections: int, repeat: int = 1) -> Download:
    """Every connection gets `path` `repeat` times, one after the other. Raises `BenchFailed`."""
    return download_all([port], [path], size, connections, repeat)


def download_all(ports: Sequence[int], paths: Sequence[str], size: int, connections: int, repeat: int = 1) -> Download:
    """Likewise, each connection from the next of these ports, and the next of these paths, all of the same size."""
    return _downloaded(",".join(map(str, ports)), ",".join(paths), size, connections, str(repeat))


def download_encrypted(port: int, path: str, size: int, connections: int) -> Download:
    """Every connection gets `path` once over TLS 1.3; the handshakes are over before the first request."""
    return _downloaded(str(port), path, size, connections, "tls")


def _downloaded(ports: str, paths: str, size: int, connections: int, mode: str) -> Download:
    argv = _argv(ports, paths, size, connections, mode)
    done = subprocess.run(argv, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchFailed(f"download of {paths} from ports {ports}: {done.stderr[-1000:]}")
    answer = json.loads(done.stdout)
    return Download(answer["seconds"], tuple(answer["first"]))


class Stalled:
    """Readers that asked for a blob, read a little and stopped; they hang up at the end of the `with` block."""

    def __init__(self, port: int, path: str, size: int, connections: int) -> None:
        argv = _argv(str(port), path, size, connections, "stall")
        self._process = subprocess.Popen(argv, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> None:
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            self.__exit__()
            raise BenchFailed("readers that should stall did not get their first bytes")

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def request(path: str, method: str = "GET") -> bytes:
    """A request as clients of registries make it."""
    return f"{method} {path} HTTP/1.1\r\nHost: bench\r\nAccept: {MANIFEST_TYPE}, */*\r\n\r\n".encode()


def _argv(ports: str, paths: str, size: int, connections: int, mode: str) -> list[str]:
    return [sys.executable, "-m", "bench.client", ports, paths, str(size), str(connections), mode]


class _Transfer:
    """One connection. `step` reads what is there; afterwards `left` says how many answers are still to come."""

    def __init__(self, port: int, path: str, size: int, repeat: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setblocking(False)
        self._request = request(path)
        self._size = size
        self._head = b""
        self._missing = 0
        self.left = repeat
        self.started = 0.0
        self.first = 0.0

    def fileno(self) -> int:
        return self._socket.fileno()

    def ask(self) -> None:
        self._socket.sendall(self._request)
        self.started = self.started or time.perf_counter()

    def step(self, nothing: mmap.mmap) -> None:
        if self._missing:
            count = self._socket.recv_into(nothing, min(self._missing, _MOST), socket.MSG_TRUNC)
        else:
            data = self._socket.recv(8192)
            count = len(data)
            self._head += data
            head, end, body = self._head.partition(b"\r\n\r\n")
            if count and not end:
                return
            if count:
                _judge(head, self._size)
                self._head = b""
                self._missing = self._size
                count = len(body)
                if count > self._missing:
                    raise BenchFailed("more bytes than the body has")
                if not count:
                    return
        if not count:
            raise BenchFailed(f"connection ended with {self._missing} bytes missing")
        self.first = self.first or time.perf_counter()
        self._missing -= count
        if not self._missing:
            self.left -= 1
            if self.left:
                self.ask()


#: The header of a record: a byte for its type, two for the version, two for the length (RFC 8446, 5.1).
_RECORD: Final = 5
_APPLICATION_DATA: Final = 23
#: What a record of TLS 1.3 has besides its content: a byte for the type, and the tag of AES-GCM (RFC 8446, 5.2).
_AROUND: Final = 17
#: Records that one step may throw away.
_TURN: Final = 64


def encrypted() -> ssl.SSLContext:
    """The context of a client that trusts everybody: the bench has started the server itself."""
    context = ssl._create_unverified_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


class _EncryptedTransfer:
    """One connection over TLS, for one answer. Records are decrypted up to the end of its head."""

    def __init__(self, port: int, path: str, size: int, context: ssl.SSLContext) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out)
        self._handshake()
        self._socket.setblocking(False)
        self._request = request(path)
        self._size = size
        self._head = b""
        #: Of the record that comes: the header as far as it is here, and how many bytes are missing after it.
        self._header = b""
        self._body = 0
        self._missing = 0
        self.left = 1
        self.started = 0.0
        self.first = 0.0

    def _handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._socket.sendall(self._out.read())
                self._in.write(self._record())
        self._socket.sendall(self._out.read())

    def _record(self) -> bytes:
        """One whole record: no byte of the next one may be in the hands of OpenSSL."""
        header = self._socket.recv(_RECORD, socket.MSG_WAITALL)
        length = int.from_bytes(header[3:], "big")
        return header + self._socket.recv(length, socket.MSG_WAITALL)

    def fileno(self) -> int:
        return self._socket.fileno()

    def ask(self) -> None:
        self._tls.write(self._request)
        self._socket.sendall(self._out.read())
        self.started = time.perf_counter()

    def step(self, nothing: mmap.mmap) -> None:
        try:
            for _ in range(_TURN):
                self._next(nothing)
                if not self.left:
                    return
        except BlockingIOError:
            return

    def _next(self, nothing: mmap.mmap) -> None:
        """Reads on in the record that comes. Raises `BlockingIOError` where nothing has come."""
        if not self._body:
            self._header += self._read(_RECORD - len(self._header))
            if len(self._header) < _RECORD:
                return
            self._body = int.from_bytes(self._header[3:], "big")
            if self._header[0] != _APPLICATION_DATA:
                raise BenchFailed(f"a record of type {self._header[0]} with {self._missing} bytes missing")
            if not self._missing:
                self._in.write(self._header)
        if self._missing:
            count = self._socket.recv_into(nothing, self._body, socket.MSG_TRUNC)
            if not count:
                raise BenchFailed(f"connection ended with {self._missing} bytes missing")
        else:
            data = self._read(self._body)
            count = len(data)
            self._in.write(data)
        self._body -= count
        if self._body:
            return
        length, self._header = int.from_bytes(self._header[3:], "big"), b""
        if self._missing:
            self._count(length - _AROUND)
        else:
            self._decrypt()

    def _read(self, count: int) -> bytes:
        data = self._socket.recv(count)
        if not data:
            raise BenchFailed("connection ended before the answer")
        return data

    def _decrypt(self) -> None:
        try:
            self._head += self._tls.read(_MOST)
        except ssl.SSLWantReadError:
            # a session ticket
            return
        head, end, body = self._head.partition(b"\r\n\r\n")
        if not end:
            return
        _judge(head, self._size)
        self._missing = self._size
        if body:
            self._count(len(body))

    def _count(self, count: int) -> None:
        self.first = self.first or time.perf_counter()
        self._missing -= count
        if self._missing < 0:
            raise BenchFailed("more bytes than the body has")
        if not self._missing:
            self.left = 0


def _judge(head: bytes, size: int) -> None:
    status, *fields = head.decode("latin-1").split("\r\n")
    lengths = [field.partition(":")[2].strip() for field in fields if field.lower().startswith("content-length:")]
    if status.split()[1] != "200" or lengths != [str(size)]:
        raise BenchFailed(f"not the answer expected: {head!r}")


def _run(ports: Sequence[int], paths: Sequence[str], size: int, connections: int, repeat: int) -> Download:
    return _run_all(
        [
            _Transfer(ports[number % len(ports)], paths[number % len(paths)], size, repeat)
            for number in range(connections)
        ]
    )


def _run_all(transfers: Sequence[_Transfer] | Sequence[_EncryptedTransfer]) -> Download:
    nothing = mmap.mmap(-1, _MOST)
    poll = select.epoll()
    by_fd = {transfer.fileno(): transfer for transfer in transfers}
    for fd in by_fd:
        poll.register(fd, select.EPOLLIN)
    begun = time.perf_counter()
    for transfer in transfers:
        transfer.ask()
    while by_fd:
        for fd, _ in poll.poll():
            transfer = by_fd[fd]
            transfer.step(nothing)
            if not transfer.left:
                poll.unregister(fd)
                del by_fd[fd]
    ended = time.perf_counter()
    return Download(ended - begun, tuple(transfer.first - transfer.started for transfer in transfers))


def _stall(port: int, path: str, connections: int) -> None:
    readers = []
    for _ in range(connections):
        reader = socket.socket()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LITTLE)
        reader.connect(("127.0.0.1", port))
        reader.sendall(request(path))
        readers.append(reader)
    for reader in readers:
        if len(reader.recv(_LITTLE, socket.MSG_WAITALL)) < _LITTLE:
            raise BenchFailed("connection ended early")
    print("stalled", flush=True)
    sys.stdin.read()


def _main() -> None:
    ports, paths, size, connections, mode = sys.argv[1:]
    if mode == "stall":
        _stall(int(ports), paths, int(connections))
        return
    if mode == "tls":
        context = encrypted()
        done = _run_all([_EncryptedTransfer(int(ports), paths, int(size), context) for _ in range(int(connections))])
    else:
        done = _run([int(port) for port in ports.split(",")], paths.split(","), int(size), int(connections), int(mode))
    print(json.dumps({"seconds": done.seconds, "first": done.first}))


if __name__ == "__main__":
    _main()

"""The client that downloads, as a process of its own and the same for every system.

It lets the kernel throw the bytes of bodies away (recv with MSG_TRUNC, tcp(7)), so that it takes next to nothing of
the machine from the server beside it. Lengths are checked, contents are not: `check.py` does that, outside of
every measurement.

    python -m bench.client PORTS PATHS SIZE CONNECTIONS REPEAT  prints a `Download` as JSON
    python -m bench.client PORT PATH SIZE CONNECTIONS stall     prints a line when all have stalled, ends with stdin

PORTS and PATHS are separated by commas: each connection takes the next of both.
"""

from __future__ import annotations

import json
import mmap
import select
import socket
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
    argv = _argv(",".join(map(str, ports)), ",".join(paths), size, connections, str(repeat))
    done = subprocess.run(argv, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchFailed(f"download of {paths[0]} from ports {ports}: {done.stderr[-1000:]}")
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


def _judge(head: bytes, size: int) -> None:
    status, *fields = head.decode("latin-1").split("\r\n")
    lengths = [field.partition(":")[2].strip() for field in fields if field.lower().startswith("content-length:")]
    if status.split()[1] != "200" or lengths != [str(size)]:
        raise BenchFailed(f"not the answer expected: {head!r}")


def _run(ports: Sequence[int], paths: Sequence[str], size: int, connections: int, repeat: int) -> Download:
    transfers = [
        _Transfer(ports[number % len(ports)], paths[number % len(paths)], size, repeat) for number in range(connections)
    ]
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
    done = _run([int(port) for port in ports.split(",")], paths.split(","), int(size), int(connections), int(mode))
    print(json.dumps({"seconds": done.seconds, "first": done.first}))


if __name__ == "__main__":
    _main()

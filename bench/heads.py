"""The client that asks for headers only, as a process of its own: wrk waits for bodies that HEAD does not have.

One connection has one request under way, as with wrk. Two such processes are about as quick as wrk's two threads.

    python -m bench.heads PORT PATH SIZE CONNECTIONS SECONDS [tls]    prints requests and seconds as JSON
"""

from __future__ import annotations

import json
import select
import socket
import ssl
import sys
import time

from bench.client import encrypted, request
from bench.process import BenchFailed

_READ = 8192


def _run(port: int, path: str, size: int, connections: int, seconds: float, tls: bool) -> tuple[int, float]:
    wanted = f"content-length: {size}\r\n".encode()
    ask = request(path, "HEAD")
    poll = select.epoll()
    sockets: dict[int, socket.socket] = {}
    for _ in range(connections):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            connection = encrypted().wrap_socket(connection)
            # what a server sends after the handshake must not block
            connection.setblocking(False)
        sockets[connection.fileno()] = connection
        poll.register(connection.fileno(), select.EPOLLIN)
    count = 0
    begun = time.perf_counter()
    for connection in sockets.values():
        connection.send(ask)
    while (now := time.perf_counter()) < begun + seconds:
        for fd, _ in poll.poll(1.0):
            connection = sockets[fd]
            # every server here writes its headers with one call; one that does not would be found out
            try:
                answer = connection.recv(_READ)
            except ssl.SSLWantReadError:
                continue
            if not answer.startswith(b"HTTP/1.1 200 ") or not answer.endswith(b"\r\n\r\n"):
                raise BenchFailed(f"not the answer expected: {answer!r}")
            if not count and wanted not in answer.lower():
                raise BenchFailed(f"not the length expected: {answer!r}")
            count += 1
            connection.send(ask)
    return count, now - begun


def _main() -> None:
    port, path, size, connections, seconds, *tls = sys.argv[1:]
    count, took = _run(int(port), path, int(size), int(connections), float(seconds), tls == ["tls"])
    print(json.dumps({"requests": count, "seconds": took}))


if __name__ == "__main__":
    _main()

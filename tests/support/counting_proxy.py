"""A TCP proxy before one server that counts what clients send, and can break their connections in the middle of it.

    with CountingProxy(mirror.port) as proxy:
        ... push to proxy.address ...
        proxy.sent                    # bytes of all requests so far, heads included
        proxy.break_after(100_000)    # so many bytes of requests later, connections break; until heal()

It copies bytes and looks at nothing. A broken connection is reset, as a network or a client that dies leaves it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

from tests.support.relay import Relay, pipe

#: Close by a reset, without waiting for the other side (socket(7), SO_LINGER).
_RESET = struct.pack("ii", 1, 0)


class CountingProxy(Relay):
    """Listens on a port of its own; `port` is the server's, on the loopback address."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._server = port
        self._left: int | None = None
        self._once = False
        self.sent = 0

    @property
    def address(self) -> str:
        """`127.0.0.1:port`."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Root URL, without a slash at its end."""
        return f"http://{self.address}"

    def break_after(self, count: int, *, once: bool = False) -> None:
        """Once clients have sent `count` more bytes, the connection that sends the next one breaks, and so does every
        later one; with `once` only this one does.
        """
        with self._lock:
            self._left = count
            self._once = once

    def heal(self) -> None:
        """Connections are let through again."""
        with self._lock:
            self._left = None

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._server)) as server:
            with self._lock:
                self._open |= {client, server}
            try:
                answers = threading.Thread(target=pipe, args=(server, client), daemon=True)
                answers.start()
                self._forward(client, server)
                answers.join()
            finally:
                with self._lock:
                    self._open -= {client, server}

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        """What the client sends, up to where its connection has to break."""
        while piece := client.recv(1 << 16):
            with self._lock:
                allowed = len(piece) if self._left is None else min(len(piece), self._left)
                self.sent += allowed
                if self._left is not None:
                    self._left -= allowed
                    if allowed < len(piece) and self._once:
                        self._left = None
            server.sendall(piece[:allowed])
            if allowed < len(piece):
                for one in (client, server):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    one.shutdown(socket.SHUT_RDWR)
                return
        server.shutdown(socket.SHUT_WR)

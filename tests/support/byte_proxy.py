"""A TCP proxy before one server that copies bytes, and lets none pass while it is cut or hung.

with ByteProxy("/run/redis.sock") as proxy:          # or ("127.0.0.1", 6379)
    ... connect to 127.0.0.1:proxy.port ...
    proxy.cut()       # connections break, and new ones do at once
    proxy.hang()      # connections stay, and nothing passes in either direction
    proxy.heal()
"""

from __future__ import annotations

import contextlib
import socket
import threading

from tests.support.relay import Relay


class ByteProxy(Relay):
    """`server` is the address of a socket: a path, or a host and a port."""

    def __init__(self, server: str | tuple[str, int]) -> None:
        super().__init__()
        self._server = server
        self._refuses = False
        self._passing = threading.Event()
        self._passing.set()

    @property
    def address(self) -> str:
        """`127.0.0.1:port`."""
        return f"127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Every connection breaks, also those that begin from now on."""
        self._refuses = True
        with self._lock:
            broken = list(self._open)
        for one in broken:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def hang(self) -> None:
        """No byte passes from now on."""
        self._passing.clear()

    def heal(self) -> None:
        """What was sent while it hung passes now."""
        self._refuses = False
        self._passing.set()

    def __exit__(self, *error: object) -> None:
        self._passing.set()
        super().__exit__(None, None, None)

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), self._connected() as server:
            with self._lock:
                self._open |= {client, server}
            try:
                # after it is among the open ones: a cut that comes later ends it
                if self._refuses:
                    return
                answers = threading.Thread(target=self._pipe, args=(server, client), daemon=True)
                answers.start()
                self._pipe(client, server)
                answers.join()
            finally:
                with self._lock:
                    self._open -= {client, server}

    def _connected(self) -> socket.socket:
        server = socket.socket(socket.AF_UNIX if isinstance(self._server, str) else socket.AF_INET)
        try:
            server.connect(self._server)
        except OSError:
            server.close()
            raise
        return server

    def _pipe(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                self._passing.wait()
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)

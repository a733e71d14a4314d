"""An HTTP proxy as companies have them: CONNECT tunnels, and whole URLs for plain http. One thread per direction.

    with HttpProxy(users={"me": "secret"}) as proxy:
        ... go through proxy.url ...
        assert proxy.requests[0].startswith("CONNECT registry.test:443")

`hosts` has the addresses of names that do not exist: only the proxy can resolve them.
"""

from __future__ import annotations

import base64
import contextlib
import socket
from collections.abc import Mapping
from http.client import HTTPResponse
from urllib.parse import urlsplit

from tests.support.relay import Relay, pipe


class HttpProxy(Relay):
    """`users` are those who may use it (none: everybody); `hosts` maps `name:port` to an address."""

    def __init__(
        self, users: Mapping[str, str] | None = None, hosts: Mapping[str, tuple[str, int]] | None = None
    ) -> None:
        super().__init__()
        self.users = dict(users or {})
        self.hosts = dict(hosts or {})
        #: First lines of requests, with their headers.
        self.requests: list[str] = []
        self.refuse = False

    @property
    def url(self) -> str:
        """`http://127.0.0.1:port`."""
        return f"http://127.0.0.1:{self.port}"

    def _serve(self, client: socket.socket) -> None:
        self._open.add(client)
        with client, contextlib.suppress(OSError):
            while (text := _read_head(client)) and self._handle(client, text):
                pass

    def _handle(self, client: socket.socket, text: str) -> bool:
        self.requests.append(text)
        if self.refuse or not self._may(text):
            client.sendall(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return False
        method, target, _ = text.split(" ", 2)
        if method == "CONNECT":
            host, _, port = target.rpartition(":")
            with self._dial(host.strip("[]"), int(port)) as other:
                client.sendall(b"HTTP/1.1 200 Connection established\r\nX-Proxy: here\r\n\r\n")
                self._open.add(other)
                self._spawn(pipe, client, other)
                pipe(other, client)
                for one in (client, other):  # wakes the thread of the other direction
                    with contextlib.suppress(OSError):
                        one.shutdown(socket.SHUT_RDWR)
            return False
        parts = urlsplit(target)
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        lines = [line for line in text.split("\r\n")[1:-2] if not line.lower().startswith("proxy-")]
        length = next((int(line.partition(":")[2]) for line in lines if line.lower().startswith("content-length:")), 0)
        body = client.recv(length, socket.MSG_WAITALL) if length else b""
        with self._dial(parts.hostname or "", parts.port or 80) as other:
            other.sendall("\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode("latin-1") + body)
            with HTTPResponse(other, method=method) as answer:
                answer.begin()
                fields = [f"{name}: {value}" for name, value in answer.getheaders()]
                start = "\r\n".join([f"HTTP/1.1 {answer.status} {answer.reason}", *fields, "", ""])
                client.sendall(start.encode("latin-1") + answer.read())
        return True

    def _may(self, text: str) -> bool:
        if not self.users:
            return True
        for line in text.split("\r\n"):
            if line.lower().startswith("proxy-authorization: basic "):
                user, _, password = base64.b64decode(line.split(" ")[2]).decode().partition(":")
                return self.users.get(user) == password
        return False

    def _dial(self, host: str, port: int) -> socket.socket:
        return socket.create_connection(self.hosts.get(f"{host}:{port}", (host, port)))


def _read_head(client: socket.socket) -> str:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = client.recv(1)
        if not piece:
            return ""
        head += piece
    return head.decode("latin-1")

"""A registry with one image, whose one layer stops at a gate: what happens in mid-blob can then be arranged.

    GET of the layer ── bytes up to the gate ──> waits ── open_gate() ──> the rest

Raw sockets and a thread for each connection, so that nothing but the gate decides when bytes leave.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from tests.support.images import sha256
from tests.support.process import PATIENCE

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_STEP = 256 * 1024


@dataclass(frozen=True, slots=True)
class BlobRequest:
    """A request for the layer. `start` is the offset of its Range, None for the whole."""

    method: str
    start: int | None


class GatedRegistry:
    """Serves `repository:v1` from memory; the layer's bytes from offset `gate` on wait for `open_gate`."""

    repository = "library/gated"

    def __init__(self, layer: bytes, *, gate: int) -> None:
        self.layer, self.gate = layer, gate
        self.digest = sha256(layer)
        config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}})
        self._config = config.encode()
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": _MANIFEST,
                "config": {
                    "mediaType": "application/vnd.oci.image.config.v1+json",
                    "digest": sha256(self._config),
                    "size": len(self._config),
                },
                "layers": [
                    {
                        "mediaType": "application/vnd.oci.image.layer.v1.tar",
                        "digest": self.digest,
                        "size": len(layer),
                    }
                ],
            }
        ).encode()
        self._changed = threading.Condition()
        self._open = False
        self._closed = False
        self._at_gate = 0
        self._blob_requests: list[BlobRequest] = []
        self._connections: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, name="gated-accept", daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        """Root URL, without a slash at its end."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def blob_requests(self) -> list[BlobRequest]:
        """Requests for the layer so far."""
        with self._changed:
            return list(self._blob_requests)

    def wait_at_gate(self, count: int = 1) -> None:
        """Returns once this many answers have reached the gate. Raises AssertionError if they never do."""
        self._wait(lambda: self._at_gate >= count, f"{count} answers at the gate")

    def wait_for_requests(self, count: int) -> None:
        """Returns once the layer has been asked for this often. Raises AssertionError if it never is."""
        self._wait(lambda: len(self._blob_requests) >= count, f"{count} requests for the layer")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE), f"not within {PATIENCE:g} s: {what}"

    def open_gate(self) -> None:
        """Let every answer go on, later ones too."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    # ----------------------------------------------------------------------------------------- connections

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._converse, args=(connection,), name="gated", daemon=True)
            with self._changed:
                self._connections.add(connection)
                self._threads.append(thread)
            thread.start()

    def _converse(self, connection: socket.socket) -> None:
        waiting = b""
        try:
            while True:
                while b"\r\n\r\n" not in waiting:
                    received = connection.recv(65536)
                    if not received:
                        return
                    waiting += received
                head, _, waiting = waiting.partition(b"\r\n\r\n")
                self._answer(connection, head.decode("latin-1"))
        except OSError:
            pass  # the other side has gone, as killed mirrors do
        finally:
            with self._changed:
                self._connections.discard(connection)
            connection.close()

    def _answer(self, connection: socket.socket, head: str) -> None:
        method, target, _ = head.split("\r\n")[0].split()
        path = target.partition("?")[0]
        base = f"/v2/{self.repository}/"
        if path == "/v2/":
            self._send(connection, method, "200 OK", b"{}")
        elif path in (f"{base}manifests/v1", f"{base}manifests/{sha256(self.manifest)}"):
            header = f"Docker-Content-Digest: {sha256(self.manifest)}"
            self._send(connection, method, "200 OK", self.manifest, _MANIFEST, header)
        elif path == f"{base}blobs/{sha256(self._config)}":
            self._send(connection, method, "200 OK", self._config)
        elif path == f"{base}blobs/{self.digest}":
            self._send_layer(connection, method, head)
        else:
            self._send(connection, method, "404 Not Found", b'{"errors":[{"code":"NAME_UNKNOWN","message":"no"}]}')

    @staticmethod
    def _send(
        connection: socket.socket,
        method: str,
        status: str,
        body: bytes,
        media_type: str = "application/json",
        *more: str,
    ) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", f"Content-Type: {media_type}", *more]
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + (b"" if method == "HEAD" else body))

    def _send_layer(self, connection: socket.socket, method: str, head: str) -> None:
        asked = re.search(r"^range: *bytes=(\d+)-\s*$", head, re.IGNORECASE | re.MULTILINE)
        start = int(asked[1]) if asked else 0
        with self._changed:
            self._blob_requests.append(BlobRequest(method, start if asked else None))
            self._changed.notify_all()
        lines = [
            "HTTP/1.1 206 Partial Content" if asked else "HTTP/1.1 200 OK",
            f"Content-Length: {len(self.layer) - start}",
            "Content-Type: application/octet-stream",
            "Accept-Ranges: bytes",
            f"Docker-Content-Digest: {self.digest}",
        ]
        if asked:
            lines.append(f"Content-Range: bytes {start}-{len(self.layer) - 1}/{len(self.layer)}")
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        if method == "HEAD":
            return
        content, offset = memoryview(self.layer), start
        while offset < len(content):
            limit = len(content) if self._may_pass(offset) else self.gate
            step = content[offset : min(offset + _STEP, limit)]
            connection.sendall(step)
            offset += len(step)

    def _may_pass(self, offset: int) -> bool:
        """Blocks at the gate until it is opened; before the gate, returns that only the bytes up to it may be sent."""
        with self._changed:
            if offset >= self.gate and not self._open:
                self._at_gate += 1
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._open or self._closed)
                if self._closed:
                    raise OSError("closed")
            return self._open

    def close(self) -> None:
        """Repeatable."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
            connections, threads = list(self._connections), list(self._threads)
        # unlike close, this wakes the thread that waits in accept
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it has gone by itself
        for thread in threads:
            thread.join(PATIENCE)

    def __enter__(self) -> GatedRegistry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

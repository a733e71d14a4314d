"""A proxy before the registry, which does to answers what networks and registries do to them.

    request ──┬─ "down" ─> RST
              ├─ "503", "429" ─> that answer
              └─> registry ─> body ──┬─ as it is, at a rate of its own
                                     ├─ "cut", "reset", "stall" somewhere in it
                                     ├─ "wrong-bytes": one bit somewhere in it
                                     └─ "slow"
    "no-range": the registry is not told of the Range, so all of the blob comes with 200

The registry is spoken to in HTTP/1.0, so that an answer ends with its connection.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

_PIECE: Final = 128 << 10
#: Bytes a second of one answer; the slow ones let clients meet blobs that grow.
_RATES: Final = (2 << 20, 8 << 20, 32 << 20, 256 << 20)
_SLOW: Final = 192 << 10
_IN_BODY: Final = ("cut", "reset", "stall", "wrong-bytes", "slow")


@dataclass(slots=True)
class _Phase:
    until: float
    share: float


class Faulty:
    """`stall` is for how many seconds a stalled answer is silent before it is cut. Counts what it did."""

    def __init__(self, registry: int, seed: int, *, stall: float) -> None:
        self._registry = registry
        self._draw = random.Random(f"faulty {seed}")
        self._stall = stall
        self._phases: dict[str, _Phase] = {}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        #: Faults that hit a request, by kind.
        self.injected: Counter[str] = Counter()
        #: Requests for blobs that were passed on, and bytes of their bodies.
        self.blob_requests = 0
        self.blob_bytes = 0

    async def start(self) -> None:
        """Begin to accept."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=512, limit=1 << 18)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Repeatable."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def begin(self, kind: str, seconds: float, share: float) -> None:
        """From now on for `seconds`, a `share` of the requests that it can concern meets this fault."""
        self._phases[kind] = _Phase(time.monotonic() + seconds, share)

    def be_fair(self) -> None:
        """No faults any more."""
        self._phases.clear()

    def _hits(self, *kinds: str) -> str | None:
        """Which of these faults, if any, this request meets."""
        now = time.monotonic()
        for kind in kinds:
            phase = self._phases.get(kind)
            if phase is not None and now < phase.until and self._draw.random() < phase.share:
                return kind
        return None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                while await self._answer(reader, writer):
                    pass
        except asyncio.CancelledError:
            pass  # the proxy is stopping
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; whether the connection may take another."""
        first, fields = _parsed(await reader.readuntil(b"\r\n\r\n"))
        method, target, _ = first.split(" ", 2)
        is_blob = method == "GET" and "/blobs/" in target
        fault = self._hits("down", "503", "429") or (None if is_blob else self._hits("reset"))
        if fault is not None:
            self.injected[fault] += 1
        if fault in ("down", "reset"):
            _reset(writer)
            return False
        if fault is not None:
            after = f"Retry-After: {self._draw.randint(1, 3)}\r\n" if fault == "429" else ""
            writer.write(f"HTTP/1.1 {fault} Fault\r\n{after}Content-Length: 0\r\n\r\n".encode())
            await writer.drain()
            return True
        if is_blob and any(name == "range" for name, _ in fields) and self._hits("no-range"):
            self.injected["no-range"] += 1
            fields = [(name, value) for name, value in fields if name != "range"]
        return await self._pass_on(method, target, fields, writer, is_blob=is_blob)

    async def _pass_on(
        self, method: str, target: str, fields: list[tuple[str, str]], writer: asyncio.StreamWriter, *, is_blob: bool
    ) -> bool:
        source, sink = await asyncio.open_connection("127.0.0.1", self._registry, limit=_PIECE)
        try:
            lines = [f"{name}: {value}" for name, value in fields if name != "connection"]
            sink.write("\r\n".join([f"{method} {target} HTTP/1.0", *lines, "", ""]).encode("latin-1"))
            first, fields = _parsed(await source.readuntil(b"\r\n\r\n"))
            status = first.split(" ", 1)[1]
            kept = [(name, value) for name, value in fields if name not in ("connection", "content-length")]
            length = next((int(value) for name, value in fields if name == "content-length"), None)
            whole = b""
            if length is None and method != "HEAD":
                whole = await source.read(-1)
                length = len(whole)
            kept += [("content-length", str(length))] if length is not None else []
            lines = [f"{name}: {value}" for name, value in kept]
            writer.write("\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode("latin-1"))
            if method == "HEAD" or not length:
                await writer.drain()
                return True
            if whole:
                writer.write(whole)
                await writer.drain()
                return True
            self.blob_requests += is_blob
            return await self._body(source, writer, length, is_blob=is_blob)
        finally:
            sink.close()

    async def _body(
        self, source: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int, *, is_blob: bool
    ) -> bool:
        fault = self._hits(*_IN_BODY) if is_blob else None
        if fault is not None:
            self.injected[fault] += 1
        rate = _SLOW if fault == "slow" else self._draw.choice(_RATES)
        where = self._draw.randrange(length)
        sent = 0
        while sent < length:
            piece = await source.read(min(_PIECE, length - sent))
            if not piece:
                return False
            if fault is not None and fault != "slow" and sent <= where < sent + len(piece):
                if fault == "wrong-bytes":
                    changed = bytearray(piece)
                    changed[where - sent] ^= 1 << self._draw.randrange(8)
                    piece = bytes(changed)
                else:
                    piece = piece[: where - sent]
            writer.write(piece)
            await writer.drain()
            sent += len(piece)
            self.blob_bytes += len(piece) if is_blob else 0
            if fault in ("cut", "reset", "stall") and sent == where:
                if fault == "stall":
                    await asyncio.sleep(self._stall)
                if fault == "reset":
                    _reset(writer)
                return False
            if is_blob:
                await asyncio.sleep(len(piece) / rate)
        return True


def _parsed(head: bytes) -> tuple[str, list[tuple[str, str]]]:
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return first, [(name.lower(), value.strip()) for name, _, value in pairs]


def _reset(writer: asyncio.StreamWriter) -> None:
    """End with RST."""
    end = writer.get_extra_info("socket")
    if end is not None:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()

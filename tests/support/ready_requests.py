"""Requests sent as bytes, and which of their answers came from the table of ready answers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mirror.server.fast.given_answers import Given
from tests.support.live_mirror import PATIENCE, LiveMirror

#: What differs in equal answers: the time, and the numbers of requests that failed.
_VARYING = ((rb"\r\nDate: [^\r]{29}\r\n", b"\r\nDate: *\r\n"), (rb"\b[0-9a-f]+-[0-9a-f]{9,}\b", b"*"))


def request(target: str, method: str = "GET", *headers: str) -> bytes:
    """The bytes of a request as a client sends it."""
    lines = [f"{method} {target} HTTP/1.1", "Host: mirror", "User-Agent: test", "Accept: */*", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


#: After it the mirror closes the connection.
LAST = b"GET /v2/ HTTP/1.1\r\nHost: mirror\r\nConnection: close\r\n\r\n"


def without_what_varies(received: bytes) -> bytes:
    """The bytes of answers, to be compared."""
    for pattern, instead in _VARYING:
        received = re.sub(pattern, instead, received)
    return received


class Watch:
    """Counts the answers from the table while it is watched."""

    def __init__(self) -> None:
        self.given = 0

    def reset(self) -> int:
        """How many there were since the last call."""
        given, self.given = self.given, 0
        return given


@contextmanager
def watching(mirror: LiveMirror) -> Iterator[Watch]:
    """Counts the answers that come from the table of this mirror."""
    watch, ready = Watch(), mirror.app.front.ready
    before = ready._note

    def note(given: Sequence[Given]) -> None:
        watch.given += len(given)
        before(given)

    ready._note = note
    try:
        yield watch
    finally:
        ready._note = before


class Line:
    """One connection, on which one request follows the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, port: int) -> Line:
        """Connects."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, asked: bytes, *, head: bool = False) -> bytes:
        """The answer to one request, head and body; an answer to HEAD has none."""
        self.writer.write(asked)
        async with asyncio.timeout(PATIENCE):
            received = await self.reader.readuntil(b"\r\n\r\n")
            size = re.search(rb"(?i)\r\ncontent-length: (\d+)", received)
            if head or asked.startswith(b"HEAD ") or size is None:
                return received
            return received + await self.reader.readexactly(int(size[1]))

    async def close(self) -> None:
        """Repeatable."""
        self.writer.close()

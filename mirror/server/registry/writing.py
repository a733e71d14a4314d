"""How an answer in memory is sent: piece by piece, each once the socket has taken the one before.

    answer ── piece ──> taken ── next piece … ──> done
                └── not taken ──┬── within `client_stall_timeout` ──> taken
                                ├── not within `client_stall_timeout` ──> connection dropped ("stalled")
                                └── too many bytes wait in this process ──> the longest waiting one dropped ("memory")

A client that reads nothing costs only the bytes that its transport copies: the first piece, which leaves together with
the head, or with TLS two pieces, however large the answer is and however many requests are queued behind it. Without
TLS, later pieces are larger: the event loop (uvloop) keeps a view, not a copy, of the bytes that the socket does not
take. The body itself stays in memory. All clients share one body of a manifest, but lists and metrics are made for each
client, so the size of all waiting bodies together is limited.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, Final, Protocol, cast

from aiohttp.http import StreamWriter

#: Bytes of a copied piece: what a TLS record carries (RFC 8446, 5.1), less what is written with the first one.
PIECE: Final = 15 << 10
#: Bytes of a piece that is not copied (without TLS).
_VIEW: Final = 128 << 10
#: Bytes after which other clients get their turn, even if this one takes everything at once.
_TURN: Final = 512 << 10
#: Most bytes of waiting bodies, over all connections of one listener.
_MOST: Final = 64 << 20


class Waiting(Protocol):
    """A connection whose client has not yet taken all of an answer."""

    def drop(self, reason: str) -> None:
        """End the connection at once."""


class Unsent:
    """The bodies that wait for slow clients, ordered by how long they have waited. One per server."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._bodies: dict[Waiting, bytes] = {}
        #: Counted by identity: a body that several connections share counts once.
        self._shared: Counter[int] = Counter()
        self.size = 0

    def __repr__(self) -> str:
        return f"<Unsent {len(self._bodies)} bodies, {self.size} of {self._most} bytes>"

    def wait(self, connection: Waiting, body: bytes) -> None:
        """The client has taken a part of the body but not the next one. Drops the longest waiting connections if all
        bodies together are too large.
        """
        if self._bodies.pop(connection, None) is None:
            self._shared[id(body)] += 1
            if self._shared[id(body)] == 1:
                self.size += len(body)
        self._bodies[connection] = body
        while self.size > self._most and (longest := next(iter(self._bodies))) is not connection:
            self.leave(longest)
            longest.drop("memory")

    def leave(self, connection: Waiting) -> None:
        """The connection waits no longer."""
        body = self._bodies.pop(connection, None)
        if body is None:
            return
        self._shared[id(body)] -= 1
        if not self._shared[id(body)]:
            del self._shared[id(body)]
            self.size -= len(body)


class PieceWriter(StreamWriter):
    """aiohttp's writer of one answer, for bodies of any size."""

    def __init__(self, protocol: Any, loop: asyncio.AbstractEventLoop, unsent: Unsent) -> None:
        super().__init__(protocol, loop)
        self._unsent = unsent

    async def write_eof(self, chunk: bytes = b"") -> None:
        """Write the body and end the answer. Raises `ConnectionError` if the client leaves, or takes nothing for too
        long.
        """
        if len(chunk) > PIECE:
            await self._write_pieces(chunk)
            chunk = b""
        await super().write_eof(chunk)

    async def _write_pieces(self, body: bytes) -> None:
        view = memoryview(body)
        connection = cast(Any, self.protocol)
        later = PIECE if connection.ssl_context is not None else _VIEW
        start, stop, turn = 0, PIECE, _TURN
        try:
            while start < len(view):
                await self.write(view[start:stop], drain=False)
                start, stop = stop, stop + later
                if connection.writing_paused:
                    self._unsent.wait(connection, body)
                    await self.drain()
                elif start > turn:
                    turn += _TURN
                    await asyncio.sleep(0)
        finally:
            self._unsent.leave(connection)

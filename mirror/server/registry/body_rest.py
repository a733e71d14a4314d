"""The rest of a request's body, in place of a parser that does not know how much of the body was read past it.

    lent socket ── given back ──> RestOfBody ── its bytes have come ──> a new parser, for the next request

The parser of aiohttp counts a body's bytes by itself. While the socket is lent (receiving.py), it sees none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aiohttp.streams import StreamReader


class RestOfBody:
    """Takes the next `rest` bytes of a connection as body. `done` gets the first bytes after it: it makes the parser
    that the connection uses from then on, and returns what that parser returns.
    """

    def __init__(
        self,
        body: StreamReader,
        rest: int,
        done: Callable[[bytes], tuple[Sequence[tuple[Any, StreamReader]], bool, bytes]],
    ) -> None:
        self._body = body
        self._rest = rest
        self._done = done

    def __repr__(self) -> str:
        return f"<RestOfBody {self._rest} bytes>"

    def feed_data(self, data: bytes) -> tuple[Sequence[tuple[Any, StreamReader]], bool, bytes]:
        """Like the parser's method."""
        count = min(self._rest, len(data))
        self._rest -= count
        if count:
            self._body.feed_data(data[:count])
        if self._rest:
            return (), False, b""
        self._body.feed_eof()
        return self._done(data[count:])

    def message_consumed(self) -> None:
        """No request is parsed before the body is over."""

    def pause_reading(self) -> None:
        """Every byte is given to the body at once, so there is nothing to stop."""

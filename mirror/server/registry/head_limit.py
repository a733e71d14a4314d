"""A limit on the size of a request's head, over all its lines.

aiohttp limits the length of one line and the number of lines. A line must have room for 1,024 ranges; many lines of
that length would be megabytes for every connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import BadHttpMessage, HttpProcessingError, InvalidURLError
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestPayloadError, _ErrInfo

#: Largest head in bytes. podman's 1,024 ranges of a blob of some gigabytes take about 24,000.
MOST_HEAD: Final = 32 << 10

#: Bytes in a header line besides name and value: `: ` and the end of line.
_BETWEEN: Final = 4


class BoundedHeads:
    """Wraps aiohttp's parser of one connection. A request whose head is too large is replaced by a malformed one."""

    __slots__ = ("_begun", "_body", "_measuring", "_parser", "_refused", "message_consumed")

    def __init__(self, parser: Any) -> None:
        self._parser = parser
        #: Called for each request: an attribute of its own is faster than `__getattr__`.
        self.message_consumed = parser.message_consumed
        #: Bytes of a partly received head, without those that arrived together with the end of a body.
        self._begun = 0
        self._body: StreamReader = EMPTY_PAYLOAD
        #: True once so many bytes arrived that a head may be too large; usual requests are not measured.
        self._measuring = False
        self._refused = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)

    def feed_data(self, data: bytes) -> tuple[Sequence[tuple[Any, StreamReader]], bool, bytes]:
        """Like the parser's method. After a head that is too large, nothing more is read."""
        if self._refused:
            return (), False, b""
        if self._begun + len(data) > MOST_HEAD:
            self._measuring = True
        in_body = self._body is not EMPTY_PAYLOAD and not self._body.is_eof()
        try:
            messages, upgraded, tail = self._parser.feed_data(data)
        except HttpProcessingError as error:
            if in_body:
                # aiohttp answers this on the connection; whoever reads the body would wait for ever
                self._body.set_exception(RequestPayloadError(reason_in(error)), error)
            raise
        if messages:
            self._body = messages[-1][1]
            self._begun = 0
            if self._measuring:
                for number, (message, _) in enumerate(messages):
                    # a request that the parser itself refused is no `RawRequestMessage`
                    if isinstance(message, RawRequestMessage) and _size(message) > MOST_HEAD:
                        return self._refuse(messages[:number])
                if self._body.is_eof():
                    behind = len(data) - data.rfind(b"\r\n\r\n") - 4
                    # a chunked body ends with such an empty line; another one lies behind that of its head
                    whole_body = 0 if messages[-1][0].chunked else self._body.total_bytes
                    self._begun = max(0, behind - whole_body)
        elif not in_body:
            self._begun += len(data)
        return self._refuse(messages) if self._begun > MOST_HEAD else (messages, upgraded, tail)

    def _refuse(
        self, before: Sequence[tuple[Any, StreamReader]]
    ) -> tuple[Sequence[tuple[Any, StreamReader]], bool, bytes]:
        self._refused = True
        error = BadHttpMessage(f"the head of the request is larger than {MOST_HEAD:,} bytes")
        return (*before, (_ErrInfo(400, error, error.message), EMPTY_PAYLOAD)), False, b""


def reason_in(error: BaseException | None) -> str:
    """Why aiohttp's parser refused a request, without the bytes of the request that the message shows: they may be a
    password or a token.
    """
    if isinstance(error, InvalidURLError):
        # the message may be the target and nothing else
        return "Invalid target"
    if not isinstance(error, HttpProcessingError):
        return "malformed"
    # `{reason}:\n\n  {bytes}`, `Got more than 8190 bytes when reading: {bytes}`
    return error.message.partition(":")[0].partition("\n")[0][:120] or "malformed"


def _size(message: RawRequestMessage) -> int:
    """The approximate size of a head in bytes."""
    size = len(message.path)
    for name, value in message.raw_headers:
        size += len(name) + len(value) + _BETWEEN
    return size

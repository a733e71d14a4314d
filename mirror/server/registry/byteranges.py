"""Several parts of one blob as one body, `multipart/byteranges` (RFC 9110, 14.6 and 15.3.7.2).

    --boundary                              head of the first part
    Content-Type, Content-Range
    (empty line)
    bytes                                   sent by the kernel, or read in pieces
    (end of line) --boundary …              head of the next part
    bytes
    (end of line) --boundary--              the end

Each range that was asked for is a part, in the order of the request, and none is merged with another: podman counts
them. The length of the body is known before the first byte is sent.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence

from mirror.oci.span import Span

__all__ = ["Byteranges"]


class Byteranges:
    """The parts `spans` of a blob of `size` bytes, and what stands between them."""

    def __init__(self, spans: Sequence[Span], size: int, *, boundary: str | None = None) -> None:
        """`boundary`: letters and digits alone, for some clients read no other; a random one, which no blob contains,
        if none is given.
        """
        self._spans = spans
        self.size = size
        self._boundary = boundary or secrets.token_hex(16)
        self.end = f"\r\n--{self._boundary}--\r\n".encode()
        self.length = sum(len(head) + span.length for head, span in self.parts()) + len(self.end)

    @property
    def headers(self) -> dict[str, str]:
        """Of the whole answer, in the place of those of a blob."""
        return {
            "Content-Type": f"multipart/byteranges; boundary={self._boundary}",
            "Content-Length": str(self.length),
        }

    def parts(self) -> Iterator[tuple[bytes, Span]]:
        """What is sent before each part, and the part."""
        # made while they are sent: a client that stalls holds no copy of them
        start = f"--{self._boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes "
        for number, span in enumerate(self._spans):
            gap = "\r\n" if number else ""
            yield f"{gap}{start}{span.start}-{span.stop - 1}/{self.size}\r\n\r\n".encode(), span

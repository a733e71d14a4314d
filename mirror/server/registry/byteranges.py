"""Several parts of one blob as one body, `multipart/byteranges` (RFC 9110, 14.6 and 15.3.7.2).

    --boundary                              head of the first part
    Content-Type, Content-Range
    (empty line)
    bytes                                   sent by the kernel, or read in pieces
    (end of line) --boundary …              head of the next part
    bytes
    (end of line) --boundary--              the end

Each requested range is a part of its own, in the order of the request, and ranges are never merged: podman counts the
parts. The length of the body is known before the first byte is sent.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence

from mirror.oci.span import Span


class Byteranges:
    """The parts `spans` of a blob of `size` bytes, and the delimiters between them."""

    def __init__(self, spans: Sequence[Span], size: int, *, boundary: str | None = None) -> None:
        """`boundary` consists of letters and digits only, because some clients parse no other. If none is given, it is
        random, so that no blob contains it.
        """
        self._spans = spans
        self.size = size
        self._boundary = boundary or secrets.token_hex(16)
        self.end = f"\r\n--{self._boundary}--\r\n".encode()
        self.length = sum(len(head) + span.length for head, span in self.parts()) + len(self.end)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer that replace those of a whole blob."""
        return {
            "Content-Type": f"multipart/byteranges; boundary={self._boundary}",
            "Content-Length": str(self.length),
        }

    def parts(self) -> Iterator[tuple[bytes, Span]]:
        """The bytes to send before each part, and the part."""
        # generated while the parts are sent, so that a stalled client costs no memory for them
        start = f"--{self._boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes "
        for number, span in enumerate(self._spans):
            gap = "\r\n" if number else ""
            yield f"{gap}{start}{span.start}-{span.stop - 1}/{self.size}\r\n\r\n".encode(), span

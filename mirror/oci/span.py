"""Parts of a blob: the `Range` header as a value (RFC 9110, 14)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from mirror.errors import RangeInvalid

__all__ = ["Span", "parse_content_range", "parse_range"]

_ONE_RANGE: Final = re.compile(r"\s*bytes\s*=\s*(\d*)\s*-\s*(\d*)\s*", re.IGNORECASE | re.ASCII)
_CONTENT_RANGE: Final = re.compile(r"\s*bytes\s+(\d+)-(\d+)/(\d+|\*)\s*", re.IGNORECASE | re.ASCII)
_MOST_DIGITS: Final = 19


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `start` up to, not including, `stop`."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """In bytes."""
        return self.stop - self.start


def parse_range(header: str | None, size: int) -> Span | None:
    """The span that a `Range` header asks for of `size` bytes; None means: send the whole, with 200.

    A header that is no single valid byte range is ignored, as RFC 9110 allows (14.2), and so are several ranges: no
    registry client sends them. Raises `RangeInvalid` where the one range lies outside the bytes.
    """
    if header is None:
        return None
    found = _ONE_RANGE.fullmatch(header)
    if not found:
        return None
    first, last = found.groups()
    if len(first) > _MOST_DIGITS:
        raise RangeInvalid(f"the range starts beyond the {size} bytes there are", size)
    if not first:
        if not last:
            return None
        wanted = size if len(last) > _MOST_DIGITS else min(int(last), size)
        if not wanted:
            raise RangeInvalid("a range of the last 0 bytes cannot be satisfied", size)
        return Span(size - wanted, size)
    start = int(first)
    stop = size if not last or len(last) > _MOST_DIGITS else min(int(last) + 1, size)
    if last and len(last) <= _MOST_DIGITS and int(last) < start:
        return None
    if start >= size:
        raise RangeInvalid(f"the range starts beyond the {size} bytes there are", size)
    return Span(start, stop)


def parse_content_range(header: str | None) -> tuple[Span, int | None] | None:
    """`Content-Range: bytes a-b/size` as span and total size (None for `*`); None where it is missing or invalid."""
    found = _CONTENT_RANGE.fullmatch(header or "")
    if not found or max(map(len, found.groups())) > _MOST_DIGITS:
        return None
    first, last, total = found.groups()
    start, stop = int(first), int(last) + 1
    size = None if total == "*" else int(total)
    if stop <= start or (size is not None and stop > size):
        return None
    return Span(start, stop), size

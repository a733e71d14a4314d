"""Parts of a blob: the `Range` header as a value (RFC 9110, 14)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from mirror.errors import RangeInvalid, TooManyRanges

#: The most ranges in one request: as many as podman asks for in a zstd:chunked layer.
MOST_RANGES: Final = 1024
#: The most bytes that all ranges of one request may have in total, as a multiple of the blob's size. Clients do not ask
#: for a byte twice. A request with overlapping ranges (CVE-2011-3192) could ask for up to 1,024 times the blob.
_MOST_WHOLES: Final = 2

_UNIT: Final = re.compile(r"\s*bytes\s*=", re.IGNORECASE | re.ASCII)
_RANGE: Final = re.compile(r"\s*(\d*)\s*-\s*(\d*)\s*", re.ASCII)
_CONTENT_RANGE: Final = re.compile(r"\s*bytes\s+(\d+)-(\d+)/(\d+|\*)\s*", re.IGNORECASE | re.ASCII)
_MOST_DIGITS: Final = 19


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes from `start` up to, but not including, `stop`."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """The length in bytes."""
        return self.stop - self.start


def parse_ranges(header: str | None, size: int) -> tuple[Span, ...]:
    """The spans that a `Range` header requests from a blob of `size` bytes, in its order.

    An empty result means that the whole blob is sent, with status 200. A header that is not a list of byte ranges is
    ignored, as RFC 9110 allows (14.2). Ranges outside the blob are left out if there are others. Raises `RangeInvalid`
    if all ranges are outside, or if a range ends before it starts (15.5.17). Raises `TooManyRanges` if there are more
    than `MOST_RANGES`, or if several ranges add up to more than twice the size.
    """
    unit = _UNIT.match(header) if header is not None else None
    if header is None or unit is None:
        return ()
    if header.count(",") >= MOST_RANGES:
        raise TooManyRanges(f"more than {MOST_RANGES:,} ranges in one request")
    spans, any_range = [], False
    for element in header[unit.end() :].split(","):
        named = _RANGE.fullmatch(element)
        if named is None or named[1] == named[2] == "":
            if element.strip():
                return ()
            # a list may have empty elements (RFC 9110, 5.6.1)
            continue
        any_range = True
        if span := _satisfied(named[1], named[2], size):
            spans.append(span)
    if any_range and not spans:
        raise RangeInvalid(f"the range lies outside the blob, which has {size} bytes", size)
    if len(spans) > 1 and (total := sum(span.length for span in spans)) > _MOST_WHOLES * size:
        raise TooManyRanges(f"the ranges overlap: together {total} bytes, of a blob with {size}")
    return tuple(spans)


def is_bounded(header: str) -> bool:
    """True if a `Range` header asks for byte ranges each of which has an end (`5-9`, `-3`), and none goes on to the end
    of the blob without saying where that is (`5-`).
    """
    unit = _UNIT.match(header)
    if unit is None:
        return False
    named = [_RANGE.fullmatch(element) for element in header[unit.end() :].split(",") if element.strip()]
    return bool(named) and all(each is not None and each[2] for each in named)


def _satisfied(first: str, last: str, size: int) -> Span | None:
    """One range, cut to the blob's size; None if it is outside the blob.

    Raises `RangeInvalid` if the range ends before it starts.
    """
    stop = int(last) if last and len(last) <= _MOST_DIGITS else None
    if not first:
        length = size if stop is None else min(stop, size)
        return Span(size - length, size) if length else None
    # a start with more digits than any size has is beyond the end
    start = int(first) if len(first) <= _MOST_DIGITS else max(size, stop or 0)
    if stop is not None and stop < start:
        raise RangeInvalid(f"the range {start}-{stop} ends before it starts", size)
    return Span(start, size if stop is None else min(stop + 1, size)) if start < size else None


def parse_content_range(header: str | None) -> tuple[Span, int | None] | None:
    """`Content-Range: bytes a-b/size` as span and total size (None for `*`); None if it is missing or invalid."""
    match = _CONTENT_RANGE.fullmatch(header or "")
    if not match or max(map(len, match.groups())) > _MOST_DIGITS:
        return None
    first, last, total = match.groups()
    start, stop = int(first), int(last) + 1
    size = None if total == "*" else int(total)
    if stop <= start or (size is not None and stop > size):
        return None
    return Span(start, stop), size

"""Blocks of a blob whose bytes come out of turn: arithmetic only.

    bytes    0        64 Ki     128 Ki    192 Ki   size
    blocks   |    0    |    1    |    2    |   3  |            the last one may be shorter
    states        0         1         2         0              one byte for each block (`ABSENT`, `HERE`, `SYNCED`)

Blocks are given as half-open ranges of their numbers (`range`), bytes as `Span`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from mirror.oci.span import Span

#: Bytes of a block. All fetches out of turn are whole blocks.
BLOCK: Final = 64 << 10
#: The largest blob, in bytes, of which bytes may come out of turn: its map has 16 MiB.
MOST_BYTES: Final = 1 << 40

#: States of a block: its bytes are not here; are here; are here and survive a power cut.
ABSENT: Final = 0
HERE: Final = 1
SYNCED: Final = 2
#: Any state but `ABSENT` as 1.
_FLAT: Final = bytes([ABSENT]) + bytes([HERE]) * 255


def block_count(size: int) -> int:
    """The number of blocks of a blob of `size` bytes."""
    return -(-size // BLOCK)


def blocks_of(wanted: Span, size: int) -> range:
    """The blocks of a blob of `size` bytes that have any byte of `wanted`."""
    start, stop = max(0, wanted.start), min(wanted.stop, size)
    return range(start // BLOCK, block_count(stop)) if start < stop else range(0)


def blocks_before(done: Span, size: int) -> range:
    """The blocks from the one of the first byte of `done` on that end where `done` ends, or before."""
    start, stop = max(0, done.start), min(done.stop, size)
    return range(start // BLOCK, block_count(stop) if stop == size else stop // BLOCK) if start < stop else range(0)


def bytes_of(blocks: range, size: int) -> Span:
    """The bytes of these blocks."""
    return Span(min(blocks.start * BLOCK, size), min(blocks.stop * BLOCK, size))


def cut(span: Span, within: Span) -> Span | None:
    """The bytes of `span` that are in `within`; None if there are none."""
    start, stop = max(span.start, within.start), min(span.stop, within.stop)
    return Span(start, stop) if start < stop else None


def runs(states: bytes, first: int, *, absent: bool = False) -> Iterator[range]:
    """Runs of blocks that are here (or that are `absent`), ascending. `states` are those of the blocks from number
    `first` on.
    """
    # by the C library: a map may have millions of blocks
    flat = states.translate(_FLAT)
    wanted, other = (b"\0", b"\1") if absent else (b"\1", b"\0")
    start = flat.find(wanted)
    while start >= 0:
        end = flat.find(other, start)
        yield range(first + start, first + (end if end >= 0 else len(flat)))
        start = flat.find(wanted, end) if end >= 0 else -1


def without(whole: range, others: Sequence[range]) -> Iterator[range]:
    """Runs of `whole` that are in none of the others, ascending."""
    at = whole.start
    for other in sorted((other for other in others if other), key=lambda each: each.start):
        if other.start > at:
            yield range(at, min(other.start, whole.stop))
        at = max(at, other.stop)
        if at >= whole.stop:
            return
    if at < whole.stop:
        yield range(at, whole.stop)


def joined(spans: Sequence[Span]) -> list[Span]:
    """The same bytes, ascending, as few spans as possible."""
    merged: list[Span] = []
    for span in sorted(spans, key=lambda each: each.start):
        if merged and span.start <= merged[-1].stop:
            merged[-1] = Span(merged[-1].start, max(merged[-1].stop, span.stop))
        elif span.length > 0:
            merged.append(span)
    return merged


def gaps(wanted: Span, spans: Sequence[Span]) -> list[Span]:
    """The bytes of `wanted` that are in none of the spans, ascending."""
    left, at = [], wanted.start
    for span in joined(spans):
        if span.start > at:
            left.append(Span(at, min(span.start, wanted.stop)))
        at = max(at, span.stop)
        if at >= wanted.stop:
            break
    if at < wanted.stop:
        left.append(Span(at, wanted.stop))
    return [gap for gap in left if gap.length > 0]

"""Which parts of a blob are sent before the whole is verified, and where their bytes come from. Pure.

a part of a blob that is not in the store
  ├── not bounded, too large, too many places ──> the ordinary way: its end waits for the digest of the whole
  └── lazy ── each position of it ──┬── here, out of turn ─────────────> the spans beside the growing file
                                    ├── before the end of the prefix ──> the growing file
                                    ├── somebody fetches it ───────────> waited for
                                    ├── just before a fill's prefix ───> waited for: the fill is there soon
                                    └── anything else ─────────────────> fetched, whole blocks
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from mirror.errors import RangeInvalid, TooManyRanges
from mirror.oci.span import Span, is_bounded, parse_ranges

#: Bytes that are fetched for the lazy parts of one request, at most; and the share of the blob that they are, at most.
#: Whoever wants more wants the whole, which is fetched faster as a whole.
LARGEST: Final = 16 << 20
_LARGEST_SHARE: Final = 0.25
#: Bytes between two parts that are fetched with them, because a request of their own costs more.
_JOINED: Final = 512 << 10
#: Places in the blob at which one request may ask upstream.
MOST_PLACES: Final = 64
#: A fill is waited for if its prefix ends at most so many bytes before the part, or will reach it within so many
#: seconds at its present rate.
_NEAR: Final = 1 << 20
_NEAR_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class LazyParts:
    """The parts of one request, in its order, and the `places` from which they are cut: whole blocks, ascending."""

    parts: tuple[Span, ...]
    places: tuple[Span, ...]


def lazy_parts(header: str | None, size: int, block: int) -> LazyParts | None:
    """The parts that a `Range` header asks for, if they are lazy ones; None: the blob of `size` bytes is to be answered
    in the ordinary way, which also says what is wrong with the header. Bytes are fetched in blocks of `block`.
    """
    if header is None or not is_bounded(header):
        return None
    try:
        parts = parse_ranges(header, size)
    except (RangeInvalid, TooManyRanges):
        return None
    places = places_of(parts, size, block)
    most = min(LARGEST, size * _LARGEST_SHARE)
    # the blocks that are wanted count; what lies between them is fetched because that is cheaper
    wanted = sum(place.length for place in _merged((_aligned(part, size, block) for part in parts), 0))
    return LazyParts(parts, places) if 0 < wanted <= most and len(places) <= MOST_PLACES else None


def places_of(parts: Iterable[Span], size: int, block: int) -> tuple[Span, ...]:
    """The whole blocks that are fetched for these parts, ascending."""
    return tuple(_merged((_aligned(part, size, block) for part in parts), _JOINED))


def fetch_from(start: int, prefix: int, rate: float | None, block: int) -> int:
    """The first byte, from `start` on, that is to be fetched: those before it are in the prefix, or come as soon by the
    fill as by another request. The blob's fill has come to `prefix`, at `rate` bytes per second; None: it has no fill.
    """
    if rate is not None:
        # a whole block, so that a position and its block are judged alike
        soon = (prefix + max(_NEAR, round(rate * _NEAR_SECONDS))) // block * block
        return max(start, soon)
    return max(start, prefix // block * block)


def _aligned(span: Span, size: int, block: int) -> Span:
    return Span(span.start // block * block, min(-(-span.stop // block) * block, size))


def _merged(spans: Iterable[Span], gap: int) -> Sequence[Span]:
    """The spans in ascending order; those that overlap, or have at most `gap` bytes between them, are one."""
    whole: list[Span] = []
    for span in sorted(spans, key=lambda each: each.start):
        if whole and span.start - whole[-1].stop <= gap:
            whole[-1] = Span(whole[-1].start, max(whole[-1].stop, span.stop))
        else:
            whole.append(span)
    return whole

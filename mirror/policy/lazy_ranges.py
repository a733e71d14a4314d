"""Which parts of a blob are sent before the whole is verified, where their bytes come from, and when the whole is
fetched behind them. Pure.

    a part of a blob that is not in the store
      ├── not bounded, too large, or too large a share ──> the ordinary way: its end waits for the digest of the whole
      └── lazy ── each position of it ──┬── before the end of the prefix ──> the growing file
                                        ├── here, out of turn ─────────────> the spans beside it
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

#: Bytes that all lazy parts of one request have together, at most; and the share of the blob that they are, at most.
#: Whoever wants more wants the whole, which is fetched faster as a whole.
LARGEST: Final = 16 << 20
_LARGEST_SHARE: Final = 0.25
#: Bytes before which a fill is always waited for, and seconds of its present rate.
_NEAR: Final = 1 << 20
_NEAR_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class LazyRule:
    """When the whole of a blob is fetched of which parts were sent: once the `share` of it (0 to 1) is here, and no
    part was asked for during `pause` seconds.
    """

    share: float = 0.5
    pause: float = 10.0

    def has_enough(self, here: int, size: int) -> bool:
        """True if the whole is to be fetched after the pause. `here` of its `size` bytes are here."""
        return here >= self.share * size


def lazy_parts(header: str | None, size: int) -> tuple[Span, ...]:
    """The parts that a `Range` header asks for, in its order, if they are lazy ones; empty: the blob of `size` bytes is
    to be answered in the ordinary way, which also says what is wrong with the header.
    """
    if header is None or not is_bounded(header):
        return ()
    try:
        parts = parse_ranges(header, size)
    except (RangeInvalid, TooManyRanges):
        return ()
    asked = sum(part.length for part in parts)
    return parts if asked <= min(LARGEST, size * _LARGEST_SHARE) else ()


def is_near(position: int, prefix: int, rate: float) -> bool:
    """True if a fill that has come to `prefix`, at `rate` bytes per second, is at `position` about as soon as another
    request would be.
    """
    return prefix <= position < prefix + max(_NEAR, rate * _NEAR_SECONDS)


def merged(spans: Iterable[Span], gap: int = 0) -> Sequence[Span]:
    """The spans in ascending order; those that overlap, or have at most `gap` bytes between them, are one."""
    whole: list[Span] = []
    for span in sorted(spans, key=lambda each: each.start):
        if whole and span.start - whole[-1].stop <= gap:
            whole[-1] = Span(whole[-1].start, max(whole[-1].stop, span.stop))
        else:
            whole.append(span)
    return whole

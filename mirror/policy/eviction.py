"""Which blobs to drop, and when. Pure: the evictor measures, asks here, and acts.

    0 ─────────────── low water ─────── high water ──── limit
                          ^                  │
                          └──── evict ───────┘

What counts against the limit is what the store holds, what is growing, and what fills have reserved. Above the high
water, blobs are dropped down to the low water, least recently used first, so that not every pull has to evict. The
gap between high water and limit is for what several workers begin at the same moment.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from mirror.oci.digest import Digest
from mirror.policy.records import ContentRecord
from mirror.policy.sizes import Capacity

__all__ = ["Measure", "Victim", "Water", "coldest_enough", "plan"]


@dataclass(frozen=True, slots=True)
class Victim:
    """A blob to drop: `size` in bytes, `last_used` in seconds since the epoch, `reason` a phrase for people."""

    digest: Digest
    size: int
    last_used: float
    reason: str


@dataclass(frozen=True, slots=True)
class Measure:
    """How full the store is, in bytes.

    `held` by blobs present; `growing` by partials, with what they will have; `pending` by fills that have reserved
    but not begun; `free` and `disk` of the filesystem.
    """

    held: int
    growing: int
    pending: int
    free: int
    disk: int

    @property
    def used(self) -> int:
        """What counts against the limit."""
        return self.held + self.growing + self.pending


@dataclass(frozen=True, slots=True)
class Water:
    """Where the marks are. `high` and `low` are fractions of the limit; `reserve` in bytes stays free on the disk.

    Raises `ValueError` where they are out of order.
    """

    capacity: Capacity
    high: float = 0.95
    low: float = 0.90
    reserve: int = 64 * 2**20

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1:
            raise ValueError(f"low water must be above 0, high water not below it nor above 1: {self.low}, {self.high}")

    def limit(self, measure: Measure) -> int:
        """The most that may be used: the capacity, or less where others take the disk's space."""
        disk = measure.held + measure.growing + measure.free - self.reserve
        return max(0, min(self.capacity.of(measure.disk), disk))

    def excess(self, measure: Measure, wanted: int = 0) -> int:
        """Bytes to drop before `wanted` more may come; 0 while that stays within the high water."""
        limit = self.limit(measure)
        if measure.used + wanted <= int(limit * self.high):
            return 0
        return max(0, measure.used + wanted - int(limit * self.low))

    def shortage(self, measure: Measure, wanted: int = 0) -> int:
        """Bytes that must go, or `wanted` more cannot come at all."""
        return max(0, measure.used + wanted - self.limit(measure))


def plan(
    candidates: Iterable[ContentRecord], bytes_to_free: int, protected: Collection[Digest], now: float
) -> list[Victim]:
    """Enough of `candidates`, which come coldest first, to free `bytes_to_free`; where that is not enough, all.

    Never a pinned one, never a protected one.
    """
    victims: list[Victim] = []
    left = bytes_to_free
    for record in candidates:
        if left <= 0:
            break
        if record.pin is not None or record.digest in protected:
            continue
        age = _ago(now - record.last_used)
        victims.append(Victim(record.digest, record.size, record.last_used, f"least recently used: last used {age}"))
        left -= record.size
    return victims


def coldest_enough(
    records: Iterable[ContentRecord], bytes_to_free: int, protected: Collection[Digest]
) -> list[ContentRecord]:
    """The coldest of `records`, which come in any order, that free `bytes_to_free` together; coldest first.

    Keeps no more of them in memory than that.
    """
    # hottest on top, to be let go once the colder ones are enough without it
    kept: list[tuple[float, int, ContentRecord]] = []
    total = 0
    for number, record in enumerate(records):
        if record.pin is not None or record.digest in protected:
            continue
        heapq.heappush(kept, (-record.last_used, number, record))
        total += record.size
        while kept and total - kept[0][2].size >= bytes_to_free:
            total -= heapq.heappop(kept)[2].size
    return sorted((record for _, _, record in kept), key=lambda record: (record.last_used, record.digest))


def _ago(seconds: float) -> str:
    """`3 days ago`, in the largest unit that there is one of."""
    if seconds < 1:
        return "just now"
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'' if count == 1 else 's'} ago"
    return "just now"

"""Which blobs to drop, and when. Pure: the evictor measures, asks here, and acts.

    0 ─────────────── low water ─────── high water ──── limit
                          ^                  │
                          └──── evict ───────┘

What counts against the limit is what the store holds, what is growing, what fills have reserved, and damaged blobs that
were set aside, which go first where there is no room at all (`quarantine.py`). Above the high water, blobs are dropped
down to the low water, so that not every pull has to evict. The gap between high water and limit is for what several
workers begin at the same moment.

What goes, in this order:

    1  loose blobs      that no cached manifest names, least recently used first
    2  whole images     least recently used first: the index or manifest with all that nothing else names

A blob that a cached manifest names never goes on its own, however long ago it was asked for itself: a client that has
all layers asks for the manifest alone. So the use of a manifest keeps what is below it without touching any of it, and
a layer that two images share goes with the last of them. A loose blob that was used lately is no better and no worse
than an image: what has just come may be named in a moment, or only seem loose to an index that was told late.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mirror.oci.digest import Digest
from mirror.policy.records import ContentRecord, ReferencedBlob
from mirror.values.sizes import Capacity

__all__ = ["EvictionPlan", "StoreLoad", "Victim", "Watermarks", "coldest_enough", "in_order", "is_stale", "say_ago"]

#: Seconds after its last use in which a loose blob is not dropped before every image.
_YOUNG: Final = 600.0


@dataclass(frozen=True, slots=True)
class Victim:
    """A blob to drop: `size` in bytes, `last_used` in seconds since the epoch, `reason` a phrase for people.

    `images` are the images with which it goes, by their index or manifest, the one that goes last at the end; none: it
    is loose. `image_used` is the time of last use of that one, or of the blob itself.
    """

    digest: Digest
    size: int
    last_used: float
    reason: str
    images: tuple[Digest, ...] = ()
    image_used: float = 0.0


@dataclass(frozen=True, slots=True)
class StoreLoad:
    """How full the store is, in bytes.

    `held` by blobs present; `growing` by partials, with what they will have; `pending` by fills that have reserved
    but not begun; `free` and `disk` of the filesystem; `aside` by damaged blobs.
    """

    held: int
    growing: int
    pending: int
    free: int
    disk: int
    aside: int = 0

    @property
    def used(self) -> int:
        """What counts against the limit."""
        return self.held + self.growing + self.pending + self.aside


@dataclass(frozen=True, slots=True)
class Watermarks:
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

    def limit(self, measure: StoreLoad) -> int:
        """The most that may be used: the capacity, or less where others take the disk's space."""
        disk = measure.held + measure.growing + measure.aside + measure.free - self.reserve
        return max(0, min(self.capacity.of(measure.disk), disk))

    def excess(self, measure: StoreLoad, wanted: int = 0) -> int:
        """Bytes to drop before `wanted` more may come; 0 while that stays within the high water."""
        limit = self.limit(measure)
        if measure.used + wanted <= int(limit * self.high):
            return 0
        return max(0, measure.used + wanted - int(limit * self.low))

    def shortage(self, measure: StoreLoad, wanted: int = 0) -> int:
        """Bytes that must go, or `wanted` more cannot come at all."""
        return max(0, measure.used + wanted - self.limit(measure))


class EvictionPlan:
    """Victims, taken one loose blob or one image after another until they are enough. Never a protected one."""

    def __init__(self, bytes_to_free: int, protected: Collection[Digest], now: float) -> None:
        self.victims: list[Victim] = []
        self._missing = bytes_to_free
        self._protected = protected
        self._now = now
        self._images: dict[Digest, tuple[Digest, ...]] = {}
        self._left: dict[Digest, int] = {}

    @property
    def enough(self) -> bool:
        """Whether nothing more has to go."""
        return self._missing <= 0

    def take_loose(self, record: ContentRecord) -> None:
        """Drop a blob that no cached manifest names."""
        if not self.enough and record.digest not in self._protected:
            ago = say_ago(self._now - record.last_used)
            self._take(record, f"no cached manifest names it: last used {ago}", (), record.last_used)

    def take_image(self, root: ContentRecord, below: Mapping[Digest, Sequence[ReferencedBlob]]) -> None:
        """Drop a manifest or index whole: with it what is below, but for what others name or what is protected.

        `below` has what it and the manifests below it name, as the index knows it.
        """
        if self.enough or root.digest in self._protected:
            return
        why = f"its image was the least recently used: last used {say_ago(self._now - root.last_used)}"
        self._take(root, why, (root.digest,), root.last_used)
        left = [root.digest]
        while left:
            for child in below.get(left.pop(), ()):
                if self._let_go(child, root.digest) and child.record.digest not in self._protected:
                    self._take(child.record, why, self._images[child.record.digest], root.last_used)
                    if child.is_manifest:
                        left.append(child.record.digest)

    def _let_go(self, child: ReferencedBlob, image: Digest) -> bool:
        """One manifest less names it. Whether that was the last."""
        digest = child.record.digest
        self._images[digest] = tuple(dict.fromkeys((*self._images.get(digest, ()), image)))
        self._left[digest] = self._left.get(digest, child.parents) - 1
        return self._left[digest] == 0

    def _take(self, record: ContentRecord, reason: str, images: tuple[Digest, ...], image_used: float) -> None:
        self.victims.append(Victim(record.digest, record.size, record.last_used, reason, images, image_used))
        self._missing -= record.size


def is_stale(record: ContentRecord, now: float) -> bool:
    """Whether a loose blob goes before every image."""
    return now - record.last_used >= _YOUNG


def in_order(
    loose: Sequence[ContentRecord], roots: Sequence[ContentRecord], horizon: float = float("inf")
) -> Iterable[tuple[ContentRecord, bool]]:
    """Loose blobs and images, each in order, by time of last use together; with whether it is an image.

    `horizon` (epoch seconds) is how far both lists are known: of what was used later something may be missing.
    """
    both = heapq.merge(
        ((record, False) for record in loose),
        ((record, True) for record in roots),
        key=lambda pair: (pair[0].last_used, pair[0].digest),
    )
    return (pair for pair in both if pair[0].last_used <= horizon)


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
        if record.digest in protected:
            continue
        heapq.heappush(kept, (-record.last_used, number, record))
        total += record.size
        while kept and total - kept[0][2].size >= bytes_to_free:
            total -= heapq.heappop(kept)[2].size
    return sorted((record for _, _, record in kept), key=lambda record: (record.last_used, record.digest))


def say_ago(seconds: float) -> str:
    """`3 days ago`, in the largest unit that there is one of."""
    if seconds < 1:
        return "just now"
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'' if count == 1 else 's'} ago"
    return "just now"

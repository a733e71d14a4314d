"""Which blobs to evict, and when. Pure functions: `eviction/space.py` measures the store and asks this module.

    0 ─────────────── low water ─────── high water ──── limit
                          ^                  │
                          └──── evict ───────┘

Blobs that are present, growing blobs, space that fills have reserved, and damaged blobs that were set aside all count
against the limit. (Damaged blobs are deleted first if there is no room at all, see `quarantine.py`.) Above the high
water, blobs are evicted down to the low water, so that not every pull has to evict. The gap between high water and
limit is for downloads that several workers begin at the same moment.

The order of eviction:

    1  loose blobs      that no cached manifest names, least recently used first
    2  whole images     least recently used first: the index or manifest, with every blob that no other manifest names

A blob that a cached manifest names is never evicted on its own, however old its last use is: a client that has all
layers asks for the manifest alone. So using a manifest keeps the content below it, without touching that content's own
times. A layer that two images share is evicted with the last of them. A loose blob that was used recently is ranked
with the images by its time of last use: a manifest may name it in a moment, or may do so already although the index
does not know it yet.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mirror.oci.digest import Digest
from mirror.policy.records import ContentRecord, ReferencedBlob
from mirror.values.sizes import Capacity

#: A loose blob that was used within this many seconds is not evicted ahead of all images.
_YOUNG: Final = 600.0


@dataclass(frozen=True, slots=True)
class Victim:
    """A blob to evict: `size` in bytes, `last_used` in epoch seconds, `reason` a phrase for people.

    `images` are the images with which the blob is evicted, by the digest of their index or manifest, in order of
    eviction; empty if the blob is loose. `image_used` is the time of last use of the last of these images, or of the
    loose blob itself.
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

    `present`: complete blobs. `growing`: growing blobs, with their expected size if it is known. `pending`: space
    reserved by fills that have not begun. `free` and `disk`: free space and size of the filesystem. `aside`: damaged
    blobs that were set aside.
    """

    present: int
    growing: int
    pending: int
    free: int
    disk: int
    aside: int = 0

    @property
    def used(self) -> int:
        """The bytes that count against the limit."""
        return self.present + self.growing + self.pending + self.aside


@dataclass(frozen=True, slots=True)
class Watermarks:
    """The limits of the store. `high` and `low` are fractions of the limit; `reserve` bytes stay free on the disk.

    Raises `ValueError` unless 0 < `low` <= `high` <= 1.
    """

    capacity: Capacity
    high: float = 0.95
    low: float = 0.90
    reserve: int = 64 * 2**20

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1:
            raise ValueError(f"low water must be above 0, high water not below it nor above 1: {self.low}, {self.high}")

    def limit(self, load: StoreLoad) -> int:
        """The most bytes that may be used: the capacity, or less if other data takes up the disk."""
        disk = load.present + load.growing + load.aside + load.free - self.reserve
        return max(0, min(self.capacity.of(load.disk), disk))

    def excess(self, load: StoreLoad, wanted: int = 0) -> int:
        """Bytes to evict before `wanted` more bytes are stored; 0 if the total stays within the high water."""
        limit = self.limit(load)
        if load.used + wanted <= int(limit * self.high):
            return 0
        return max(0, load.used + wanted - int(limit * self.low))

    def above_low(self, load: StoreLoad) -> int:
        """Bytes above the low water."""
        return max(0, load.used - int(self.limit(load) * self.low))

    def shortage(self, load: StoreLoad, wanted: int = 0) -> int:
        """Bytes that must be evicted so that `wanted` more bytes fit within the limit."""
        return max(0, load.used + wanted - self.limit(load))


class EvictionPlan:
    """Collects loose blobs and whole images as victims until they free enough bytes. Skips protected blobs."""

    def __init__(self, bytes_to_free: int, protected: Collection[Digest], now: float) -> None:
        self.victims: list[Victim] = []
        self._missing = bytes_to_free
        self._protected = protected
        self._now = now
        self._images: dict[Digest, tuple[Digest, ...]] = {}
        self._parents: dict[Digest, int] = {}

    def __repr__(self) -> str:
        return f"<EvictionPlan {len(self.victims)} victims, {self._missing} bytes missing>"

    @property
    def enough(self) -> bool:
        """Whether the victims free enough bytes."""
        return self._missing <= 0

    def take_loose(self, record: ContentRecord) -> None:
        """Add a blob that no cached manifest names, unless the plan is complete or the blob is protected."""
        if not self.enough and record.digest not in self._protected:
            ago = format_ago(self._now - record.last_used)
            self._take(record, f"no cached manifest names it: last used {ago}", (), record.last_used)

    def take_image(self, root: ContentRecord, below: Mapping[Digest, Sequence[ReferencedBlob]]) -> None:
        """Add a manifest or index and everything below it, except content that others name and protected blobs.

        Does nothing if the plan is complete or `root` is protected. `below` maps the root and the manifests below it to
        the blobs that they name, as recorded in the index.
        """
        if self.enough or root.digest in self._protected:
            return
        reason = f"its image was the least recently used: last used {format_ago(self._now - root.last_used)}"
        self._take(root, reason, (root.digest,), root.last_used)
        manifests = [root.digest]
        while manifests:
            for child in below.get(manifests.pop(), ()):
                if self._is_unnamed_now(child, root.digest) and child.record.digest not in self._protected:
                    self._take(child.record, reason, self._images[child.record.digest], root.last_used)
                    if child.is_manifest:
                        manifests.append(child.record.digest)

    def _is_unnamed_now(self, child: ReferencedBlob, image: Digest) -> bool:
        """Count down the manifests that still name this blob. True if none is left."""
        digest = child.record.digest
        self._images[digest] = tuple(dict.fromkeys((*self._images.get(digest, ()), image)))
        self._parents[digest] = self._parents.get(digest, child.parents) - 1
        return self._parents[digest] == 0

    def _take(self, record: ContentRecord, reason: str, images: tuple[Digest, ...], image_used: float) -> None:
        self.victims.append(Victim(record.digest, record.size, record.last_used, reason, images, image_used))
        self._missing -= record.size


def is_stale(record: ContentRecord, now: float) -> bool:
    """Whether a loose blob is old enough to be evicted ahead of all images."""
    return now - record.last_used >= _YOUNG


def in_order(
    loose: Sequence[ContentRecord], roots: Sequence[ContentRecord], horizon: float = float("inf")
) -> Iterable[tuple[ContentRecord, bool]]:
    """Merge loose blobs and images, each sorted, by time of last use. Each pair says whether the record is an image.

    Records used after `horizon` (epoch seconds) are left out: both lists are complete only up to that time.
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
    """The least recently used of `records` that together free `bytes_to_free`, least recently used first.

    `records` may be in any order. Only the result is kept in memory. Protected blobs are skipped.
    """
    # a heap with the most recently used on top, which is removed once the others free enough without it
    coldest: list[tuple[float, int, ContentRecord]] = []
    total = 0
    for number, record in enumerate(records):
        if record.digest in protected:
            continue
        heapq.heappush(coldest, (-record.last_used, number, record))
        total += record.size
        while coldest and total - coldest[0][2].size >= bytes_to_free:
            total -= heapq.heappop(coldest)[2].size
    return sorted((record for _, _, record in coldest), key=lambda record: (record.last_used, record.digest))


def format_ago(seconds: float) -> str:
    """`3 days ago`: the time in the largest unit of which there is at least one; `just now` below a second."""
    if seconds < 1:
        return "just now"
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'' if count == 1 else 's'} ago"
    return "just now"

"""How long damaged blobs that were set aside are kept, and how many of them. Pure.

    set aside ──(age)──────────────> dropped
       ├──(more than may be kept)──> the oldest are dropped
       └──(no room on the disk)────> dropped, before anything that is good

They are evidence for whoever looks into the disk's trouble, and nothing else: no client is ever given one. So they
count as what the store takes, and a disk that fails in many places must not fill up with its own failures.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mirror.oci.digest import Digest

__all__ = ["QuarantineLimits", "QuarantinedBlob"]

#: What all of them may take at the most of what the store may, whatever the settings say.
_SHARE: Final = 0.1
#: Blobs that are kept at the most: they are listed at each look at the store.
_MOST: Final = 1000


@dataclass(frozen=True, slots=True)
class QuarantinedBlob:
    """A damaged blob that was set aside: `size` in bytes, `at` in epoch seconds."""

    digest: Digest
    size: int
    at: float


@dataclass(frozen=True, slots=True)
class QuarantineLimits:
    """What may be kept: `size` bytes, for `keep` seconds. Where one of them is 0, nothing is."""

    size: int = 10**9
    keep: float = 7 * 86400.0

    def surplus(self, kept: Iterable[QuarantinedBlob], now: float, limit: int) -> list[QuarantinedBlob]:
        """What has to go, oldest first, where all blobs may take `limit` bytes. `now` in epoch seconds."""
        most = min(self.size, int(limit * _SHARE))
        total = 0
        surplus = []
        for number, one in enumerate(sorted(kept, key=lambda one: (one.at, one.digest), reverse=True)):
            total += one.size
            if not most or total > most or number >= _MOST or now - one.at >= self.keep:
                surplus.append(one)
        return surplus[::-1]

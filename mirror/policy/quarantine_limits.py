"""How long damaged blobs that were set aside are kept, and how many of them. Pure.

    set aside ──(age)────────────────> deleted
       ├──(more than may be kept)────> the oldest are deleted
       └──(no room on the disk)──────> deleted, before any intact blob

They are only evidence for the administrator who examines the disk; no client ever receives one. They count against the
store's capacity, and they are limited so that a disk that fails in many places does not fill up with damaged blobs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mirror.oci.digest import Digest

#: The greatest share of the store's limit that damaged blobs may take together, whatever the settings say.
_SHARE: Final = 0.1
#: The most damaged blobs that are kept, because they are listed at each measurement of the store.
_MOST: Final = 1000


@dataclass(frozen=True, slots=True)
class QuarantinedBlob:
    """A damaged blob that was set aside at `at` (epoch seconds). `size` is in bytes."""

    digest: Digest
    size: int
    at: float


@dataclass(frozen=True, slots=True)
class QuarantineLimits:
    """How much is kept: `size` bytes, for `keep` seconds. If one of them is 0, nothing is kept."""

    size: int = 10**9
    keep: float = 7 * 86400.0

    def surplus(self, blobs: Iterable[QuarantinedBlob], now: float, limit: int) -> list[QuarantinedBlob]:
        """The blobs to delete, oldest first. `limit` is the store's limit in bytes, `now` is in epoch seconds."""
        most = min(self.size, int(limit * _SHARE))
        total = 0
        surplus = []
        for number, blob in enumerate(sorted(blobs, key=lambda blob: (blob.at, blob.digest), reverse=True)):
            total += blob.size
            if not most or total > most or number >= _MOST or now - blob.at >= self.keep:
                surplus.append(blob)
        return surplus[::-1]

"""The slow sweep of a bucket: it finds what crashes have left, and what is gone."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol


@dataclass(slots=True)
class SweptPage:
    """What the sweep did with some objects. The sweep goes on behind the key `after`."""

    after: str
    objects: int = 0
    bytes: int = 0
    #: Objects that were deleted because their generation was over, and their bytes.
    deleted: int = 0
    deleted_bytes: int = 0
    #: Objects that no state named: those that now wait to be collected, and those that repair a lost blob.
    queued: int = 0
    repaired: int = 0
    #: Blobs whose object is gone, or has another size.
    lost: int = 0
    unexplained: int = 0


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What was removed besides the objects of blobs: unfinished uploads (None: this store, or a permission, does not
    let the mirror list them), and probes.
    """

    uploads: int | None = None
    probes: int = 0


class BucketSweep(Protocol):
    """Looks at all hosted blobs of a bucket. All calls block, and raise `StoreError`; what was done stays right."""

    def pages(self, after: str, before: float) -> Generator[SweptPage]:
        """Looks at the objects behind the key `after` ("": all), a page in each step. Objects and states that are not
        older than `before` (epoch seconds) are left alone.
        """

    def leftovers(self, before: float) -> Leftovers:
        """Removes other things that are older than `before`."""

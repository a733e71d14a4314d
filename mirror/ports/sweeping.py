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
    #: Objects that were deleted because no state will name them, and their bytes.
    deleted: int = 0
    deleted_bytes: int = 0
    #: Blobs that had no state, and wait to be collected now.
    queued: int = 0
    #: Blobs whose object is gone, or has another size, and blobs whose state is damaged.
    lost: int = 0


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What was removed besides the objects of blobs: unfinished uploads (None: this store, or a permission, does not
    let the mirror list them), and probes.
    """

    uploads: int | None = None
    probes: int = 0


class BucketSweep(Protocol):
    """Looks at all hosted blobs of a bucket. All calls block, and raise `StoreError`; what was done stays right."""

    def pages(self, after: str) -> Generator[SweptPage]:
        """Looks at the objects behind the key `after` ("": all), a page in each step. What may still be written is left
        alone.
        """

    def leftovers(self) -> Leftovers:
        """Removes unfinished uploads and probes of more than a day."""

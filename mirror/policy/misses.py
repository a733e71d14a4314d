"""What a sealed mirror was asked for and did not have: one record for each image, however often it was asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mirror.oci.digest import Digest
from mirror.oci.reference import Reference, Repo

__all__ = ["MOST_BLOBS", "Miss", "joined"]

#: Blobs that are named for one image. Whoever fetches the image again gets all of them.
MOST_BLOBS: Final = 16


@dataclass(frozen=True, slots=True)
class Miss:
    """An image that was asked for in vain, whole or in part. Times are seconds since the epoch; `count` is of requests.

    `reference` None: it is only known that these `blobs` were asked for in this repository.
    """

    repo: Repo
    reference: Reference | None
    first: float
    last: float
    count: int = 1
    blobs: tuple[Digest, ...] = ()

    @property
    def key(self) -> tuple[Repo, str]:
        """What two records of one image have in common."""
        return self.repo, "" if self.reference is None else str(self.reference)

    @property
    def image(self) -> str:
        """As people and other commands write it."""
        if self.reference is None:
            return str(self.repo)
        return f"{self.repo}{'@' if isinstance(self.reference, Digest) else ':'}{self.reference}"

    def and_(self, other: Miss) -> Miss:
        """The two as one; the blobs that were asked for last stay."""
        earlier, later = sorted((self, other), key=lambda miss: miss.last)
        blobs = tuple(dict.fromkeys((*later.blobs, *earlier.blobs)))[:MOST_BLOBS]
        first = min(self.first, other.first)
        return Miss(self.repo, self.reference, first, later.last, self.count + other.count, blobs)


def joined(misses: Iterable[Miss], *, most: int) -> list[Miss]:
    """One record for each image, the most recent first, at most `most` of them."""
    found: dict[tuple[Repo, str], Miss] = {}
    for miss in misses:
        known = found.get(miss.key)
        found[miss.key] = known.and_(miss) if known else miss
    return sorted(found.values(), key=lambda miss: (-miss.last, miss.key))[:most]

"""Images that clients asked a sealed mirror for and that it did not have: one record for each image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.values.json_form import DigestField, Moment, ReferenceField, RepoField

#: The most blobs recorded for one image. A few are enough: fetching the image again brings all of its blobs.
MOST_BLOBS: Final = 16


@dataclass(frozen=True, slots=True)
class Miss:
    """An image that was requested and missing, as a whole or in part. `first` and `last` are in epoch seconds.

    `count` is the number of requests. If `reference` is None, it is only known that `blobs` were requested from this
    repository.
    """

    repo: RepoField
    reference: ReferenceField | None
    first: Moment
    last: Moment
    count: int = 1
    blobs: tuple[DigestField, ...] = ()

    @property
    def key(self) -> tuple[Repo, str]:
        """The repository and reference, which are the same in all records of one image."""
        return self.repo, "" if self.reference is None else str(self.reference)

    @property
    def image(self) -> str:
        """The image as people and other commands write it."""
        if self.reference is None:
            return str(self.repo)
        return f"{self.repo}{'@' if isinstance(self.reference, Digest) else ':'}{self.reference}"

    def and_(self, other: Miss) -> Miss:
        """This record and another of the same image as one. If there are too many blobs, the latest requested stay."""
        earlier, later = sorted((self, other), key=lambda miss: miss.last)
        blobs = tuple(dict.fromkeys((*later.blobs, *earlier.blobs)))[:MOST_BLOBS]
        first = min(self.first, other.first)
        return Miss(self.repo, self.reference, first, later.last, self.count + other.count, blobs)


def joined(misses: Iterable[Miss], *, most: int) -> list[Miss]:
    """Merge records into one for each image, most recent first. At most `most` are returned."""
    by_image: dict[tuple[Repo, str], Miss] = {}
    for miss in misses:
        earlier = by_image.get(miss.key)
        by_image[miss.key] = earlier.and_(miss) if earlier else miss
    return sorted(by_image.values(), key=lambda miss: (-miss.last, miss.key))[:most]

"""Where the blobs of a repository are read: what a cached repository serves is in the cache, or it is fetched; what a
hosted one serves is under the hosted names or in a bucket, or in the cache as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.ports import Blobs


@dataclass(frozen=True, slots=True)
class BlobPlaces:
    """`cache` has the blobs of cached repositories, `contents` all blobs, hosted or cached. `has_copies` is true if the
    cache has copies of hosted blobs, which are evicted, because the bytes are in a bucket. `hosted_holders` blocks; it
    returns up to so many hosted repositories that have a blob or manifest, and raises `IndexUnavailable` if that is not
    known.
    """

    cache: Blobs
    contents: Blobs
    is_hosted: Callable[[Repo], bool]
    has_copies: bool = False
    hosted_holders: Callable[[Digest, int], Sequence[Repo]] = lambda _digest, _most: ()

    @classmethod
    def only(cls, cache: Blobs) -> BlobPlaces:
        """Of a site that hosts nothing."""
        return cls(cache, cache, lambda _: False)

    def of(self, repo: Repo) -> Blobs:
        """The blobs that this repository may have."""
        return self.contents if self.is_hosted(repo) else self.cache

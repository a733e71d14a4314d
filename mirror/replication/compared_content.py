"""What a comparison of a repository remembers in memory, so that the next one reads only what can have changed.

A tag that has not moved must be read again only if something was added that belongs to its image: a manifest that it
names, one whose subject it is, or a tag made from its digest. Digests are remembered as hashes of 64 bits; two that are
equal by chance cost a look, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from mirror.oci.attachments import image_of_tag
from mirror.oci.digest import Digest
from mirror.replication.image_tree import ImageTree


@dataclass(frozen=True, slots=True)
class RepositoryListing:
    """The manifests of a repository, and what its tags that are made from digests point to."""

    manifests: Collection[Digest]
    attached: Mapping[str, Digest]


@dataclass(slots=True)
class ComparedContent:
    """One repository after a comparison. `tags` are those whose images the other registry has whole."""

    manifests: frozenset[int] = frozenset()
    attached: Mapping[str, int] = field(default_factory=dict)
    tags: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def listed(self, listing: RepositoryListing) -> None:
        """Remember what was listed before the comparison that has ended now."""
        self.manifests = frozenset(map(hash, listing.manifests))
        self.attached = {tag: hash(digest) for tag, digest in listing.attached.items()}

    def done(self, tag: str, tree: ImageTree) -> None:
        """Remember an image that the other registry has whole."""
        parts = (*tree.image, *tree.referrers)
        self.tags[tag] = tuple({*(hash(each.digest) for each in parts), *map(hash, tree.missing)})

    def touched(self, listing: RepositoryListing, subject_of: Callable[[Digest], Digest | None]) -> frozenset[int]:
        """The digests to which something was added since. `subject_of` reads a manifest; it raises `StoreError`."""
        new = [digest for digest in listing.manifests if hash(digest) not in self.manifests]
        subjects: Iterable[Digest | None] = map(subject_of, new)
        images = (
            image_of_tag(tag) for tag, digest in listing.attached.items() if self.attached.get(tag) != hash(digest)
        )
        return frozenset(hash(digest) for digest in (*new, *subjects, *images) if digest is not None)

    def is_untouched(self, tag: str, touched: frozenset[int]) -> bool:
        """Whether nothing was added to the image of a tag that has not moved."""
        parts = self.tags.get(tag)
        return parts is not None and touched.isdisjoint(parts)

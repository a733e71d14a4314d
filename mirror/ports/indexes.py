"""The index and other data that is derived from the disk and may be lost."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.records import BlobRole, ContentRecord, ReferencedBlob, References, Usage
from mirror.ports.remotes import TagBatch


@dataclass(frozen=True, slots=True)
class RebuildState:
    """A rebuild that runs, or was interrupted: its `token`, and the parts that are done, with the number of blobs that
    each has put into the index.
    """

    token: str
    done: Mapping[str, int]


class ContentIndex(Protocol):
    """The least-recently-used order of images, the sizes of blobs, and the links of repositories.

    Every method may raise `IndexUnavailable`. The index is not called for a hit that this process has seen before.
    """

    async def put(self, records: Sequence[ContentRecord]) -> None:
        """Add blobs. Repeatable: the later time of last use is kept."""

    async def get(self, digest: Digest) -> ContentRecord | None:
        """The record of a blob; None if it is not in the index."""

    async def records(self, digests: Sequence[Digest]) -> dict[Digest, ContentRecord]:
        """The records of those of these blobs that are in the index."""

    async def drop(self, digests: Sequence[Digest]) -> None:
        """Remove blobs, and the references of those that are manifests. Links stay (`loose_links`). Repeatable."""

    async def touch(self, seen: Mapping[Digest, float]) -> None:
        """Raise times of last use (epoch seconds). Digests that are not in the index are not added.

        Using a manifest also uses every index above it. It does not touch what is below it: the content that a
        manifest names stays for as long as the manifest does.
        """

    async def record_references(self, manifests: Sequence[References]) -> None:
        """Record what these manifests name, whether or not the named blobs are in the index. Repeatable.

        A manifest whose own blob is not in the index is skipped: otherwise the content that it names would never be
        evicted.
        """

    async def least_recently_used(self, role: BlobRole, limit: int) -> list[ContentRecord]:
        """Up to `limit` blobs of this role, least recently used first (ties by digest)."""

    async def successors(self, manifests: Sequence[Digest]) -> dict[Digest, list[ReferencedBlob]]:
        """For each of the digests that is a manifest in the index: the indexed blobs that it names, in no order."""

    def digests(self) -> AsyncGenerator[list[Digest]]:
        """The digests of all blobs in the index, in batches and in no order. To be closed (`aclose`).

        Blobs that are added or removed meanwhile may be missing, and a digest may come twice.
        """

    async def usage(self) -> Usage:
        """The number of blobs and their bytes. The totals are kept up to date, not summed up at each call."""

    async def link(self, repo: Repo, blobs: Mapping[Digest, int]) -> None:
        """Let this repository serve these blobs. The values are their sizes in bytes, -1 if unknown."""

    async def linked(self, repo: Repo, digest: Digest) -> int | None:
        """The size of a blob that this repository may serve (-1 if unknown); None if the blob is not linked."""

    async def unlink(self, repo: Repo, digests: Sequence[Digest]) -> None:
        """Remove the links of these blobs. Repeatable."""

    def loose_links(self) -> AsyncGenerator[list[tuple[Repo, Digest]]]:
        """The links of blobs that are not in the index and that no manifest in the index names, in no order. To be
        closed (`aclose`).

        Each step looks at a few hundred links and yields the loose ones among them, possibly none. Links that are made
        or removed meanwhile may be missing, and a link may come twice.
        """

    async def holders(self, digest: Digest, most: int) -> Sequence[Repo]:
        """Up to `most` repositories that may serve the blob, in no order; some may be missing."""

    async def marker(self) -> str | None:
        """The mark set at the end of the last complete rebuild; None if the index was lost since."""

    async def begin_rebuild(self, rules: str = "") -> str:
        """Note that a rebuild by these rules begins, with no part done. Returns a token for `set_marker`. Any earlier
        rebuild is forgotten.
        """

    async def rebuild_state(self, rules: str) -> RebuildState | None:
        """The rebuild by these rules that has begun, in any process; None if there is none. It is forgotten when the
        index may have lost what it has put there, and when a mark is set.
        """

    async def note_rebuilt(self, part: str, blobs: int, token: str) -> None:
        """Note that a part is done. Raises `IndexUnavailable` if the rebuild of this token is forgotten."""

    async def set_marker(self, mark: str, token: str = "") -> None:
        """Set the mark. A rebuild does so last, so that an interrupted rebuild is recognised; with its token it raises
        `IndexUnavailable` if the index may have lost since what the rebuild has put there.
        """

    async def clear(self) -> None:
        """Remove all records of this store. Records of other stores in a shared Redis stay."""

    async def aclose(self) -> None:
        """Close the connections or files of the index. Repeatable."""


class TagGathering(Protocol):
    """A tag list that is being sorted. All calls block. Used by one task at a time."""

    @property
    def count(self) -> int:
        """The number of different tags so far."""

    @property
    def size(self) -> int:
        """The bytes on disk so far."""

    def add(self, tags: Sequence[str]) -> None:
        """Add tags, in any order. Duplicates are ignored. Raises `StoreError`, `StoreFull`."""

    def publish(self, until: float) -> None:
        """Make the list visible to every process until `until` (epoch seconds). Raises `StoreError`."""

    def close(self) -> None:
        """Discard the list if it was not published. Repeatable."""


class SortedTags(Protocol):
    """Sorted copies, on disk, of the tag lists of upstreams that do not sort. They may be lost at any time.

    All calls block for a short time.
    """

    @property
    def most_bytes(self) -> int:
        """How many bytes all lists together may take on disk."""

    def page(self, key: str, last: str, count: int) -> TagBatch | None:
        """Up to `count` tags after `last`; None if there is no such list or it has expired."""

    def gather(self, key: str) -> TagGathering:
        """Begin to sort a list. The caller closes the result. Raises `StoreError`."""

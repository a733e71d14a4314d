"""A `ContentIndex` in dicts: the simplest correct one. It lives and dies with its process."""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace

from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.records import BlobRole, ContentRecord, ReferencedBlob, References, Usage

__all__ = ["MemoryIndex"]


class MemoryIndex:
    """See `mirror.ports.ContentIndex`. Never raises `IndexUnavailable`."""

    def __init__(self) -> None:
        self._records: dict[Digest, ContentRecord] = {}
        self._names: dict[Digest, References] = {}
        self._parents: dict[Digest, set[Digest]] = {}
        self._links: dict[Repo, dict[Digest, int]] = {}
        self._bytes = 0
        self._marker: str | None = None

    async def put(self, records: Sequence[ContentRecord]) -> None:
        """Keeps the later time of last use."""
        for record in records:
            known = self._records.get(record.digest)
            if known is not None:
                self._bytes -= known.size
                record = replace(record, last_used=max(record.last_used, known.last_used))
            self._bytes += record.size
            self._records[record.digest] = record

    async def get(self, digest: Digest) -> ContentRecord | None:
        """What is remembered."""
        return self._records.get(digest)

    async def drop(self, digests: Sequence[Digest]) -> None:
        """Repeatable."""
        for digest in digests:
            known = self._records.pop(digest, None)
            if known is not None:
                self._bytes -= known.size
            names = self._names.pop(digest, None)
            for child in _children(names):
                self._parents[child].discard(digest)
                if not self._parents[child]:
                    del self._parents[child]

    async def touch(self, seen: Mapping[Digest, float]) -> None:
        """Skips what is not remembered."""
        for digest, last_used in seen.items():
            self._touch(digest, last_used)

    def _touch(self, digest: Digest, last_used: float) -> None:
        known = self._records.get(digest)
        if known is not None and last_used > known.last_used:
            self._records[digest] = replace(known, last_used=last_used)
        for parent in self._parents.get(digest, ()):
            if digest in self._names[parent].manifests:
                self._touch(parent, last_used)

    async def name(self, manifests: Sequence[References]) -> None:
        """Skips manifests that are not remembered."""
        for names in manifests:
            if names.digest in self._records and names.digest not in self._names:
                self._names[names.digest] = names
                for child in _children(names):
                    self._parents.setdefault(child, set()).add(names.digest)

    async def coldest(self, standing: BlobRole, limit: int) -> list[ContentRecord]:
        """Looks at every record: good for thousands, not for millions."""
        found = (record for record in self._records.values() if self._standing(record.digest) is standing)
        return heapq.nsmallest(limit, found, key=lambda record: (record.last_used, record.digest))

    def _standing(self, digest: Digest) -> BlobRole:
        if digest in self._parents:
            return BlobRole.NAMED
        return BlobRole.ROOT if digest in self._names else BlobRole.LOOSE

    async def below(self, manifests: Sequence[Digest]) -> dict[Digest, list[ReferencedBlob]]:
        """Of those that are remembered."""
        return {
            digest: [
                ReferencedBlob(self._records[child], len(self._parents[child]), child in self._names)
                for child in _children(self._names[digest])
                if child in self._records
            ]
            for digest in manifests
            if digest in self._names
        }

    async def recorded(self) -> AsyncIterator[list[Digest]]:
        """In one batch."""
        if self._records:
            yield list(self._records)

    async def usage(self) -> Usage:
        """Blobs and bytes."""
        return Usage(len(self._records), self._bytes)

    async def link(self, repo: Repo, blobs: Mapping[Digest, int]) -> None:
        """A size that is known is not replaced by one that is not."""
        links = self._links.setdefault(repo, {})
        for digest, size in blobs.items():
            links[digest] = size if size >= 0 else links.get(digest, -1)

    async def linked(self, repo: Repo, digest: Digest) -> int | None:
        """The size, -1 where unknown; None where not linked."""
        return self._links.get(repo, {}).get(digest)

    async def unlink(self, repo: Repo, digests: Sequence[Digest]) -> None:
        """Repeatable."""
        links = self._links.get(repo, {})
        for digest in digests:
            links.pop(digest, None)

    async def marker(self) -> str | None:
        """The mark of the last complete rebuild."""
        return self._marker

    async def set_marker(self, mark: str) -> None:
        """Set last in a rebuild."""
        self._marker = mark

    async def clear(self) -> None:
        """Forget everything."""
        self._records.clear()
        self._names.clear()
        self._parents.clear()
        self._links.clear()
        self._bytes = 0
        self._marker = None

    async def aclose(self) -> None:
        """Repeatable."""


def _children(names: References | None) -> frozenset[Digest]:
    """Everything that a manifest names, each digest once."""
    return frozenset((*names.manifests, *names.blobs)) if names else frozenset()

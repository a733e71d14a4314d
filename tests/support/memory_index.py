"""A `ContentIndex` in dicts: the simplest correct implementation. Its records are lost when the process ends."""

from __future__ import annotations

import heapq
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace

from mirror.errors import IndexUnavailable
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.records import BlobRole, ContentRecord, ReferencedBlob, References, Usage
from mirror.ports import RebuildState


class MemoryIndex:
    """See `mirror.ports.ContentIndex`. Never raises `IndexUnavailable`."""

    def __init__(self) -> None:
        self._records: dict[Digest, ContentRecord] = {}
        self._names: dict[Digest, References] = {}
        self._parents: dict[Digest, set[Digest]] = {}
        self._links: dict[Repo, dict[Digest, int]] = {}
        self._bytes = 0
        self._marker: str | None = None
        self._rebuild: RebuildState | None = None
        self._rebuilds = 0

    async def put(self, records: Sequence[ContentRecord]) -> None:
        """Add or replace records; the later time of last use counts."""
        for record in records:
            before = self._records.get(record.digest)
            if before is not None:
                self._bytes -= before.size
                record = replace(record, last_used=max(record.last_used, before.last_used))
            self._bytes += record.size
            self._records[record.digest] = record

    async def get(self, digest: Digest) -> ContentRecord | None:
        """The record of a blob; None if there is none."""
        return self._records.get(digest)

    async def records(self, digests: Sequence[Digest]) -> dict[Digest, ContentRecord]:
        """The records of those of these blobs that have one."""
        return {digest: self._records[digest] for digest in digests if digest in self._records}

    async def drop(self, digests: Sequence[Digest]) -> None:
        """Drop records, and the references of those that are manifests. Repeatable."""
        for digest in digests:
            before = self._records.pop(digest, None)
            if before is not None:
                self._bytes -= before.size
            names = self._names.pop(digest, None)
            for child in _children(names):
                self._parents[child].discard(digest)
                if not self._parents[child]:
                    del self._parents[child]

    async def touch(self, seen: Mapping[Digest, float]) -> None:
        """Raise times of last use, also of all indexes above a manifest. Skips blobs without a record."""
        for digest, last_used in seen.items():
            self._touch(digest, last_used)

    def _touch(self, digest: Digest, last_used: float) -> None:
        before = self._records.get(digest)
        if before is not None and last_used > before.last_used:
            self._records[digest] = replace(before, last_used=last_used)
        for parent in self._parents.get(digest, ()):
            if digest in self._names[parent].manifests:
                self._touch(parent, last_used)

    async def record_references(self, manifests: Sequence[References]) -> None:
        """Add the references of manifests. Skips manifests without a record."""
        for names in manifests:
            if names.digest in self._records and names.digest not in self._names:
                self._names[names.digest] = names
                for child in _children(names):
                    self._parents.setdefault(child, set()).add(names.digest)

    async def least_recently_used(self, role: BlobRole, limit: int) -> list[ContentRecord]:
        """The least recently used blobs of this role. Reads every record: good for thousands of blobs, not millions."""
        records = (record for record in self._records.values() if self._role(record.digest) is role)
        return heapq.nsmallest(limit, records, key=lambda record: (record.last_used, record.digest))

    def _role(self, digest: Digest) -> BlobRole:
        if digest in self._parents:
            return BlobRole.NAMED
        return BlobRole.ROOT if digest in self._names else BlobRole.LOOSE

    async def successors(self, manifests: Sequence[Digest]) -> dict[Digest, list[ReferencedBlob]]:
        """The recorded blobs that each recorded manifest references."""
        return {
            digest: [
                ReferencedBlob(self._records[child], len(self._parents[child]), child in self._names)
                for child in _children(self._names[digest])
                if child in self._records
            ]
            for digest in manifests
            if digest in self._names
        }

    async def digests(self) -> AsyncGenerator[list[Digest]]:
        """The digests of all records, in one batch."""
        if self._records:
            yield list(self._records)

    async def usage(self) -> Usage:
        """The number of blobs and their total size in bytes."""
        return Usage(len(self._records), self._bytes)

    async def link(self, repo: Repo, blobs: Mapping[Digest, int]) -> None:
        """Link blobs to a repository. An unknown size (-1) does not replace a known one."""
        links = self._links.setdefault(repo, {})
        for digest, size in blobs.items():
            links[digest] = size if size >= 0 else links.get(digest, -1)

    async def linked(self, repo: Repo, digest: Digest) -> int | None:
        """The size of a linked blob in bytes, -1 if unknown; None if it is not linked."""
        return self._links.get(repo, {}).get(digest)

    async def unlink(self, repo: Repo, digests: Sequence[Digest]) -> None:
        """Drop links of a repository. Repeatable."""
        links = self._links.get(repo, {})
        for digest in digests:
            links.pop(digest, None)

    async def loose_links(self) -> AsyncGenerator[list[tuple[Repo, Digest]]]:
        """Links of blobs that have no record and that no recorded manifest names, a list for each repository."""
        for repo, links in list(self._links.items()):
            yield [(repo, digest) for digest in links if digest not in self._records and digest not in self._parents]

    async def holders(self, digest: Digest, most: int) -> Sequence[Repo]:
        """Up to `most` repositories that a blob is linked to."""
        return [repo for repo, links in self._links.items() if digest in links][:most]

    async def marker(self) -> str | None:
        """The mark of the last complete rebuild; None if there is none."""
        return self._marker

    async def begin_rebuild(self, rules: str = "") -> str:
        """Leave a token; another one ends the rebuild."""
        self._rebuilds += 1
        self._rebuild = RebuildState(f"{rules}.{self._rebuilds}", {})
        return self._rebuild.token

    async def rebuild_state(self, rules: str) -> RebuildState | None:
        """The rebuild whose token is there."""
        return self._rebuild if self._rebuild and self._rebuild.token.startswith(f"{rules}.") else None

    async def note_rebuilt(self, part: str, blobs: int, token: str) -> None:
        """Note that a part is done, if the token is still there."""
        if self._rebuild is None or self._rebuild.token != token:
            raise IndexUnavailable("there is another rebuild")
        self._rebuild = RebuildState(token, {**self._rebuild.done, part: blobs})

    async def set_marker(self, mark: str, token: str = "") -> None:
        """Set the mark; a rebuild does this as its last step."""
        if token and (self._rebuild is None or self._rebuild.token != token):
            raise IndexUnavailable("there is another rebuild")
        self._marker, self._rebuild = mark, None

    async def clear(self) -> None:
        """Drop all records, links and the mark."""
        self._records.clear()
        self._names.clear()
        self._parents.clear()
        self._links.clear()
        self._bytes = 0
        self._marker = self._rebuild = None

    async def aclose(self) -> None:
        """Does nothing. Repeatable."""


def _children(names: References | None) -> frozenset[Digest]:
    """All digests that a manifest references, each once; empty for None."""
    return frozenset((*names.manifests, *names.blobs)) if names else frozenset()

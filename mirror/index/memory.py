"""A `ContentIndex` in dicts: the simplest correct one. It lives and dies with its process."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.records import ContentRecord, Usage

__all__ = ["MemoryIndex"]


class MemoryIndex:
    """See `mirror.ports.ContentIndex`. Never raises `IndexUnavailable`."""

    def __init__(self) -> None:
        self._records: dict[Digest, ContentRecord] = {}
        self._links: dict[Repo, dict[Digest, int]] = {}
        self._bytes = 0
        self._marker: str | None = None

    async def put(self, records: Sequence[ContentRecord]) -> None:
        """Keeps the later time of last use, and a pin unless the record brings another."""
        for record in records:
            known = self._records.get(record.digest)
            if known is not None:
                self._bytes -= known.size
                record = replace(
                    record,
                    last_used=max(record.last_used, known.last_used),
                    pin=known.pin if record.pin is None else record.pin,
                )
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

    async def touch(self, seen: Mapping[Digest, float]) -> None:
        """Skips what is not remembered."""
        for digest, last_used in seen.items():
            known = self._records.get(digest)
            if known is not None and last_used > known.last_used:
                self._records[digest] = replace(known, last_used=last_used)

    async def set_pin(self, digest: Digest, reason: str | None) -> None:
        """Skips what is not remembered."""
        known = self._records.get(digest)
        if known is not None:
            self._records[digest] = replace(known, pin=reason)

    async def coldest(self, limit: int) -> list[ContentRecord]:
        """Looks at every record: good for thousands, not for millions."""
        unpinned = (record for record in self._records.values() if record.pin is None)
        return heapq.nsmallest(limit, unpinned, key=lambda record: (record.last_used, record.digest))

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
        self._links.clear()
        self._bytes = 0
        self._marker = None

    async def aclose(self) -> None:
        """Repeatable."""

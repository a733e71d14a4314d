"""What the cache in the bucket has, as this machine remembers it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mirror.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class BookedObject:
    """A cached blob in the bucket: its `size` in bytes, and when it was last used, to the day (epoch seconds)."""

    digest: Digest
    size: int
    used_at: float


@dataclass(frozen=True, slots=True)
class BookTotals:
    """How many cached blobs the bucket has, and their bytes."""

    objects: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class BookedRecord:
    """A record that was written to the bucket at `written_at` (epoch seconds); `mark` names its content."""

    mark: str
    written_at: float


class ObjectBook(Protocol):
    """The cached blobs and records that the bucket has. Derived from the bucket: it may be lost at any time, and may be
    a little wrong; a listing of the bucket corrects it. Shared by the processes of one machine.

    empty, not complete ── begin_listing ──> listed, page by page ── end_listing ──> complete ── lost ──> empty

    All calls block for a short time, and raise `IndexUnavailable` if the book cannot be read or written.
    """

    def find(self, digest: Digest) -> int | None:
        """The size of a cached blob in bytes; None if the book does not have it. That means that the bucket does not
        have it either only if the book is complete.
        """

    def put(self, objects: Sequence[BookedObject]) -> None:
        """Enter blobs that the bucket has now. Repeatable."""

    def use(self, seen: Mapping[Digest, float]) -> None:
        """Note uses (epoch seconds) of those of these blobs that the bucket has; at most once a day for each."""

    def drop(self, digests: Iterable[Digest]) -> None:
        """Strike blobs out that the bucket no longer has. Repeatable."""

    def coldest(self, count: int) -> Sequence[BookedObject]:
        """The blobs that were not used for longest, up to `count` of them."""

    def used_since(self, at: float, count: int) -> Sequence[BookedObject]:
        """The blobs that were used after `at` (epoch seconds), up to `count` of them, the last ones first."""

    def totals(self) -> BookTotals:
        """What all blobs come to. Kept up to date, not summed up at each call."""

    def record(self, key: str) -> BookedRecord | None:
        """The record that was last written under a key; None if the book does not know."""

    def put_record(self, key: str, record: BookedRecord) -> None:
        """Enter a record that was written."""

    def drop_records(self, keys: Iterable[str]) -> None:
        """Strike records out. Repeatable."""

    def completed_at(self) -> float | None:
        """When the bucket was last listed to its end (epoch seconds); None if it never was, since the book began."""

    def begin_listing(self) -> int:
        """Begin a listing; returns its number."""

    def listed(self, number: int, objects: Sequence[BookedObject], records: Sequence[str]) -> None:
        """Enter what a page of this listing has: blobs, and the keys of records."""

    def end_listing(self, number: int, at: float) -> None:
        """Strike out what the listing did not have, and what was not entered meanwhile; the book is complete."""

"""What this machine remembers of the records in a bucket. It is derived from the bucket and may be lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from mirror.ports.versioned import Version


class RecordState(Enum):
    """What is remembered of a record."""

    #: A write is under way, or nobody knows how the last one ended: only the bucket can say.
    UNKNOWN = 0
    #: The record exists. Its content may be remembered as well.
    LIVE = 1
    #: The record was deleted.
    DELETED = 2
    #: A listing showed an object of the size that deleted records have.
    PERHAPS_DELETED = 3


@dataclass(frozen=True, slots=True)
class RememberedRecord:
    """What is remembered of one record.

    `version` and `content` are None if they are not remembered. `is_trusted`: it was compared with the bucket since
    this machine was started and since another mirror used the bucket. `stamp` differs after each change of the memory.
    """

    key: str
    state: RecordState
    version: Version | None
    content: bytes | None
    is_trusted: bool
    stamp: int


@dataclass(frozen=True, slots=True)
class ListedRecord:
    """An object that a listing shows. `version` is empty if the listing does not give it."""

    key: str
    version: Version
    is_deleted: bool


@dataclass(frozen=True, slots=True)
class ListedPart:
    """All that a listing shows after the key `after` and up to the key `upto`, which are in one folder."""

    after: str
    upto: str
    listed: Sequence[ListedRecord]


@dataclass(frozen=True, slots=True)
class ListingStart:
    """The state of the memory when a listing began."""

    stamp: int
    epoch: int


@dataclass(frozen=True, slots=True)
class RememberedFolder:
    """What one folder of a repository has: records that exist, and records of which nothing is known."""

    folder: str
    has_live: bool
    has_unknown: bool


class RecordMemory(Protocol):
    """Versions and contents of records, shared by the processes of one machine. All calls may be made from any thread.
    They raise `IndexUnavailable`.

        nothing ── note, end ──> known ── begin ──> unknown ── end, by the only writer ──> known
                                                      │  └── fail ──> unknown until a read is noted
                                                      └── the writer dies, or does not say: unknown for some minutes
    """

    def recall(self, key: str) -> RememberedRecord | None:
        """What is remembered of a record; None if nothing is. Quick enough for the event loop."""

    def note(self, key: str, seen: RememberedRecord | None, version: Version | None, content: bytes | None) -> None:
        """Note what a read has found. `seen` is what `recall` returned before that read began: if anything changed
        meanwhile, or a write is under way, nothing is noted.

        `version` None: there is no object; `content` None: the record is deleted.
        """

    def expect(self, key: str) -> None:
        """Note that nothing is known of a record, if nothing is remembered of it: so that `note` notes nothing if it is
        doubted meanwhile.
        """

    def begin(self, key: str) -> str:
        """Note that a write is about to begin. Returns the token of this write."""

    def end(self, key: str, token: str, version: Version, content: bytes | None) -> None:
        """Note that a write succeeded. `content` None: the record was deleted."""

    def fail(self, key: str, token: str) -> None:
        """Note that a write certainly changed nothing. To be left out if that is not certain."""

    def scan(self, after: str, before: str, count: int) -> Sequence[RememberedRecord]:
        """Up to `count` records whose keys are after `after` and before `before`, sorted by key as bytes."""

    def doubted(self, after: str, count: int) -> Sequence[str]:
        """Up to `count` keys after `after` of records that were read once and are unknown now, sorted, without those
        that are being written.
        """

    def folders(self, after: str, before: str, count: int) -> Sequence[RememberedFolder]:
        """Up to `count` folders of repositories (`repositories/<registry>/<name>/_tags`, ...) between two keys that
        have any record, deleted ones included, sorted by key as bytes.
        """

    def is_complete(self) -> bool:
        """True if every record of the bucket is remembered, at least by its name. Quick enough for the event loop."""

    def was_complete(self) -> bool:
        """True if the memory is complete, or was so before it became doubtful: it then lacks only what is new."""

    def added(self) -> int:
        """Grows whenever a folder of tags or manifests gets its first record. Quick enough for the event loop."""

    def changes(self, folder: str) -> int | None:
        """Differs after each change of a record below a folder of JSON records (`state/pins`, ...); None if it is not
        known whether there were changes. Quick enough for the event loop.
        """

    def begin_listing(self) -> ListingStart:
        """To be called before the bucket is listed."""

    def compare(self, start: ListingStart, parts: Sequence[ListedPart]) -> int:
        """Compare parts of a listing. Records that the memory lacks are added. Those that differ, or that the listing
        lacks, become unknown, unless they were changed since the listing began. Returns how many were added or became
        unknown.
        """

    def listed_folders(self, after: str, before: str, count: int) -> Sequence[str]:
        """Up to `count` folders that have records directly in them, deleted ones included, between two keys, sorted."""

    def completed(self, start: ListingStart) -> bool:
        """Note that the whole bucket was compared. False if `adopt` has made the memory doubtful meanwhile."""

    def owner(self) -> tuple[str, str]:
        """The id of the bucket, and the nonce that `adopt` noted last; both empty at first."""

    def adopt(self, bucket: str, nonce: str, *, keeps: bool = False) -> None:
        """Note whose records are remembered. What is remembered of another bucket is forgotten; of the same one with
        another nonce, it is no longer trusted and not complete: another mirror has used the bucket. `keeps`: nobody
        has, and the nonce is a new one all the same.
        """

    def close(self) -> None:
        """Close the file. Repeatable."""

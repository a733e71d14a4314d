"""How far a migration has come, and what it has done."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Final

#: How many conflicts and problems a report lists; the others are counted.
_LISTED: Final = 1000


@dataclass(slots=True)
class MigrationReport:
    """What a pass did, or with `dry_run` would do. Sizes are in bytes.

    `conflicts` are records that differ and were left as they are, `problems` what could not be copied, as sentences by
    what they are about.
    """

    repositories: int = 0
    records_same: int = 0
    records_written: int = 0
    records_deleted: int = 0
    blobs_present: int = 0
    blobs_copied: int = 0
    bytes_copied: int = 0
    conflicts: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    #: Conflicts and problems beyond those that are listed.
    more: int = 0

    @property
    def changes(self) -> int:
        """How many records and blobs were written or deleted."""
        return self.records_written + self.records_deleted + self.blobs_copied

    @property
    def is_complete(self) -> bool:
        """True if the target now has all that the source had."""
        return not self.conflicts and not self.problems


class MigrationProgress:
    """Counts for a report, and for those who watch. May be used from any thread."""

    def __init__(self) -> None:
        self.report: Final = MigrationReport()
        #: What is to be done, as far as it is known; 0: not yet.
        self.all_bytes = 0
        self.all_records = 0
        #: Bytes that were read of blobs that are copied.
        self.read_bytes = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<MigrationProgress {self.records} records, {self.report.bytes_copied} bytes>"

    @property
    def records(self) -> int:
        """How many records were looked at."""
        report = self.report
        return report.records_same + report.records_written + report.records_deleted

    def repository(self) -> None:
        """A repository was finished."""
        with self._lock:
            self.report.repositories += 1

    def same(self, count: int) -> None:
        """So many records are the same on both sides."""
        with self._lock:
            self.report.records_same += count

    def written(self, count: int) -> None:
        """So many records were written."""
        with self._lock:
            self.report.records_written += count

    def deleted(self, count: int) -> None:
        """So many records were deleted in the target."""
        with self._lock:
            self.report.records_deleted += count

    def read(self, count: int) -> None:
        """So many bytes of a blob were read."""
        with self._lock:
            self.read_bytes += count

    def present(self) -> None:
        """The target had a blob already."""
        with self._lock:
            self.report.blobs_present += 1

    def copied(self, size: int) -> None:
        """A blob of `size` bytes was copied."""
        with self._lock:
            self.report.blobs_copied += 1
            self.report.bytes_copied += size

    def conflict(self, about: str, reason: str) -> None:
        """A record differs, and stays as it is."""
        self._list(self.report.conflicts, about, reason)

    def problem(self, about: str, reason: str) -> None:
        """Something could not be copied."""
        self._list(self.report.problems, about, reason)

    def _list(self, found: dict[str, str], about: str, reason: str) -> None:
        with self._lock:
            if about in found:
                return
            if len(found) < _LISTED:
                found[about] = reason
            else:
                self.report.more += 1

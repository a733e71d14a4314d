"""The second pass of collection: the bytes that no repository has.

    before the walk    what has waited long enough, with the versions of the records: `candidates`
    the walk           over every repository of every registry, see `repository_pass.py`: it marks what each one has
    after the walk     candidates that it did not meet go, by their versions; all else that it did not meet is queued

Whoever makes a link takes the bytes out of the queue first. So:

    the link was there when the walk began     the walk meets it, and the bytes stay
    it came later, and the bytes were taken    the record is gone, or has another version: they stay
    out of the queue after `candidates`
    they were taken out before that            then they were queued again since, and have waited for the grace time:
                                               whoever takes so long to make a link looks at the bytes once more

If the walk could not tell what some repository has, no bytes are judged in this round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from mirror.collection.collection_report import CollectionReport
from mirror.collection.marks import Marks
from mirror.collection.pace import CHANGE, NAME, RECORD, Pace
from mirror.collection.waiting import waiting_bytes
from mirror.errors import BlobUnknown, RecordChanged, RecordDamaged
from mirror.oci.digest import Digest
from mirror.policy.hosted.collection import ClockReading, Waited, waited
from mirror.policy.hosted_records import QueuedBlob
from mirror.ports import HostedBlobs, Version

#: Blobs that one round lets go at most: their versions are in memory while the repositories are walked.
MOST: Final = 100_000
#: Blobs that are listed in one step.
_PAGE: Final = 200


class BlobPass:
    """The bytes in one round. Generators, each of whose steps blocks for a short time."""

    def __init__(
        self,
        blobs: HostedBlobs,
        grace: float,
        now: Callable[[], ClockReading],
        report: CollectionReport,
        pace: Pace,
    ) -> None:
        self._blobs = blobs
        self._grace = grace
        self._now = now
        self._report = report
        self._pace = pace
        self._candidates: list[tuple[Digest, Version]] = []

    def __repr__(self) -> str:
        return f"<BlobPass {len(self._candidates)} candidates>"

    def candidates(self) -> Iterator[None]:
        """Reads what has waited long enough. Call it before the walk. Raises `StoreError`."""
        for record in self._blobs.all_queued():
            age = waited(record.queued_at, self._now(), self._grace)
            if age is Waited.UNKNOWN:
                self._queue_anew(record.digest)
            elif age is Waited.LONG_ENOUGH:
                if len(self._candidates) >= MOST:
                    self._report.more = True
                    return
                self._add(record)
            if self._pace.spent(RECORD if age is Waited.TOO_SHORT else RECORD * 2):
                yield

    def _add(self, record: QueuedBlob) -> None:
        with suppress(RecordDamaged):
            now_queued = self._blobs.queued(record.digest)
            # the record may have been replaced since it was listed
            if now_queued and now_queued.record == record:
                self._candidates.append((record.digest, now_queued.version))

    def judge(self, marks: Marks) -> Iterator[None]:
        """Collects and queues, after a complete walk that has marked what every repository has. Raises `StoreError`."""
        try:
            yield from self._collect_candidates(marks)
        finally:
            self._blobs.free_collected()
        yield from self._queue_others(marks)

    def _collect_candidates(self, marks: Marks) -> Iterator[None]:
        for digest, version in self._candidates:
            if digest in marks:
                with suppress(BlobUnknown):
                    self._blobs.rescue(digest)
            else:
                self._collect(digest, version)
            if self._pace.spent(CHANGE):
                yield
        self._candidates.clear()

    def _queue_others(self, marks: Marks) -> Iterator[None]:
        after: Digest | None = None
        while page := self._blobs.blobs(after, _PAGE):
            for info in page:
                if info.digest not in marks:
                    self._wait(info.digest, info.size)
                    if self._pace.spent(RECORD):
                        yield
                elif self._pace.spent(NAME):
                    yield
            after = page[-1].digest
        # damaged ones wait for a push that repairs them, as long as a repository has them
        for damaged in self._blobs.damaged():
            if damaged.digest not in marks:
                self._wait(damaged.digest, damaged.size)
            if self._pace.spent(RECORD):
                yield
        self._blobs.flush()

    def _collect(self, digest: Digest, version: Version) -> None:
        try:
            freed = self._blobs.collect(digest, version)
        except RecordChanged:
            return
        self._report.blobs += 1
        self._report.bytes += freed

    def _wait(self, digest: Digest, size: int) -> None:
        """Queues a blob that no repository has, unless it waits already."""
        now = self._now().later
        try:
            queued = self._blobs.queued(digest)
        except RecordDamaged:
            self._queue_anew(digest)
            queued = None
        else:
            if queued is None:
                with suppress(RecordChanged):
                    self._blobs.queue(QueuedBlob(digest, now))
                    self._report.blobs_queued += 1
        self._report.waiting_blobs += 1
        self._report.waiting_bytes += size
        record = queued.record if queued else QueuedBlob(digest, now)
        self._report.note_waiting(waiting_bytes(record, size, self._grace))

    def _queue_anew(self, digest: Digest) -> None:
        """Lets the wait of a blob begin anew: its record is damaged, or was dated by a wrong clock."""
        with suppress(BlobUnknown, RecordChanged):
            self._blobs.rescue(digest)
            self._blobs.queue(QueuedBlob(digest, self._now().later))

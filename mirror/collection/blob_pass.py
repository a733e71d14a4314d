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

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from typing import Final

from mirror.collection.ahead import ahead
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
        pool: Executor | None = None,
    ) -> None:
        """`pool` runs the threads that wait for a store which is far away."""
        self._blobs = blobs
        self._grace = grace
        self._now = now
        self._report = report
        self._pace = pace
        self._pool = pool
        self._candidates: list[tuple[Digest, Version]] = []

    def __repr__(self) -> str:
        return f"<BlobPass {len(self._candidates)} candidates>"

    def candidates(self) -> Iterator[None]:
        """Reads what has waited long enough. Call it before the walk. Raises `StoreError`."""
        for page in self._blobs.queued_pages():
            for record in page:
                age = waited(record.queued_at, self._now(), self._grace)
                if age is Waited.UNKNOWN:
                    self._queue_anew(record.digest)
                elif age is Waited.LONG_ENOUGH:
                    if len(self._candidates) >= MOST:
                        self._report.more = True
                        return
                    self._add(record)
                if age is not Waited.TOO_SHORT and self._pace.spent(RECORD):
                    yield
            # to find a page is a step, however few records it has
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
        for _, freed in ahead(self._pool, partial(self._collect, marks), self._candidates):
            if freed is not None:
                self._report.blobs += 1
                self._report.bytes += freed
            if self._pace.spent(CHANGE):
                yield
        self._candidates.clear()

    def _collect(self, marks: Marks, candidate: tuple[Digest, Version]) -> int | None:
        """Collects a blob that no repository has; returns its bytes. None if it stays."""
        digest, version = candidate
        if digest in marks:
            with suppress(BlobUnknown):
                self._blobs.rescue(digest)
            return None
        try:
            return self._blobs.collect(digest, version)
        except RecordChanged:
            return None

    def _queue_others(self, marks: Marks) -> Iterator[None]:
        after: Digest | None = None
        while page := self._blobs.blobs(after, _PAGE):
            if self._pace.spent(NAME * len(page)):
                yield
            yield from self._let_wait([(info.digest, info.size) for info in page if info.digest not in marks])
            after = page[-1].digest
        # damaged ones wait for a push that repairs them, as long as a repository has them
        damaged = self._blobs.damaged()
        yield from self._let_wait([(blob.digest, blob.size) for blob in damaged if blob.digest not in marks])
        self._blobs.flush()

    def _let_wait(self, blobs: Sequence[tuple[Digest, int]]) -> Iterator[None]:
        """Queues blobs that no repository has, unless they wait already, and counts them. They are given with their
        sizes.
        """
        for (digest, size), (record, is_new) in ahead(self._pool, self._wait, blobs):
            self._report.blobs_queued += is_new
            self._report.waiting_blobs += 1
            self._report.waiting_bytes += size
            self._report.note_waiting(waiting_bytes(record or QueuedBlob(digest, self._now().later), size, self._grace))
            if self._pace.spent(RECORD):
                yield

    def _wait(self, blob: tuple[Digest, int]) -> tuple[QueuedBlob | None, bool]:
        """Returns the record by which a blob waits, None if it is not known, and whether it waits from now on."""
        digest, _ = blob
        try:
            queued = self._blobs.queued(digest)
        except RecordDamaged:
            self._queue_anew(digest)
            return None, False
        if queued:
            return queued.record, False
        record = QueuedBlob(digest, self._now().later)
        try:
            self._blobs.queue(record)
        except RecordChanged:
            return None, False
        return record, True

    def _queue_anew(self, digest: Digest) -> None:
        """Lets the wait of a blob begin anew: its record is damaged, or was dated by a wrong clock."""
        with suppress(BlobUnknown, RecordChanged):
            self._blobs.rescue(digest)
            self._blobs.queue(QueuedBlob(digest, self._now().later))

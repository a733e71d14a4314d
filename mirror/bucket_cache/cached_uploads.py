"""Writes cached content to the bucket, behind the answers.

    add_blob(), add_record() ── waiting ──> a thread ──┬─ the bucket has it, or the disk has lost it ──> nothing
                                  ^                    ├─ written ── still on the disk? ── no ──> deleted there, too
                                  │                    └─ the bucket does not answer ──┐
                                  └──────────────── later ─────────────────────────────┘

What waits are names: the content is read from the disk when its turn comes, in its latest state. What was purged by
then is therefore not written. If it is purged while it is written, it is deleted again, because the purge may have
looked at the bucket before. A record that is gone is deleted from the bucket, too: that is how a tag that upstream does
not have any more leaves it.

What waits survives nothing: a crash loses it, and so does a stop that takes too long. Content that is used again is
offered again. Above a number of waiting names, new ones are dropped and counted.

One thread of all processes at a time writes a blob or record (`hold`). Two that are about different ones rarely have
the same lock; then one of them comes later.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Final, TypeAlias

from mirror import telemetry
from mirror.bucket_cache.cached_keys import CachedRecord, RecordKind, blob_key
from mirror.bucket_cache.cached_objects import DAMAGED
from mirror.bucket_cache.site_records import SiteRecords, mark_of
from mirror.errors import BlobUnknown, BucketUnavailable, IndexUnavailable, StoreError
from mirror.oci.digest import Digest
from mirror.ports import Blobs, BookedObject, BookedRecord, Bucket, ObjectBook, OrderedPurges, SupportsFileno

#: Names that wait at most.
_MOST: Final = 20_000
#: Threads that write blobs. Records have one of their own, so that they do not wait for large blobs.
_THREADS: Final = 2
#: Seconds after which the record of a tag that has not moved is written again: a mirror that is cut off judges by it
#: how old its answers are.
_AGAIN: Final = 3600.0
#: Seconds between two attempts while the bucket does not answer: at least, and at most.
_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0
#: Seconds until a name is tried again whose lock another thread has.
_BUSY: Final = 0.1
#: Seconds after which nobody waits any more for a bucket that takes nothing.
_GIVE_UP: Final = 10.0
#: Seconds between two looks whether anything waits.
_LOOK: Final = 0.02

_Work: TypeAlias = Digest | CachedRecord


class CachedUploads:
    """What waits to be written to the bucket, in one process."""

    def __init__(
        self,
        bucket: Bucket,
        book: ObjectBook,
        store: Blobs,
        records: SiteRecords,
        *,
        hold: Callable[[str], AbstractContextManager[object] | None],
        largest: int | None = None,
        most: int = _MOST,
        give_up: float = _GIVE_UP,
        purges: OrderedPurges | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`hold` takes a lock of that name if no thread of any process has it. A blob above `largest` bytes is not
        kept. Who waits until all is written gives up if the bucket takes nothing for `give_up` seconds. In a cluster,
        nothing is written before the `purges` of other replicas are heeded here. `now` is in epoch seconds.
        """
        self._bucket = bucket
        self._book = book
        self._store = store
        self._records = records
        self._hold = hold
        self._largest = largest
        self._most = most
        self._give_up = give_up
        self._purges = purges
        self._now = now
        #: Threads take from it; None ends one of them.
        self._blobs: SimpleQueue[_Work | None] = SimpleQueue()
        self._changes: SimpleQueue[_Work | None] = SimpleQueue()
        #: What is in these queues, and what threads are at work on. Sets are changed by single calls, which are atomic.
        self._waiting: set[_Work] = set()
        self._writing: set[_Work] = set()
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._is_full = False
        #: Keys of writes that failed, and may arrive late all the same. They wait to be written again.
        self._unsure: set[str] = set()
        #: Why the bucket took nothing at the last attempt; None if it did.
        self.trouble: str | None = None
        #: Since when that is so, by the monotonic clock.
        self._troubled_at = 0.0

    def __repr__(self) -> str:
        return f"<CachedUploads {self.waiting} waiting{', stopping' if self._stopping.is_set() else ''}>"

    @property
    def waiting(self) -> int:
        """How many names wait or are being written."""
        return len(self._waiting) + len(self._writing)

    def add_blob(self, digest: Digest) -> None:
        """Let a blob of the disk be written behind. Cheap, for the event loop; never blocks."""
        self._add(digest, self._blobs)

    def add_record(self, record: CachedRecord) -> None:
        """Let a record that was written or dropped be so in the bucket as well. Cheap, for the event loop."""
        self._add(record, self._changes)

    def write_now(self, work: Digest | CachedRecord) -> bool:
        """Blocking: let a blob or record of the disk be in the bucket. False if another thread is at it. Raises
        `StoreError`.
        """
        return self._do(work)

    def _add(self, work: _Work, queue: SimpleQueue[_Work | None]) -> None:
        if work in self._waiting or self._stopping.is_set():
            return
        if len(self._waiting) >= self._most:
            telemetry.BUCKET_CACHE_DROPPED.labels("full").inc()
            if not self._is_full:
                self._is_full = True
                telemetry.log.warning("bucket cache drops content", reason="too much waits", waiting=len(self._waiting))
            return
        self._waiting.add(work)
        queue.put(work)
        if not self._threads:
            self._start()

    def _start(self) -> None:
        for queue in (*[self._blobs] * _THREADS, self._changes):
            # daemons: an upload that hangs must not keep the process from ending
            thread = threading.Thread(target=self._run, args=(queue,), name="bucket-cache", daemon=True)
            self._threads.append(thread)
            thread.start()

    async def settle(self, patience: float) -> int:
        """Wait until all is written, up to `patience` seconds, and not for long for a bucket that takes nothing.
        Returns how many names still wait.
        """
        ends = time.monotonic() + patience
        # threads do the work: none of them can set an event of this loop
        while self.waiting and not self._is_hopeless() and time.monotonic() < ends:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK)
        return self.waiting

    def _is_hopeless(self) -> bool:
        return self.trouble is not None and time.monotonic() - self._troubled_at >= self._give_up

    async def aclose(self, patience: float) -> None:
        """Like `settle`; then drop the rest. Nothing can be added any more. Repeatable."""
        try:
            await self.settle(patience)
        finally:
            self._stopping.set()
            if left := self.waiting:
                telemetry.BUCKET_CACHE_DROPPED.labels("stopped").inc(left)
                telemetry.log.warning("bucket cache drops content", reason=self.trouble or "stopped", waiting=left)
            self._waiting.clear()
            telemetry.BUCKET_CACHE_WAITING.set(0)
            for _ in self._threads:
                self._blobs.put(None)
                self._changes.put(None)

    # ------------------------------------------------------------------------------------------------ the threads

    def _run(self, queue: SimpleQueue[_Work | None]) -> None:
        while (work := queue.get()) is not None and not self._stopping.is_set():
            # first into the one, then out of the other: it must not look as if nothing waited
            self._writing.add(work)
            self._waiting.discard(work)
            pause = self._attempt(work, queue)
            self._writing.discard(work)
            if not self.waiting:
                self._is_full = False
            telemetry.BUCKET_CACHE_WAITING.set(self.waiting)
            if pause:
                self._stopping.wait(pause)

    def _attempt(self, work: _Work, queue: SimpleQueue[_Work | None]) -> float:
        """Do the work, or put it back. Returns the seconds to wait until the next."""
        try:
            if self._do(work):
                self.trouble = None
                return 0.0
        except BucketUnavailable as error:
            self._failed(error)
            pause = min(max(_PAUSE, error.retry_after or 0.0), _LONGEST_PAUSE)
        except StoreError as error:
            telemetry.BUCKET_CACHE_DROPPED.labels("failed").inc()
            telemetry.log.warning("cached content not kept in bucket", what=_name(work), reason=str(error))
            return 0.0
        except Exception:
            # go on after any error: without this thread nothing is written any more
            telemetry.BUCKET_CACHE_DROPPED.labels("failed").inc()
            telemetry.log.exception("bucket cache crashed", what=_name(work))
            return 0.0
        else:
            pause = _BUSY
        if not self._stopping.is_set():
            self._waiting.add(work)
            queue.put(work)
        return pause

    def _failed(self, error: BucketUnavailable) -> None:
        if self.trouble is None:
            telemetry.log.warning("bucket cache waits for bucket", reason=str(error))
            self._troubled_at = time.monotonic()
        self.trouble = str(error)

    def _do(self, work: _Work) -> bool:
        """False if another thread is at it. Raises `StoreError`."""
        if self._purges is not None:
            self._purges.require_heeded()
        lock = self._hold(_lock(work))
        if lock is None:
            return False
        with lock:
            if isinstance(work, CachedRecord):
                self._write_record(work)
            else:
                self._write_blob(work)
        return True

    def _write_blob(self, digest: Digest) -> None:
        if self._booked(digest):
            return
        key = blob_key(digest)
        try:
            info, reader = self._store.open(digest)
        except BlobUnknown:
            if key in self._unsure:
                self.delete([key], blobs=[digest])
                self._unsure.discard(key)
            return
        with closing(reader):
            if self._largest is not None and info.size > self._largest:
                return
            found = None if self._is_complete() else self._bucket.head(key)
            if found is None or found.size != info.size:
                if not isinstance(reader, SupportsFileno):
                    raise StoreError("the store has no files")
                # the kernel's name for the open file: its own name may be evicted meanwhile
                with self._doubted(key):
                    self._bucket.upload(key, Path(f"/proc/self/fd/{reader.fileno()}"), info.size)
                telemetry.BUCKET_CACHE_WRITTEN.inc()
                telemetry.BUCKET_CACHE_WRITTEN_BYTES.inc(info.size)
        with suppress(IndexUnavailable):
            self._book.put([BookedObject(digest, info.size, self._now())])
        try:
            self._store.stat(digest)
        except BlobUnknown:
            self.delete([key], blobs=[digest])

    def _write_record(self, record: CachedRecord) -> None:
        key, content = record.key, self._records.content(record)
        booked = None
        with suppress(IndexUnavailable):
            booked = self._book.record(key)
        if content is None:
            # a history is not dropped here: there is none yet, or the disk has forgotten the tag
            if record.kind is not RecordKind.HISTORY and (
                booked is not None or key in self._unsure or not self._is_complete()
            ):
                self.delete([key])
                self._unsure.discard(key)
            return
        mark, now = mark_of(record, content), self._now()
        is_recent = booked is not None and 0 <= now - booked.written_at < _AGAIN
        if booked and booked.mark == mark and (is_recent or record.kind is not RecordKind.TAG):
            return
        with self._doubted(key):
            self._bucket.write(key, content)
        with suppress(IndexUnavailable):
            self._book.put_record(key, BookedRecord(mark, now))
        if self._records.content(record) is None:
            self.delete([key])

    @contextmanager
    def _doubted(self, key: str) -> Iterator[None]:
        """A write of this key: if it fails, what is purged before the next attempt must be deleted then."""
        self._unsure.add(key)
        yield
        self._unsure.discard(key)

    def delete(self, keys: Sequence[str], *, blobs: Sequence[Digest] = ()) -> None:
        """Blocking: delete objects and records from the bucket, and from the book those that are `blobs`, and the
        records. Raises `StoreError`.
        """
        self._bucket.delete(keys)
        with suppress(IndexUnavailable):
            self._book.drop(blobs)
            self._book.drop_records(keys)

    def _booked(self, digest: Digest) -> bool:
        with suppress(IndexUnavailable):
            size = self._book.find(digest)
            return size is not None and size != DAMAGED
        return False

    def _is_complete(self) -> bool:
        """True if the bucket has nothing that the book lacks."""
        with suppress(IndexUnavailable):
            return self._book.completed_at() is not None
        return False


def _name(work: _Work) -> str:
    return work.key if isinstance(work, CachedRecord) else str(work)


def _lock(work: _Work) -> str:
    if isinstance(work, CachedRecord):
        return f"bucketrecord-{hashlib.blake2b(work.key.encode(), digest_size=1).hexdigest()}"
    return f"bucketblob-{work.hex[:2]}"

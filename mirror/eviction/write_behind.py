"""Writes uses, new blobs, and what manifests name to the index and the disk, with a delay if need be.

    use of a blob ── touch() ──> in memory ── flush(), each second ──> index (order) and, hourly, the disk (used_at)
    new blob ── record_blob() ──────────────> index ──┬─> recorded there
    new manifest ── record_references() ────> index ──┤
                                                      └── index does not answer: in memory, bounded ── flush() ──> index
    put on the disk by a thread ── stored() ──> in memory ── flush() ──> index

If the index is down, nothing here fails or waits for it. The failure is logged once, and the index is sent what it
missed as soon as it answers. What does not fit in memory until then is found by the daily reconciliation with the disk.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import islice
from typing import Final

from mirror import telemetry
from mirror.aio.caches import LruCache
from mirror.errors import BlobUnknown, IndexUnavailable, StoreError
from mirror.eviction.reconcile import is_whole
from mirror.oci.digest import Digest
from mirror.policy.records import ContentRecord, References
from mirror.ports import BlobInfo, BlobStore, ContentIndex

#: Uses kept in memory while the index does not answer; the oldest are dropped first.
_MOST_TOUCHES: Final = 100_000
#: Seconds between two writes of a blob's time of use to the disk.
_COARSE: Final = 3600.0
#: The most manifests, and the most blobs, that wait in memory for the index.
_MOST_REFERENCES: Final = 10_000
_MOST_BLOBS: Final = 100_000


class WriteBehind:
    """The pending writes to index and disk, one instance in each process that fills the store."""

    def __init__(
        self,
        store: BlobStore,
        index: ContentIndex,
        *,
        now: Callable[[], float],
        most_blobs: int = _MOST_BLOBS,
        used: Callable[[Mapping[Digest, float]], None] | None = None,
    ) -> None:
        """At most `most_blobs` blobs wait in memory for an index that does not answer. `used` blocks; it is called with
        the uses that are written to the disk, at most one of each blob in an hour.
        """
        self._used = used
        self._most_blobs = most_blobs
        self._store = store
        self._index = index
        self._now = now
        self._touches: dict[Digest, float] = {}
        self._unmarked: dict[Digest, float] = {}
        self._marked: dict[Digest, float] = {}
        self._waiting_references = _waiting_references()
        #: Blobs that arrived while the index did not answer; the values are not used.
        self._waiting_blobs = _blobs_cache(most_blobs)
        #: Blobs that threads have put on the disk; any thread may append.
        self._stored: deque[Digest] = deque(maxlen=most_blobs)
        #: When a client last used a blob of this process, in epoch seconds; -inf if none did. Threads read it.
        self.used_here_at = float("-inf")
        #: How many seconds ago a client was served at any worker, as far as that is known here. For any thread.
        self.idle_elsewhere: Callable[[], float] = lambda: float("inf")
        #: Why the last call of the index failed; None if it did not.
        self.trouble: str | None = None
        #: Set when the index answers again after a failure. Cleared by the task that repairs what the index missed.
        self.index_came_back = asyncio.Event()

    def __repr__(self) -> str:
        return (
            f"<WriteBehind touches={len(self._touches)} blobs={len(self._waiting_blobs)} "
            f"references={len(self._waiting_references)} trouble={self.trouble!r}>"
        )

    @property
    def used_at(self) -> float:
        """When a client last used a blob, here or at another worker, in epoch seconds; -inf if that is not known."""
        return max(self.used_here_at, self._now() - self.idle_elsewhere())

    # ------------------------------------------------------------------------------------------------------ writes

    def touch(self, digest: Digest) -> None:
        """Notes that a blob was used. Cheap: a few dictionary operations."""
        self.used_here_at = now = self._now()
        _remember(self._touches, digest, now)
        if now - self._marked.get(digest, float("-inf")) >= _COARSE:
            _remember(self._marked, digest, now)
            _remember(self._unmarked, digest, now)

    def uses(self) -> dict[Digest, float]:
        """Returns the times of use (epoch seconds) that were not yet written to the index. The disk lacks most of them
        too.
        """
        return dict(self._touches)

    async def record_blob(self, info: BlobInfo) -> None:
        """Records a new blob in the index. If the index does not answer, the blob is recorded by a later flush: a blob
        that the index does not know is neither counted nor ever dropped.
        """
        try:
            await self._index.put([ContentRecord(info.digest, info.size, self._now())])
        except BaseException as error:
            self._waiting_blobs[info.digest] = None
            if not isinstance(error, IndexUnavailable):
                raise
            self.note_down(error)

    def stored(self, info: BlobInfo) -> None:
        """Notes a blob that a thread has put on the disk: the next flush records it. For any thread."""
        self._stored.append(info.digest)

    async def record_references(self, references: References, size: int) -> None:
        """Records in the index what a new manifest of `size` bytes names. If the index does not answer, the next flush
        does so.
        """
        record = ContentRecord(references.digest, size, self._now())
        self._waiting_references[references.digest] = references, record
        await self._send_references()

    async def forget(self, digests: list[Digest]) -> None:
        """Drops the records of blobs that were dropped, except of those that were fetched again at the same moment."""
        try:
            await self._index.drop(digests)
            try:
                again = await asyncio.to_thread(self.present, digests)
            except StoreError:
                # one of them may be here again: the next flush checks
                self._waiting_blobs.update(dict.fromkeys(digests))
                return
            if again:
                await self._index.put(again)
        except IndexUnavailable as error:
            # a record without a file is dropped when it is next chosen for eviction
            self.note_down(error)

    # ---------------------------------------------------------------------------------------------------- flushing

    async def flush(self) -> None:
        """Writes everything pending to index and disk. What the index cannot take now is kept for the next flush."""
        await self._flush_to_disk()
        await self._flush_blobs()
        await self._flush_references()
        touches, self._touches = self._touches, {}
        if not touches:
            return
        try:
            await self._index.touch(touches)
        except IndexUnavailable as error:
            self._put_back(touches)
            self.note_down(error)
        except BaseException:
            self._put_back(touches)
            raise
        else:
            self._note_up()

    async def _flush_to_disk(self) -> None:
        unmarked, self._unmarked = self._unmarked, {}
        if unmarked:
            try:
                await asyncio.to_thread(self._store.mark_used, unmarked)
            except StoreError as error:
                telemetry.log.warning("times of use cannot be written", reason=str(error))
            if self._used is not None:
                await asyncio.to_thread(self._used, unmarked)

    async def _flush_blobs(self) -> None:
        while self._stored:
            self._waiting_blobs[self._stored.popleft()] = None
        if not self._waiting_blobs or not self.index_up:
            return
        blobs, self._waiting_blobs = self._waiting_blobs, _blobs_cache(self._most_blobs)
        try:
            # leaves out blobs that were dropped meanwhile
            await self._index.put(await asyncio.to_thread(self.present, list(blobs)))
        except BaseException as error:
            blobs.update(self._waiting_blobs)
            self._waiting_blobs = blobs
            if not isinstance(error, IndexUnavailable):
                raise
            self.note_down(error)

    async def _flush_references(self) -> None:
        if self._waiting_references:
            waiting = list(self._waiting_references)
            here = {record.digest for record in await asyncio.to_thread(self.present, waiting)}
            # leave out manifests that were dropped meanwhile: the index would count them
            for digest in waiting:
                if digest not in here:
                    self._waiting_references.pop(digest, None)
        await self._send_references()

    async def _send_references(self) -> None:
        if not self._waiting_references:
            return
        waiting, self._waiting_references = self._waiting_references, _waiting_references()
        try:
            # the manifest's own record comes first: without it the index does not accept what the manifest names
            await self._index.put([record for _, record in waiting.values()])
            await self._index.record_references([references for references, _ in waiting.values()])
        except BaseException as error:
            waiting.update(self._waiting_references)
            self._waiting_references = waiting
            if not isinstance(error, IndexUnavailable):
                raise
            self.note_down(error)

    def _put_back(self, touches: Mapping[Digest, float]) -> None:
        """Puts uses back, before those that were noted meanwhile and are later. The oldest above the limit are lost."""
        merged = {**touches, **self._touches}
        self._touches = dict(islice(merged.items(), max(0, len(merged) - _MOST_TOUCHES), None))

    def present(self, digests: list[Digest]) -> list[ContentRecord]:
        """Blocking: returns the records, read from the disk, of those digests that are there. Raises `StoreError` if
        the disk cannot be read.
        """
        records = []
        for digest in digests:
            with suppress(BlobUnknown):
                info = self._store.stat(digest)
                records.append(ContentRecord(digest, info.size, info.used_at))
        return records

    # ------------------------------------------------------------------------------------ the state of the index

    @property
    def index_up(self) -> bool:
        """True if the index answered the last call."""
        return self.trouble is None

    async def index_is_whole(self) -> bool:
        """True if the index answers and knows everything that the disk has."""
        try:
            whole = await is_whole(self._index)
        except IndexUnavailable as error:
            self.note_down(error)
            return False
        self._note_up()
        return whole

    def note_down(self, error: IndexUnavailable) -> None:
        """Notes that the index did not answer just now; logs this once."""
        if self.index_up:
            self.trouble = str(error)
            telemetry.log.warning("eviction runs without index", reason=str(error))

    def _note_up(self) -> None:
        if not self.index_up:
            self.trouble = None
            self.index_came_back.set()
            telemetry.log.info("eviction uses index again")


def _blobs_cache(most: int) -> LruCache[Digest, None]:
    return LruCache(most, name="blobs waiting for the index")


def _waiting_references() -> LruCache[Digest, tuple[References, ContentRecord]]:
    return LruCache(_MOST_REFERENCES, name="manifests waiting for the index")


def _remember(times: dict[Digest, float], digest: Digest, now: float) -> None:
    """Adds `digest` as the latest; drops the oldest if there are too many."""
    times.pop(digest, None)
    times[digest] = now
    if len(times) > _MOST_TOUCHES:
        del times[next(iter(times))]

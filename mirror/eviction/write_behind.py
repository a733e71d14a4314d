"""What the index and the disk are told a little later: uses, blobs that have come, and what manifests name.

    used ── touch() ──> in memory ── flush(), each second ──> index (order) and, hourly, the disk (used_at)
    came ── arrived() ──> index ─┬─> known there
    names ── name() ──> index ───┤
                                 └── it does not answer: in memory, bounded ── flush() ──> index

Nothing here fails, or waits, for an index that is down: it is noted, said once in the log, and told what it missed as
soon as it answers. What does not fit in memory until then is found by the daily comparison with the disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Final

from mirror import telemetry
from mirror.errors import BlobUnknown, IndexUnavailable, StoreError
from mirror.eviction.reconcile import is_whole
from mirror.oci.digest import Digest
from mirror.policy.records import ContentRecord, References
from mirror.ports import BlobInfo, BlobStore, ContentIndex

__all__ = ["WriteBehind"]

#: Uses kept in memory while the index cannot take them; the oldest go first.
_MOST_TOUCHES: Final = 100_000
#: Seconds between two notes of a blob's use on disk.
_COARSE: Final = 3600.0
#: Manifests whose names wait for the index, and blobs that do.
_MOST_UNNAMED: Final = 10_000
_MOST_UNTOLD: Final = 100_000


class WriteBehind:
    """One in each process that fills the store."""

    def __init__(self, store: BlobStore, index: ContentIndex, *, now: Callable[[], float]) -> None:
        self._store = store
        self._index = index
        self._now = now
        self._touches: dict[Digest, float] = {}
        self._unmarked: dict[Digest, float] = {}
        self._marked: dict[Digest, float] = {}
        self._unnamed: dict[Digest, tuple[References, ContentRecord]] = {}
        #: Blobs that came while the index did not answer; in order of arrival, the values say nothing.
        self._untold: dict[Digest, None] = {}
        #: Why the index was of no use when it was last asked; None: it was.
        self.trouble: str | None = None
        #: Set when the index answers again after it did not; cleared by whoever sees to what it may have missed.
        self.index_came_back = asyncio.Event()

    # ------------------------------------------------------------------------------------------------- what is told

    def touch(self, digest: Digest) -> None:
        """A blob was used. Cheap: a few dictionary operations."""
        now = self._now()
        _remember(self._touches, digest, now)
        if now - self._marked.get(digest, float("-inf")) >= _COARSE:
            _remember(self._marked, digest, now)
            _remember(self._unmarked, digest, now)

    def uses(self) -> dict[Digest, float]:
        """Of which neither index nor disk know yet: when, in epoch seconds."""
        return dict(self._touches)

    async def arrived(self, info: BlobInfo) -> None:
        """A blob is here. What the index cannot take now is told once it answers again: a blob that it does not know is
        neither counted nor ever dropped.
        """
        try:
            await self._index.put([ContentRecord(info.digest, info.size, self._now())])
        except BaseException as error:
            self._untold[info.digest] = None
            if len(self._untold) > _MOST_UNTOLD:
                del self._untold[next(iter(self._untold))]
            if not isinstance(error, IndexUnavailable):
                raise
            self.note_down(error)

    async def name(self, names: References, size: int) -> None:
        """A manifest of `size` bytes is here. What the index cannot take now is told with the next flush."""
        self._unnamed[names.digest] = names, ContentRecord(names.digest, size, self._now())
        if len(self._unnamed) > _MOST_UNNAMED:
            del self._unnamed[next(iter(self._unnamed))]
        await self._tell_names()

    async def forget(self, digests: list[Digest]) -> None:
        """Blobs were dropped: their records go, except of one that was fetched again in the very moment."""
        try:
            await self._index.drop(digests)
            try:
                again = await asyncio.to_thread(self.present, digests)
            except StoreError:
                # one may be here again: the next flush looks once more
                self._untold.update(dict.fromkeys(digests))
                return
            if again:
                await self._index.put(again)
        except IndexUnavailable as error:
            # records without files are dropped when they are met
            self.note_down(error)

    # ---------------------------------------------------------------------------------------------------- flushing

    async def flush(self) -> None:
        """Tell index and disk of what came since. What the index cannot take now is kept for the next time."""
        await self._flush_to_disk()
        await self._flush_untold()
        await self._flush_names()
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
                telemetry.log.warning("evictor.mark_failed", reason=str(error))

    async def _flush_untold(self) -> None:
        if not self._untold or not self.index_up:
            return
        untold, self._untold = self._untold, {}
        try:
            # some may have been dropped meanwhile
            await self._index.put(await asyncio.to_thread(self.present, list(untold)))
        except BaseException as error:
            self._untold = {**untold, **self._untold}
            if not isinstance(error, IndexUnavailable):
                raise
            self.note_down(error)

    async def _flush_names(self) -> None:
        if self._unnamed:
            waiting = list(self._unnamed)
            here = {record.digest for record in await asyncio.to_thread(self.present, waiting)}
            # some may have been dropped meanwhile: the index would count them
            for digest in waiting:
                if digest not in here:
                    self._unnamed.pop(digest, None)
        await self._tell_names()

    async def _tell_names(self) -> None:
        unnamed, self._unnamed = self._unnamed, {}
        if not unnamed:
            return
        try:
            # the blob too: of one that it does not know, the index takes no names
            await self._index.put([record for _, record in unnamed.values()])
            await self._index.name([names for names, _ in unnamed.values()])
        except BaseException as error:
            self._unnamed = {**unnamed, **self._unnamed}
            if not isinstance(error, IndexUnavailable):
                raise
            self.note_down(error)

    def _put_back(self, touches: Mapping[Digest, float]) -> None:
        """Before what came meanwhile, which is later; the oldest beyond the bound are lost."""
        merged = {**touches, **self._touches}
        self._touches = dict(islice(merged.items(), max(0, len(merged) - _MOST_TOUCHES), None))

    def present(self, digests: list[Digest]) -> list[ContentRecord]:
        """Blocking: of those that are on disk, as the disk has them. Raises `StoreError` if that cannot be told."""
        found = []
        for digest in digests:
            try:
                info = self._store.stat(digest)
            except BlobUnknown:
                continue
            found.append(ContentRecord(digest, info.size, info.used_at))
        return found

    # ------------------------------------------------------------------------------------------ how the index is

    @property
    def index_up(self) -> bool:
        """Whether the index answered when it was asked last."""
        return self.trouble is None

    async def index_is_whole(self) -> bool:
        """Whether it answers, and knows what the disk has."""
        try:
            whole = await is_whole(self._index)
        except IndexUnavailable as error:
            self.note_down(error)
            return False
        self._note_up()
        return whole

    def note_down(self, error: IndexUnavailable) -> None:
        """It did not answer just now."""
        if self.index_up:
            self.trouble = str(error)
            telemetry.log.warning("evictor.without_index", reason=str(error))

    def _note_up(self) -> None:
        if not self.index_up:
            self.trouble = None
            self.index_came_back.set()
            telemetry.log.info("evictor.with_index")


def _remember(times: dict[Digest, float], digest: Digest, now: float) -> None:
    """As the latest; the oldest goes where there are too many."""
    times.pop(digest, None)
    times[digest] = now
    if len(times) > _MOST_TOUCHES:
        del times[next(iter(times))]

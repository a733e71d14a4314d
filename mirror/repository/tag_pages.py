"""Pages of the tag list of a proxied repository.

    a page that is in memory ─────────────────────────────────────────────────────────────────> given
    upstream sorts (as far as each page shows) ── its pages from `last` on, no more than needed ──> cached, given
    it does not ── all of it ──┬── at most `_IN_MEMORY` tags ──> sorted, cached, given
                               └── more ──> sorted on disk (`SortedTags`) ──> given from there

So the first page of a sorted list costs about one request, however long the list is. The mirror remembers that a list
is not sorted, because the beginning of such a list may look sorted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from mirror.aio.memo import MISSING
from mirror.caller import caller_key, caller_mark
from mirror.errors import UpstreamInvalid, UpstreamUnavailable
from mirror.intake.intake import Intake
from mirror.oci.reference import Repo, is_tag
from mirror.policy.upstream.tag_order import ascending
from mirror.ports import TagBatch, TagGathering, Upstream
from mirror.repository.caches import Caches
from mirror.repository.questions import Questions
from mirror.repository.tag_windows import Window

#: Seconds for which a list of tags or referrers is believed.
LIST_FOR: Final = 60.0
#: A list is believed for at least this many times as long as it took to fetch.
_WORTH: Final = 10.0
#: Seconds for which a list is remembered as not sorted.
_UNSORTED_FOR: Final = 3600.0
#: Tags of the longest list that is sorted in memory.
_IN_MEMORY: Final = 20_000
#: Upstream's batches that are read for one page. If they are very small, the page is shorter than the client asked for.
_MOST_BATCHES: Final = 100
#: Batches in a row without a new tag, after which the list counts as endless.
_MOST_IDLE: Final = 8
#: A list may repeat as many tags as it has, and this many more.
_MOST_REPEATED: Final = 20_000


class TagPages:
    """The tag pages of one repository. Cheap to make: it keeps no state of its own."""

    def __init__(self, repo: Repo, upstream: Upstream, caches: Caches, questions: Questions, intake: Intake) -> None:
        self._repo = repo
        self._upstream = upstream
        self._lists = caches.lists
        self._now = caches.now
        self._memo = questions.memo
        self._write = intake.write

    async def page(self, last: str, count: int) -> TagBatch:
        """Returns up to `count` tags after `last`, sorted. Raises `UpstreamError`, and `StoreError` if a long unsorted
        list cannot be written to disk.
        """
        page = self._lists.page(self._repo, caller_mark(), last, count, self._now())
        if page is not None:
            return page
        unsorted = await self._memo.get(self._unsorted) is not MISSING
        if unsorted and (stored := await self._stored(last, count)):
            return stored
        after = "" if unsorted else _tag_before(last)
        key = caller_key(f"tags {self._repo} {'all' if unsorted else f'{count} behind {last} from {after}'}")
        made = await self._memo.share(key, lambda: self._ask(after, last, count, unsorted), self._believed)
        if made is None:
            page = await self._stored(last, count)
        else:
            window = Window.from_json(made)
            self._lists.put(self._repo, caller_mark(), window)
            page = window.page(last, count)
        if page is None:
            raise UpstreamUnavailable(
                f"the tag list of {self._repo} was dropped while it was read", upstream=self._upstream.name
            )
        return page

    @property
    def _unsorted(self) -> str:
        return f"unsorted tags {self._repo}"

    async def _stored(self, last: str, count: int) -> TagBatch | None:
        return await asyncio.to_thread(self._lists.sorted.page, caller_key(str(self._repo)), last, count)

    def _believed(self, made: dict[str, Any] | None) -> float:
        return made["until"] - self._now() if made else 0.0

    async def _ask(self, after: str, last: str, count: int, unsorted: bool) -> dict[str, Any] | None:
        """Asks upstream. Returns a window from `after` on, as JSON; None if the list is on disk now."""
        since = self._now()
        name = self._repo.name
        taken: list[TagBatch] = []
        async with aclosing(self._upstream.tags(name, after)) as batches:
            sorted_part = None if unsorted else await self._in_order(batches, taken, after, last, count)
            if sorted_part is not None:
                until = self._until(since)
                return Window(after, sorted_part.tags, sorted_part.more, count, since, until).to_json()
            await self._memo.put(self._unsorted, True, _UNSORTED_FOR)
            self._lists.drop(self._repo, caller_mark())
            if not unsorted and await self._stored(last, count):
                # another process has sorted the list on disk
                return None
            if not after:
                async with aclosing(_chained(taken, batches)) as all_batches:
                    return await self._sort(all_batches, since)
        async with aclosing(self._upstream.tags(name)) as batches:
            return await self._sort(batches, since)

    async def _in_order(
        self, batches: AsyncIterator[TagBatch], taken: list[TagBatch], after: str, last: str, count: int
    ) -> TagBatch | None:
        """Returns tags until there are `count` of them after `last`; None if they are not sorted. Appends each batch
        that was read to `taken`.
        """
        tags: list[str] = []
        behind, needed, progress = after, max(count, 1), _Progress(self._repo, self._upstream.name)
        async for batch in batches:
            taken.append(batch)
            fresh = ascending(batch.tags, behind)
            if fresh is None:
                return None
            tags += fresh
            behind = tags[-1] if tags else after
            progress.note(len(batch.tags), len(tags))
            needed -= sum(tag > last for tag in fresh) if fresh and fresh[0] <= last else len(fresh)
            if needed <= 0 or not batch.more or (progress.batches >= _MOST_BATCHES and tags):
                return TagBatch(tuple(tags), batch.more)
        return TagBatch(tuple(tags), False)

    async def _sort(self, batches: AsyncIterator[TagBatch], since: float) -> dict[str, Any] | None:
        """Sorts a whole list. Returns its window, as JSON; None if it is too long for memory and is on disk now."""
        few: set[str] = set()
        gathering: TagGathering | None = None
        progress = _Progress(self._repo, self._upstream.name)
        try:
            async for batch in batches:
                tags: Sequence[str] = batch.tags
                if gathering is None:
                    few.update(tags)
                    progress.note(len(tags), len(few))
                    if len(few) <= _IN_MEMORY:
                        continue
                    gathering = await asyncio.to_thread(self._lists.sorted.gather, caller_key(str(self._repo)))
                    tags, few = list(few), set()
                    await self._write(gathering.add, tags)
                else:
                    await self._write(gathering.add, tags)
                    progress.note(len(tags), gathering.count)
                self._check_size(gathering)
            if gathering is None:
                return Window("", tuple(sorted(few)), False, len(few), since, self._until(since)).to_json()
            await self._write(gathering.publish, self._until(since))
            return None
        finally:
            if gathering is not None:
                gathering.close()

    def _check_size(self, gathering: TagGathering) -> None:
        most = self._lists.sorted.most_bytes
        if gathering.size > most:
            raise UpstreamInvalid(
                f"the tag list of {self._repo} is not sorted, and to sort it takes more than tag_lists_max_size "
                f"({most} bytes)",
                upstream=self._upstream.name,
                status=200,
            )

    def _until(self, since: float) -> float:
        now = self._now()
        return now + max(LIST_FOR, _WORTH * (now - since))


@dataclass(slots=True)
class _Progress:
    """Detects a list that repeats itself without end, since each batch costs a request or time to read."""

    repo: Repo
    upstream: str
    batches: int = 0
    _idle: int = 0
    _seen: int = 0
    _different: int = 0

    def note(self, seen: int, different: int) -> None:
        """Counts a batch of `seen` tags, after which there are `different` tags in all. Raises `UpstreamInvalid`."""
        self.batches += 1
        self._idle = 0 if different > self._different else self._idle + 1
        self._different = different
        self._seen += seen
        if self._idle >= _MOST_IDLE or self._seen - different > different + _MOST_REPEATED:
            raise UpstreamInvalid(
                f"the tag list of {self.repo} repeats itself without end", upstream=self.upstream, status=200
            )


def _tag_before(last: str) -> str:
    """Returns the longest prefix of `last` that is a tag. Clients may send any text, and upstreams may refuse it."""
    return next((last[:end] for end in range(min(len(last), 128), 0, -1) if is_tag(last[:end])), "")


async def _chained(taken: list[TagBatch], batches: AsyncIterator[TagBatch]) -> AsyncGenerator[TagBatch, None]:
    for batch in taken:
        yield batch
    async for batch in batches:
        yield batch

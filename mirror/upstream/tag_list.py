"""The tag list of one repository, page by page, as one registry gives it (distribution-spec, "Listing Tags").

    ask for n=10000 (after `after`) ── refused ──> n=1000 ── refused ──> without n ── refused ──> without `last` either
        │
        └── page ──> its tags in batches ── Link ──> the next page: its query on our own path ── no Link ──> the end

Nothing is sorted or collected: the consumer decides how many batches it takes, and the next page is requested when its
first batch is needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from mirror.oci.link import next_query
from mirror.oci.reference import is_tag
from mirror.oci.tag_page import read_tag_page
from mirror.ports import TagBatch
from mirror.upstream.http.page_file import ListBounds, PageFile
from mirror.upstream.http.transport import Endpoint

#: The values of `n`, in the order in which they are tried: some registries refuse an `n` above a limit of theirs (often
#: 1,000), and some refuse every `n`.
_SIZES: Final = (10_000, 1_000, None)
#: Statuses by which a registry refuses `n` or `last`.
REFUSES_PAGING: Final = frozenset({400, 405, 406, 413, 416, 422})
#: How many strings of a page make a batch.
_BATCH: Final = 10_000
#: The most pages of one list; a million tags in pages of a hundred need half as many.
_MOST_PAGES: Final = 20_000


@dataclass(frozen=True, slots=True)
class TagAnswer:
    """The status and the `Link` fields of the answer for one page; its body is in the `PageFile`."""

    status: int
    links: Sequence[str]


#: Requests the page with this query and writes its body into the file. Raises `UpstreamError`, `StoreError`.
AskTags = Callable[[str, PageFile], Awaitable[TagAnswer]]


class TagList:
    """Reads the tag lists of one upstream. The largest `n` that it accepts is remembered."""

    def __init__(self, endpoint: Endpoint, bounds: ListBounds) -> None:
        self._endpoint = endpoint
        self._bounds = bounds
        self._size = 0

    async def batches(self, ask: AskTags, after: str) -> AsyncGenerator[TagBatch, None]:
        """The tags, in at least one batch, after the tag `after` if the registry supports that.

        Strings that are no valid tags are left out. Raises `UpstreamInvalid` if an answer is no tag list or the pages
        do not end, and what `ask` raises.
        """
        page = PageFile(self._bounds, self._bounds.most_bytes)
        try:
            answer = await self._first(ask, after, page)
            room = self._bounds.most_bytes
            queries: set[str] = set()
            for _ in range(_MOST_PAGES):
                try:
                    following = next_query(answer.links)
                    async with aclosing(self._read(page, following is not None)) as batches:
                        async for batch in batches:
                            yield batch
                except ValueError as error:
                    raise self._endpoint.invalid(f"not a tag list: {error}", 200) from error
                if following is None:
                    return
                if following in queries:
                    raise self._endpoint.invalid("a page of the tag list links to an earlier page", 200)
                queries.add(following)
                room -= page.size
                page.close()
                page = PageFile(self._bounds, room)
                answer = await ask(following, page)
                if answer.status != 200:
                    raise self._endpoint.invalid(
                        f"the next page of the tag list is answered with {answer.status}", answer.status
                    )
            raise self._endpoint.invalid(f"more than {_MOST_PAGES} pages of tags", 200)
        finally:
            page.close()

    async def _first(self, ask: AskTags, after: str, page: PageFile) -> TagAnswer:
        behind = [f"last={quote(after, safe='')}"] if after else []
        for at in range(self._size, len(_SIZES)):
            size = _SIZES[at]
            count = [] if size is None else [f"n={size}"]
            answer = await ask("&".join(count + behind), page)
            if answer.status == 200:
                # with `last`, the refusals may have been about `last`, not `n`
                self._size = self._size if behind else at
                return answer
        if behind:
            return await self._first(ask, "", page)
        raise self._endpoint.invalid(f"the tag list is answered with {answer.status}", answer.status)

    async def _read(self, page: PageFile, more: bool) -> AsyncGenerator[TagBatch, None]:
        """The batches of one page; `more` says that another page follows. Raises `ValueError`."""
        batches = _in_batches(page)
        tags: list[str] | None = None
        while True:
            following = next(batches, None) if page.is_small else await asyncio.to_thread(next, batches, None)
            if tags is not None or following is None:
                yield TagBatch(tuple(tags or ()), more or following is not None)
            if following is None:
                return
            tags = following


def _in_batches(page: PageFile) -> Iterator[list[str]]:
    """The valid tags of a page, in a batch for every `_BATCH` strings or more. Raises `ValueError`. Blocking."""
    tags: list[str] = []
    looked_at = 0
    with page.text() as text:
        for strings in read_tag_page(text.read):
            tags += filter(is_tag, strings)
            looked_at += len(strings)
            if looked_at >= _BATCH:
                yield tags
                tags, looked_at = [], 0
    if tags:
        yield tags

"""The names of repositories in order, for those who show pages of them.

A page takes the names behind its place from a walk that looks at no more than it gives. If the page has not been filled
when the walk is a thousand names ahead of it, because its caller may see few, or searches for little, it goes on in the
list of all:

    none ── a page needs it: read once for all who wait ──> fresh ── a repository is added ──┬── was quick ──> too old
                                                              │                             └── was slow ───> aging
                                                              └── some time passes ──────────────────────> too old

    fresh      every page takes its names from the list
    aging      pages that the walk does not fill go on in the list; it is too old after the same time
    too old    whoever needs the list waits until it is read again

A walk that began at the first name and came to the end is such a list, too.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import islice
from typing import Final

from mirror.aio.bounded_threads import in_thread
from mirror.aio.caches import CacheStats, show
from mirror.aio.singleflight import SingleFlight
from mirror.oci.reference import Repo

#: Repositories in one step, at most.
_STEP: Final = 200
#: Names by which a walk is ahead of its page, at most.
_AHEAD: Final = 1000
#: Seconds: a list that was read in less time was quick.
_QUICK: Final = 0.25
#: A slow list is kept for this many times as long as it took to read, up to so many seconds.
_TIMES: Final = 10.0
_LONGEST: Final = 60.0


@dataclass(frozen=True, slots=True)
class _Whole:
    """The list of all, the number of its reading, the count of repositories before that, and from when until when it is
    kept. `is_slow`: it took long to read.
    """

    repos: Sequence[Repo]
    number: int
    added: int
    read_at: float
    until: float
    is_slow: bool


class ListedRepositories:
    """Repositories in the order of their names as text. `now` counts seconds."""

    def __init__(
        self,
        read: Callable[[str], Iterable[Repo]],
        added: Callable[[], int],
        *,
        wanted: Callable[[Repo], bool] = lambda _: True,
        catch_up: Callable[[], Awaitable[None]] | None = None,
        threads: Executor | None = None,
        keeps: float = 0.0,
        name: str = "",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`read` gives those whose names are after a text, as `Catalog.repositories`; it blocks, and is called in
        `threads` (None: those of the event loop). `added` is the count of repositories. Those that are not `wanted` are
        left out; `wanted` is quick. `catch_up` is awaited before a page is read: others may have added some. A quick
        list is fresh for `keeps` seconds. `name` is that of the list among the caches.
        """
        self._read = read
        self._added = added
        self._wanted = wanted
        self._catch_up = catch_up
        self._threads = threads
        self._keeps = keeps
        self._now = now
        self._whole: _Whole | None = None
        self._readings = 0
        self._once = SingleFlight()
        if name:
            show(name, self)

    def __repr__(self) -> str:
        return f"<ListedRepositories {len(self._whole.repos) if self._whole else 'not read'}>"

    def stats(self) -> CacheStats:
        """How many names are kept; there is no limit."""
        entries = len(self._whole.repos) if self._whole else 0
        return CacheStats(entries, None, entries)

    async def after(self, place: str, count: int, shown: Sized) -> AsyncGenerator[Sequence[Repo], None]:
        """Yields all repositories whose names are after `place`, in order, in steps of a few hundred at most, which may
        be empty. They are for a page of `count` entries, and `shown` are those that its caller has found so far. To be
        closed (`aclose`). Raises `StoreError`.
        """
        if self._catch_up is not None:
            await self._catch_up()
        whole = self._fresh()
        if whole is None:
            added, walked, took, size = self._added(), list[Repo](), 0.0, min(count + 1, _STEP)
            walk, behind = _walk(self._read, place), place
            while len(walked) < len(shown) + _AHEAD:
                began = self._now()
                step = await in_thread(self._threads, _some, walk, size)
                took += self._now() - began
                found = [repo for repo in step if self._wanted(repo)]
                walked += step
                yield found
                if len(step) < size:
                    # another page may have had a later list read meanwhile
                    if not place and not self._is_later(added):
                        self._keep(tuple(filter(self._wanted, walked)), 0, added, took)
                    return
                size, behind = min(2 * size, _STEP), str(step[-1])
            whole, place = await self._all(), behind
        for number in range(bisect_right(whole, place, key=str), len(whole), _STEP):
            yield whole[number : number + _STEP]

    def _fresh(self) -> Sequence[Repo] | None:
        whole = self._whole
        return whole.repos if whole and self._is_kept(whole) and whole.added == self._added() >= 0 else None

    def _is_kept(self, whole: _Whole) -> bool:
        return whole.read_at <= self._now() < whole.until

    def _is_later(self, added: int) -> bool:
        """Whether the list that is kept has what was added after this count."""
        whole = self._whole
        return whole is not None and self._is_kept(whole) and whole.added > added

    async def _all(self) -> Sequence[Repo]:
        """The list of all. It lacks what was added lately if it is aging."""
        before = self._readings
        # a reading that has begun already may lack the last addition: then there is one more
        while (whole := self._whole) is None or not (
            whole.number > before or self._fresh() is not None or (whole.is_slow and self._is_kept(whole))
        ):
            await self._once.run("all", self._read_all)
        return whole.repos

    async def _read_all(self) -> None:
        self._readings += 1
        number, added, began = self._readings, self._added(), self._now()
        repos = await in_thread(self._threads, lambda: tuple(filter(self._wanted, self._read(""))))
        self._keep(repos, number, added, self._now() - began)

    def _keep(self, repos: Sequence[Repo], number: int, added: int, took: float) -> None:
        is_slow, now = took >= _QUICK, self._now()
        keeps = max(self._keeps, min(_LONGEST, _TIMES * took)) if is_slow else self._keeps
        self._whole = _Whole(repos, number, added, now, now + keeps, is_slow)

    async def aclose(self) -> None:
        """Ends what is being read. Repeatable."""
        await self._once.aclose()


def _walk(read: Callable[[str], Iterable[Repo]], place: str) -> Iterator[Repo]:
    """Begins to read when the first name is wanted."""
    yield from read(place)


def _some(walk: Iterator[Repo], count: int) -> list[Repo]:
    return list(islice(walk, count))

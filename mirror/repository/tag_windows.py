"""Sorted parts of upstream's tag lists, kept in memory so that clients can be given pages of any length."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from mirror.aio.caches import LruCache
from mirror.oci.reference import Repo
from mirror.ports import SortedTags, TagBatch

#: Windows that are kept for each repository. Paging through a list leaves one window for every 10,000 tags.
_MOST: Final = 8
#: Seconds by which the clock may be set back before a window is no longer believed.
_SLACK: Final = 60.0


@dataclass(frozen=True, slots=True)
class Window:
    """The sorted tags that follow `after`, without a gap. `more` is True if the list goes on after them.

    `asked` is the number of tags that were wanted when the window was made. It has fewer if upstream's pages are very
    small. The window is believed from `since` to `until` (epoch seconds).
    """

    after: str
    tags: tuple[str, ...]
    more: bool
    asked: int
    since: float
    until: float

    def page(self, last: str, count: int) -> TagBatch | None:
        """Returns up to `count` tags after `last`; None if the window does not have all of them."""
        start = bisect_right(self.tags, last)
        stop = start + count
        if last < self.after:
            return None
        if self.more and stop > len(self.tags) and (start or count > self.asked):
            return None
        return TagBatch(self.tags[start:stop], self.more or stop < len(self.tags))

    def to_json(self) -> dict[str, Any]:
        """Returns the window as JSON, for the memo."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Window:
        """Returns the window that `to_json` wrote."""
        return cls(**{**body, "tags": tuple(body["tags"])})


class TagWindows:
    """The tag lists of all repositories: windows in the memory of this process, and long lists on disk (`sorted`)."""

    def __init__(self, sorted_tags: SortedTags) -> None:
        self.sorted = sorted_tags
        self._windows: LruCache[tuple[Repo, str], tuple[Window, ...]] = LruCache(
            32 << 20, lambda windows: sum(512 + 96 * len(window.tags) for window in windows), name="tag lists"
        )

    def page(self, repo: Repo, mark: str, last: str, count: int, now: float) -> TagBatch | None:
        """Returns a page from memory; None if no window has it. `mark` is that of the caller who fetched the list."""
        for window in self._windows.get((repo, mark)) or ():
            if window.since - _SLACK <= now < window.until and (page := window.page(last, count)):
                return page
        return None

    def drop(self, repo: Repo, mark: str) -> None:
        """Drops the windows of a list that turned out not to be sorted. Repeatable."""
        self._windows.pop((repo, mark), None)

    def put(self, repo: Repo, mark: str, window: Window) -> None:
        """Adds a window, which is searched first. It replaces a window with the same `after`."""
        others = [other for other in self._windows.get((repo, mark)) or () if other.after != window.after]
        self._windows[repo, mark] = (window, *others[: _MOST - 1])

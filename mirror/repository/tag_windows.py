"""Parts of the tag lists of other registries, kept so that our pages need not be as long as upstream's."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from mirror.aio.lru import LruCache
from mirror.oci.reference import Repo
from mirror.ports import SortedTags, TagBatch

__all__ = ["TagWindows", "Window"]

#: Windows of one repository that are kept: a walk along a list leaves one behind for every 10,000 tags.
_MOST: Final = 8
#: Seconds by which the clock may have been put back.
_SLACK: Final = 60.0


@dataclass(frozen=True, slots=True)
class Window:
    """Sorted tags behind `after`, without a gap; `more`: others follow them.

    `asked` is how many were wanted when it was made: fewer than that are here if upstream's pages are very small.
    Believed from `since` to `until` (epoch seconds).
    """

    after: str
    tags: tuple[str, ...]
    more: bool
    asked: int
    since: float
    until: float

    def page(self, last: str, count: int) -> TagBatch | None:
        """Up to `count` tags behind `last`; None: not all of them are here."""
        start = bisect_right(self.tags, last)
        stop = start + count
        if last < self.after:
            return None
        if self.more and stop > len(self.tags) and (start or count > self.asked):
            return None
        return TagBatch(self.tags[start:stop], self.more or stop < len(self.tags))

    def to_json(self) -> dict[str, Any]:
        """As it is remembered."""
        return asdict(self)

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Window:
        """What `to_json` wrote."""
        return cls(**{**said, "tags": tuple(said["tags"])})


class TagWindows:
    """Of all repositories: windows in this process, and `sorted`, long lists on disk."""

    def __init__(self, sorted_tags: SortedTags) -> None:
        self.sorted = sorted_tags
        self._windows: LruCache[tuple[Repo, str], tuple[Window, ...]] = LruCache(
            32 << 20, lambda kept: sum(512 + 96 * len(window.tags) for window in kept)
        )

    def page(self, repo: Repo, whose: str, last: str, count: int, now: float) -> TagBatch | None:
        """A page that is here; `whose` is for whom the list was asked."""
        for window in self._windows.get((repo, whose)) or ():
            if window.since - _SLACK <= now < window.until and (page := window.page(last, count)):
                return page
        return None

    def drop(self, repo: Repo, whose: str) -> None:
        """The list is not sorted, whatever its windows looked like. Repeatable."""
        self._windows.drop((repo, whose))

    def put(self, repo: Repo, whose: str, window: Window) -> None:
        """The latest is looked at first; one from the same place is replaced."""
        others = [one for one in self._windows.get((repo, whose)) or () if one.after != window.after]
        self._windows.put((repo, whose), (window, *others[: _MOST - 1]))

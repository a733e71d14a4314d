"""Maps of bounded size. Clients and upstreams can invent any number of keys, so the maps that they fill need a limit.

Both kinds are cachetools' and behave like a `dict`; entries may disappear at any time. They are not for several threads
at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import cachetools

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class CacheStats:
    """How full a cache is: its `entries`, their size in `bytes` if the cache weighs them, and its `limit`.

    The limit is in bytes if `bytes` is given, otherwise a number of entries.
    """

    entries: int
    bytes: int | None
    limit: int


class SupportsStats(Protocol):
    """Anything of bounded size that can say how full it is."""

    def stats(self) -> CacheStats:
        """How full it is now. Quick; never blocks."""


class LruCache(cachetools.LRUCache[K, V]):
    """Removes the least recently used entries once there are more than `most`.

    With `weigh`, `most` is in bytes, and `weigh` gives the size of a value when it is put. A value that is larger than
    the whole cache is not kept.
    """

    def __init__(self, most: int, weigh: Callable[[V], int] | None = None) -> None:
        super().__init__(most, weigh)
        self._weighs = weigh is not None

    def __setitem__(self, key: K, value: V) -> None:
        if self.getsizeof(value) > self.maxsize:
            self.pop(key, None)
        else:
            super().__setitem__(key, value)

    def __repr__(self) -> str:
        # cachetools' own shows every entry, and entries may be secret
        return f"<LruCache {self.stats()}>"

    def stats(self) -> CacheStats:
        return CacheStats(len(self), int(self.currsize) if self._weighs else None, int(self.maxsize))


class TtlCache(cachetools.TTLCache[K, V]):
    """Like `LruCache` of `most` entries, each of which also disappears `ttl` seconds after it was put."""

    def __init__(self, most: int, ttl: float, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(most, ttl, timer=now)

    def __repr__(self) -> str:
        return f"<TtlCache {self.stats()}>"

    def stats(self) -> CacheStats:
        return CacheStats(len(self), None, int(self.maxsize))

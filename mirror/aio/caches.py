"""Maps of bounded size. Clients and upstreams can invent any number of keys, so the maps that they fill need a limit.

They are cachetools' and behave like a `dict`; entries may disappear at any time. They are not for several threads
at once; `SharedLru` is. Caches that have a name are shown to administrators (`shown`).
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar, overload
from weakref import WeakValueDictionary

import cachetools

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
T = TypeVar("T")


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


#: The caches of this process that have a name.
_named: Final[WeakValueDictionary[tuple[str, int], SupportsStats]] = WeakValueDictionary()
_numbers: Final = itertools.count()


def show(name: str, cache: SupportsStats) -> None:
    """Show this cache under `name` for as long as it is used."""
    _named[name, next(_numbers)] = cache


def shown() -> dict[str, CacheStats]:
    """How full the caches of this process are, by name. Caches with the same name, such as one for each upstream, are
    added up.
    """
    added: dict[str, CacheStats] = {}
    for (name, _), cache in list(_named.items()):
        stats, before = cache.stats(), added.get(name)
        if before is not None:
            size = None if stats.bytes is None else stats.bytes + (before.bytes or 0)
            stats = CacheStats(stats.entries + before.entries, size, stats.limit + before.limit)
        added[name] = stats
    return added


class LruCache(cachetools.LRUCache[K, V]):
    """Removes the least recently used entries once there are more than `most`.

    With `weigh`, `most` is in bytes, and `weigh` gives the size of a value when it is put. A value that is larger than
    the whole cache is not put.
    """

    def __init__(self, most: int, weigh: Callable[[V], int] | None = None, *, name: str = "") -> None:
        super().__init__(most, weigh)
        self._weighs = weigh is not None
        if name:
            show(name, self)

    @overload
    def get(self, key: K, default: None = None) -> V | None: ...
    @overload
    def get(self, key: K, default: V | T) -> V | T: ...
    def get(self, key: K, default: object = None) -> object:
        # cachetools' own hashes the key once more, and our keys are costly to hash
        try:
            return self[key]
        except KeyError:
            return default

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


class CountedLru(LruCache[K, V]):
    """An `LruCache` that counts its `changes`: an entry that was put, replaced or removed, for whatever reason."""

    def __init__(self, most: int, weigh: Callable[[V], int] | None = None, *, name: str = "") -> None:
        super().__init__(most, weigh, name=name)
        self.changes = 0

    def __setitem__(self, key: K, value: V) -> None:
        self.changes += 1
        super().__setitem__(key, value)

    def __delitem__(self, key: K) -> None:
        self.changes += 1
        super().__delitem__(key)


class TtlCache(cachetools.TTLCache[K, V]):
    """Like `LruCache` of `most` entries, each of which also disappears `ttl` seconds after it was put."""

    def __init__(self, most: int, ttl: float, now: Callable[[], float] = time.monotonic, *, name: str = "") -> None:
        super().__init__(most, ttl, timer=now)
        if name:
            show(name, self)

    def __repr__(self) -> str:
        return f"<TtlCache {self.stats()}>"

    def stats(self) -> CacheStats:
        return CacheStats(len(self), None, int(self.maxsize))


class SharedLru(Generic[K, V]):
    """An `LruCache` of `most` entries for several threads."""

    def __init__(self, most: int) -> None:
        self._lock = threading.Lock()
        self._entries: LruCache[K, V] = LruCache(most)

    def __repr__(self) -> str:
        return f"<SharedLru {len(self._entries)}>"

    def get(self, key: K) -> V | None:
        """The entry; None if there is none."""
        with self._lock:
            return self._entries.get(key)

    def put(self, key: K, value: V) -> None:
        """Add or replace an entry."""
        with self._lock:
            self._entries[key] = value

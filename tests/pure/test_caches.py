"""Caches stay within their bounds, remove the entries that were not used for longest, and say how full they are."""

from __future__ import annotations

import threading
from collections.abc import Callable

from mirror.aio.caches import CacheStats, LruCache, SharedLru, TtlCache, shown


def test_the_least_recently_used_entry_goes_first() -> None:
    """Reading an entry counts as a use; an entry that is put again is one entry."""
    cache: LruCache[str, int] = LruCache(2)
    cache["a"], cache["b"] = 1, 2
    assert cache["a"] == 1
    cache["c"] = 3
    cache["c"] = 4
    assert dict(cache) == {"a": 1, "c": 4}
    assert cache.get("b") is None
    assert cache.stats() == CacheStats(entries=2, bytes=None, limit=2)


def test_a_cache_of_bytes_stays_within_them() -> None:
    """Large values remove more entries; a value larger than the whole cache removes only the one that it replaces."""
    cache: LruCache[str, bytes] = LruCache(10, len)
    cache["a"], cache["b"] = b"1234", b"1234"
    assert cache.stats() == CacheStats(entries=2, bytes=8, limit=10)
    cache["c"] = b"1234567"
    assert dict(cache) == {"c": b"1234567"}
    cache["a"] = b"1"
    cache["c"] = b"12345678901"
    assert dict(cache) == {"a": b"1"}
    assert cache.stats() == CacheStats(entries=1, bytes=1, limit=10)


def test_entries_expire() -> None:
    """An entry is gone after its time, also from the number of entries; putting it again renews it."""
    clock = [100.0]
    cache: TtlCache[str, int] = TtlCache(2, 10.0, lambda: clock[0])
    cache["a"] = 1
    clock[0] += 6
    cache["b"] = 2
    clock[0] += 6
    assert cache.get("a") is None
    assert cache.stats() == CacheStats(entries=1, bytes=None, limit=2)
    cache["b"] = 3
    clock[0] += 6
    assert cache["b"] == 3


def test_caches_with_a_name_are_shown_for_as_long_as_they_are_used() -> None:
    """Caches of the same name are added up; a cache without a name is not shown."""
    bytes_of: list[LruCache[str, bytes]] = [LruCache(10, len, name="test bytes") for _ in range(2)]
    entries: TtlCache[str, int] = TtlCache(5, 10.0, name="test entries")
    nameless: LruCache[str, int] = LruCache(7)
    bytes_of[0]["a"], bytes_of[1]["b"], entries["c"], nameless["d"] = b"12", b"345", 1, 1
    assert shown()["test bytes"] == CacheStats(entries=2, bytes=5, limit=20)
    assert shown()["test entries"] == CacheStats(entries=1, bytes=None, limit=5)
    assert not any(stats.limit == 7 for stats in shown().values())
    bytes_of.clear()
    assert "test bytes" not in shown()


def test_threads_take_turns_at_a_shared_cache() -> None:
    """No thread comes between the choice of an entry to remove and its removal."""
    cache: SharedLru[_Slow, int] = SharedLru(1)
    others: list[bool] = []
    first = _Slow()
    cache.put(first, 1)

    def meanwhile() -> None:
        thread = threading.Thread(target=lambda: others.append(cache._lock.acquire(blocking=False)))
        thread.start()
        thread.join()

    first.hashed = meanwhile
    cache.put(_Slow(), 2)
    assert others
    assert not any(others)
    first.hashed = lambda: None
    assert cache.get(first) is None


class _Slow:
    """A key whose hash may take a while."""

    def __init__(self) -> None:
        self.hashed: Callable[[], None] = lambda: None

    def __hash__(self) -> int:
        self.hashed()
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

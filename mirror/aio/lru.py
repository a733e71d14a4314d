"""Recently requested manifests and tags, in memory: most requests are answered from here.

The cache is never authoritative. A manifest by digest never changes, so it may stay as long as there is room; the
digest of a tag is valid only until the expiry time stored with it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LruCache(Generic[K, V]):
    """A cache that removes the least recently used entries once their sizes (by `weigh`) exceed `most_bytes`."""

    def __init__(self, most_bytes: int, weigh: Callable[[V], int]) -> None:
        self._most = most_bytes
        self._weigh = weigh
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._bytes = 0

    def get(self, key: K) -> V | None:
        """The entry, or None. The entry becomes the most recently used one."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: K, value: V) -> None:
        """Put an entry, in place of the one before."""
        self.drop(key)
        self._entries[key] = value
        self._bytes += self._weigh(value)
        while self._bytes > self._most:
            _, oldest = self._entries.popitem(last=False)
            self._bytes -= self._weigh(oldest)

    def drop(self, key: K) -> None:
        """Remove an entry, if it is there. Repeatable."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= self._weigh(entry)

    def __len__(self) -> int:
        return len(self._entries)

"""Maps with a limited number of keys, because clients and upstreams can invent any number of keys."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def put_latest(entries: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    """Put an entry as the latest one; remove the oldest entries if there are more than `most`."""
    entries[key] = value
    entries.move_to_end(key)
    while len(entries) > most:
        entries.popitem(last=False)

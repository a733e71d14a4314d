"""Splitting long lists, so that one operation never occupies a shared index for long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

_Item = TypeVar("_Item")


def batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Split `items` into lists of up to `size` items, none empty."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch

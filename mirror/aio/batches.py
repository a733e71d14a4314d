"""Long sequences cut into lists, so that no single operation occupies an index, or the event loop, for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import islice
from typing import TypeVar

_Item = TypeVar("_Item")


def batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Yields lists of up to `size` items, none empty."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


async def batches_in_thread(items: Iterable[_Item], size: int) -> AsyncIterator[list[_Item]]:
    """Like `batches`, for an iterable that blocks: each list is read in a thread."""
    iterator = iter(items)
    while batch := await asyncio.to_thread(lambda: list(islice(iterator, size))):
        yield batch

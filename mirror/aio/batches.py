"""Long sequences cut into lists, so that no single operation occupies an index, or the event loop, for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from mirror.aio.singleflight import cancel_and_wait
from mirror.aio.threads import uninterrupted

_Item = TypeVar("_Item")


def batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Yields lists of up to `size` items, none empty."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def batches_in_thread(items: Iterable[_Item], size: int) -> AsyncIterator[list[_Item]]:
    """Like `batches`, for an iterable that blocks: each list is read in a thread. Whoever has enough need not close it:
    it is no generator, so nothing of it waits to be run to its end.
    """
    return _ReadInThread(items, size)


class _ReadInThread(AsyncIterator[list[_Item]]):
    def __init__(self, items: Iterable[_Item], size: int) -> None:
        self._iterator = iter(items)
        self._size = size

    async def __anext__(self) -> list[_Item]:
        batch = await asyncio.to_thread(lambda: list(islice(self._iterator, self._size)))
        if not batch:
            raise StopAsyncIteration
        return batch


async def batches_ahead(items: Iterable[_Item], size: int) -> AsyncGenerator[list[_Item], None]:
    """Like `batches_in_thread`, but the next list is read while the caller works on one. To be closed (`aclose`)."""
    iterator = iter(items)

    async def read() -> list[_Item]:
        return await uninterrupted(asyncio.to_thread(lambda: list(islice(iterator, size))))

    pending = asyncio.create_task(read())
    try:
        while batch := await pending:
            pending = asyncio.create_task(read())
            yield batch
    finally:
        # a generator cannot be closed while a thread runs it
        await cancel_and_wait(pending)

"""An index alone, of more blobs than a disk of this machine has room for: in SQLite, and in Redis."""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from redis import Redis

from bench.growing_bulk import PER_IMAGE, SIZE, MadeContent, write_by_calls, write_redis, write_sqlite
from bench.process import memory
from mirror.index.embedded import EmbeddedIndex
from mirror.index.redis import RedisIndex
from mirror.policy.records import BlobRole, ContentRecord
from mirror.ports import ContentIndex

#: Blobs that are then written by calls, as pulls and rebuilds write them.
_MORE: Final = 10_000
_TIMES: Final = 100
_STORE: Final = "bench"
#: Seconds for one operation of Redis, so that a busy machine ends no run.
_BUDGET: Final = 60.0

Figures = dict[str, float]


async def measure_sqlite(path: Path, blobs: int) -> Figures:
    """Write an index of so many blobs, in images of five, and ask it. The files are removed."""
    made = MadeContent(blobs // PER_IMAGE)
    try:
        async with _open(EmbeddedIndex(path)) as index:
            await index.usage()
        began = time.monotonic()
        await asyncio.to_thread(write_sqlite, path, made)
        figures = {"made, s": time.monotonic() - began}
        before = memory(os.getpid())
        async with _open(EmbeddedIndex(path)) as index:
            figures |= await _asked(index, made)
            figures["memory of the process, MiB"] = (memory(os.getpid()) - before) / 2**20
            figures["size on the disk, MiB"] = sum(file.stat().st_size for file in _files(path)) / 2**20
        return figures
    finally:
        for file in _files(path):
            file.unlink()


async def measure_redis(blobs: int) -> Figures:
    """The same in a Redis of its own."""
    # imported here: only this needs what tests use to start Redis
    from tests.support.redis_server import RedisServer

    made = MadeContent(blobs // PER_IMAGE)
    with RedisServer() as server, Redis(unix_socket_path=str(server.socket)) as client:
        empty = int(client.info("memory")["used_memory"])
        began = time.monotonic()
        await asyncio.to_thread(write_redis, client, _STORE, made)
        figures = {"Redis: made, s": time.monotonic() - began}
        taken = int(client.info("memory")["used_memory"]) - empty
        async with _open(RedisIndex(server.address, store_id=_STORE, budget=_BUDGET)) as index:
            asked = await _asked(index, made)
        figures |= {f"Redis: {name}": value for name, value in asked.items()}
        figures["Redis: memory, MiB"] = taken / 2**20
        return figures


async def _asked(index: ContentIndex, made: MadeContent) -> Figures:
    """What an index costs that has this content."""
    began = time.monotonic()
    await index.usage()
    opened = time.monotonic() - began
    more = MadeContent(_MORE // PER_IMAGE, series=1)
    began = time.monotonic()
    await write_by_calls(index, more)
    wrote = time.monotonic() - began
    some = [made.digest(image, 0) for image in range(0, made.images, max(1, made.images // _TIMES))][:_TIMES]
    each, parts = itertools.cycle(some), itertools.cycle([made.digest(image, 1) for image in range(_TIMES)])
    going = iter([more.digest(image, 0), *more.parts(image)] for image in range(more.images))
    repo = made.repo(0)
    return {
        "opened, ms": opened * 1000,
        f"{_MORE:,} more blobs by calls, s": wrote,
        "whether it is whole, ms": await _median(index.marker),
        "usage, ms": await _median(index.usage),
        "a record, ms": await _median(lambda: index.get(next(each))),
        "a link, ms": await _median(lambda: index.linked(repo, next(parts))),
        "who has a blob, ms": await _median(lambda: index.holders(next(parts), 2)),
        "64 oldest images, ms": await _median(lambda: index.least_recently_used(BlobRole.ROOT, 64)),
        "what 16 images name, ms": await _median(lambda: index.successors(some[:16])),
        "use of an image, ms": await _median(lambda: index.touch({next(each): time.time()})),
        "put of a blob, ms": await _median(lambda: index.put([ContentRecord(next(each), SIZE, time.time())])),
        "an image dropped, ms": await _median(lambda: index.drop(next(going))),
        "the first page of all digests, ms": await _median(lambda: _first(index)),
    }


async def _first(index: ContentIndex) -> None:
    async for _ in index.digests():
        return


@asynccontextmanager
async def _open(index: EmbeddedIndex | RedisIndex) -> AsyncIterator[ContentIndex]:
    try:
        yield index
    finally:
        await index.aclose()


def _files(path: Path) -> list[Path]:
    return [file for file in path.parent.glob(f"{path.name}*") if not file.name.endswith(".lock")]


async def _median(call: Callable[[], Awaitable[object]]) -> float:
    """In milliseconds."""
    waits = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        await call()
        waits.append(time.perf_counter() - began)
    return statistics.median(waits) * 1000

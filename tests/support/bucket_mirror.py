"""A mirror of this process that hosts, with a bucket in memory."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from mirror.config import Config
from mirror.oci.digest import Digest
from tests.support.live_mirror import LiveMirror, until
from tests.support.memory_bucket import MemoryBucket
from tests.support.push_client import hosting_mirror


@contextmanager
def bucket_opened(bucket: MemoryBucket) -> Iterator[None]:
    """Mirrors and commands of this process have this bucket, if they have one."""

    def opened(config: Config, **_: bool) -> MemoryBucket | None:
        return bucket if config.store.bucket else None

    with (
        mock.patch("mirror.app.storage.open_bucket", opened),
        mock.patch("mirror.app.stored_records.open_bucket", opened),
    ):
        yield


@asynccontextmanager
async def bucket_mirror(
    root: Path, bucket: MemoryBucket, *, table: Mapping[str, Any] | None = None, **more: Any
) -> AsyncIterator[LiveMirror]:
    """Like `hosting_mirror`; `store` in `more` are further settings of the store, `table` those of `[bucket]`. Starts
    once the records are listed, unless the bucket is down.
    """
    if table is not None:
        more["bucket"] = dict(table)
    store = {"bucket": "s3://memory/site", **more.pop("store", {})}
    with bucket_opened(bucket):
        async with hosting_mirror(root, store=store, **more) as mirror:
            if not bucket.down:
                used = mirror.app.storage.bucket
                assert used is not None
                await until(used.memory.is_complete)
            yield mirror


def wipe(root: Path) -> None:
    """Lose the disk of a mirror that has ended."""
    shutil.rmtree(root / "store")


def evict(mirror: LiveMirror, *contents: bytes) -> None:
    """Drop copies on the disk, as an eviction does."""
    for content in contents:
        assert mirror.app.storage.evictable.delete(Digest.of(content)).size == len(content)

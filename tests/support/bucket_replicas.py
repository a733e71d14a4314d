"""Replicas in this process, over one bucket in memory. None of them answers the others: what one has changed, the
others learn from the bucket alone.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from tests.support.bucket_mirror import bucket_mirror
from tests.support.live_mirror import Clock, LiveMirror
from tests.support.memory_bucket import MemoryBucket

#: Nobody listens there.
_MEMBERS: Final = [f"http://127.0.0.1:{port}" for port in (9, 11, 13)]


@asynccontextmanager
async def bucket_replicas(
    root: Path, bucket: MemoryBucket, clock: Clock, count: int = 3, **more: Any
) -> AsyncIterator[Sequence[LiveMirror]]:
    """So many replicas, each with a disk of its own below `root`; `more` as in `bucket_mirror`."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(bucket_replica(root, bucket, clock, number, **more))
            for number in range(count)
        ]


@asynccontextmanager
async def bucket_replica(
    root: Path, bucket: MemoryBucket, clock: Clock, number: int = 0, **more: Any
) -> AsyncIterator[LiveMirror]:
    """The replica of this number. Its time of the day is `clock`, as that of the bucket should be."""
    folder, secret, key = root / f"replica{number}", root / "cluster-secret", root / "token-key"
    folder.mkdir(exist_ok=True)
    secret.write_text("of no use to anybody: 0123456789abcdef\n")
    key.write_bytes(base64.urlsafe_b64encode(bytes(32)))
    for file in (secret, key):
        file.chmod(0o600)
    cluster = {
        "members": _MEMBERS,
        "address": _MEMBERS[number],
        "secret_file": secret,
    }
    access = {"token_key_file": key, **more.pop("access", {})}
    async with bucket_mirror(folder, bucket, clock=clock, cluster=cluster, access=access, **more) as mirror:
        yield mirror

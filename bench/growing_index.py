"""An index alone, of more blobs than a disk of this machine has room for."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from bench.process import memory
from mirror.aio.batches import batches
from mirror.index.embedded import EmbeddedIndex
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.records import BlobRole, ContentRecord, References

#: Blobs of an image, with its manifest.
_PER_IMAGE: Final = 5
_PER_REPOSITORY: Final = 100
#: Images that are written together, in a repository each a hundred.
_WRITTEN: Final = 1000
_TIMES: Final = 100


async def measure_index(path: Path, blobs: int) -> dict[str, float]:
    """Write an index of so many blobs, in images of five, and ask it. The files are removed."""
    index = EmbeddedIndex(path)
    try:
        began = time.monotonic()
        for images in batches(range(blobs // _PER_IMAGE), _WRITTEN):
            await _write(index, images)
        wrote = time.monotonic() - began
        some = [_blob(number, 0) for number in range(0, blobs // _PER_IMAGE, max(1, blobs // _PER_IMAGE // _TIMES))]
        asked, again = itertools.cycle(some), itertools.cycle(some)
        return {
            "written, s": wrote,
            "size on the disk, MiB": sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")) / 2**20,
            "usage, ms": await _median(index.usage),
            "a record, ms": await _median(lambda: index.get(next(asked))),
            "a link, ms": await _median(lambda: index.linked(_repo(0), next(again))),
            "64 oldest images, ms": await _median(lambda: index.least_recently_used(BlobRole.ROOT, 64)),
            "what 16 images name, ms": await _median(lambda: index.successors(some[:16])),
            "put of a blob, ms": await _median(lambda: index.put([ContentRecord(next(asked), 10, time.time())])),
            "memory of the process (PSS), MiB": memory(os.getpid()) / 2**20,
        }
    finally:
        await index.aclose()
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()


async def _write(index: EmbeddedIndex, images: list[int]) -> None:
    for repo, numbers in itertools.groupby(images, _repo):
        group = list(numbers)
        links = {_blob(number, part): 10 for number in group for part in range(_PER_IMAGE)}
        await index.link(repo, links)
        await index.put([ContentRecord(_blob(number, 0), 10, float(number)) for number in group])
        await index.record_references(
            [
                References(_blob(number, 0), (), tuple(_blob(number, part) for part in range(1, _PER_IMAGE)))
                for number in group
            ]
        )
    rest = sorted(_blob(number, part) for number in images for part in range(1, _PER_IMAGE))
    await index.put([ContentRecord(digest, 10, 1.0) for digest in rest])


def _repo(image: int) -> Repo:
    return Repo("docker.io", f"team/app-{image // _PER_REPOSITORY}")


def _blob(image: int, part: int) -> Digest:
    """The manifest of an image, or one of its blobs."""
    return Digest.of(f"{image} {part}".encode())


async def _median(call: Callable[[], Awaitable[object]]) -> float:
    """In milliseconds."""
    waits = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        await call()
        waits.append(time.perf_counter() - began)
    return statistics.median(waits) * 1000

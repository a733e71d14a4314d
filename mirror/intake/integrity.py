"""Whether blobs on the disk have the bytes of their digests.

A size that differs from the manifest's is no proof: the file or the manifest may be wrong, and a manifest with a wrong
size must not make other repositories lose the blob. So the blob is hashed, once in each process.
"""

from __future__ import annotations

import asyncio

from mirror.aio.background import BackgroundTasks
from mirror.aio.caches import LruCache
from mirror.aio.singleflight import SingleFlight
from mirror.errors import BlobDamaged
from mirror.graph.damage import is_sound, set_aside, try_set_aside
from mirror.oci.digest import Digest
from mirror.ports import BlobInfo, RepairableBlobs


class Integrity:
    """The checks of one process."""

    def __init__(self, store: RepairableBlobs, once: SingleFlight, background: BackgroundTasks) -> None:
        self._store = store
        self._once = once
        self._background = background
        #: Sizes in bytes of blobs whose digest this process has verified: it has stored them, or hashed them because no
        #: manifest has the size or one has another size.
        self._verified: LruCache[Digest, int] = LruCache(1 << 20, lambda _: 256, name="verified blobs")

    def __repr__(self) -> str:
        return f"<Integrity {len(self._verified)} verified>"

    async def check(self, info: BlobInfo, size: int) -> None:
        """Returns if the blob on the disk has `size` bytes (-1: unknown) or its bytes have the right digest.

        Raises `BlobDamaged` if it has not, `StoreError` if the disk cannot be read.
        """
        if info.size != size and not await self.verify(info):
            expected = f"{size} expected" if size >= 0 else "and not those of its digest"
            raise BlobDamaged(f"{info.size} bytes on disk, {expected}")

    async def verify(self, info: BlobInfo) -> bool:
        """True if the blob on the disk has the right digest. Raises `StoreError` if the disk cannot be read."""
        if self._verified.get(info.digest) == info.size:
            return True
        matches = await self._once.run(
            ("verify", info.digest, info.size), lambda: asyncio.to_thread(is_sound, self._store, info)
        )
        if matches:
            self._verified[info.digest] = info.size
        return matches

    def verified_size(self, digest: Digest) -> int | None:
        """Returns the size in bytes with which this process has verified the blob; None if it has not."""
        return self._verified.get(digest)

    def note_verified(self, info: BlobInfo) -> None:
        """Notes that the blob was verified when it was stored."""
        self._verified[info.digest] = info.size

    async def set_aside(self, digest: Digest) -> None:
        """Takes a blob out of service if it is damaged or unreadable, as was found. Raises `StoreError`."""
        await asyncio.to_thread(set_aside, self._store, digest)

    async def recheck(self, digest: Digest) -> None:
        """Hashes a blob that could not be read or sent, and sets it aside if it is damaged. Raises nothing."""
        await self._once.run(("recheck", digest), lambda: asyncio.to_thread(try_set_aside, self._store, digest))

    def recheck_later(self, digest: Digest) -> None:
        """Like `recheck`, in the background."""
        self._background.start(self.recheck(digest))

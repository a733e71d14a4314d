"""Keeps the quarantine of damaged blobs within its limits, and drops it if its room is needed.

If the folder of the quarantine cannot be read, it counts as empty, and this is logged once. Nothing else fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence

from mirror import telemetry
from mirror.errors import StoreError
from mirror.policy.quarantine_limits import QuarantinedBlob, QuarantineLimits
from mirror.ports import BlobStore


class QuarantineSweeper:
    """Sweeps the quarantine of one store. `blobs` may be called from any thread."""

    def __init__(self, store: BlobStore, limits: QuarantineLimits, *, now: Callable[[], float]) -> None:
        """`now` is in epoch seconds."""
        self._store = store
        self._limits = limits
        self._now = now
        self._trouble = ""

    def __repr__(self) -> str:
        return f"<QuarantineSweeper {self._limits} trouble={self._trouble!r}>"

    def blobs(self) -> Sequence[QuarantinedBlob]:
        """Blocking: returns the blobs in quarantine, in no order; empty if they cannot be listed."""
        try:
            return self._store.quarantined()
        except StoreError as error:
            self._note(str(error))
            return ()

    async def sweep(self, limit: int) -> int:
        """Drops what is too old or too much, given that all blobs of the store may take `limit` bytes. Returns the
        bytes that are left.
        """
        blobs = await asyncio.to_thread(self.blobs)
        gone = await self._drop(self._limits.surplus(blobs, self._now(), limit), "too old, or too much of it")
        return sum(blob.size for blob in blobs) - gone

    async def give_up(self) -> int:
        """Drops the whole quarantine, and returns the bytes that this frees."""
        return await self._drop(await asyncio.to_thread(self.blobs), "its room is needed")

    async def _drop(self, surplus: Collection[QuarantinedBlob], why: str) -> int:
        if not surplus:
            return 0
        freed = await asyncio.to_thread(lambda: [self._drop_blob(blob) for blob in surplus])
        if gone := [size for size in freed if size]:
            telemetry.log.info("quarantined blobs deleted", blobs=len(gone), bytes=sum(gone), reason=why)
        return sum(freed)

    def _drop_blob(self, blob: QuarantinedBlob) -> int:
        """Blocking: drops one blob and returns the bytes that this frees; 0 if it stays, or if another process was
        first.
        """
        try:
            return self._store.drop_quarantined(blob.digest)
        except StoreError as error:
            self._note(str(error))
            return 0

    def _note(self, trouble: str) -> None:
        if trouble != self._trouble:
            telemetry.log.warning("quarantine cannot be swept", reason=trouble)
        self._trouble = trouble

"""Keeps what was set aside as damaged within its bound, and gives it up where its room is needed.

A folder of evidence that is damaged itself stops nothing: it counts as empty then, and that is said once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from mirror import telemetry
from mirror.errors import StoreError
from mirror.policy.quarantine import QuarantinedBlob, QuarantineLimits
from mirror.ports import BlobStore

__all__ = ["QuarantineSweeper"]


class QuarantineSweeper:
    """Of one store. `kept` may be asked from any thread."""

    def __init__(self, store: BlobStore, bound: QuarantineLimits) -> None:
        self._store = store
        self._bound = bound
        self._trouble = ""

    def kept(self) -> Sequence[QuarantinedBlob]:
        """Blocking: in no order; empty where it cannot be told."""
        try:
            return self._store.aside()
        except StoreError as error:
            self._note(str(error))
            return ()

    async def sweep(self, now: float, limit: int) -> int:
        """Drop what is too old or too much where all blobs may take `limit` bytes; the bytes that are left."""
        kept = await asyncio.to_thread(self.kept)
        gone = await self._drop(self._bound.surplus(kept, now, limit), "too old, or too much of it")
        return sum(one.size for one in kept) - gone

    async def give_up(self) -> int:
        """Drop all of it; the bytes that this frees."""
        return await self._drop(await asyncio.to_thread(self.kept), "its room is needed")

    async def _drop(self, surplus: Collection[QuarantinedBlob], why: str) -> int:
        if not surplus:
            return 0
        freed = await asyncio.to_thread(lambda: [self._dropped(one) for one in surplus])
        if gone := [size for size in freed if size]:
            telemetry.log.info("quarantine.dropped", blobs=len(gone), bytes=sum(gone), why=why)
        return sum(freed)

    def _dropped(self, one: QuarantinedBlob) -> int:
        """Blocking: the bytes that this frees; 0 where it stays, or another process was first."""
        try:
            return self._store.drop_aside(one.digest)
        except StoreError as error:
            self._note(str(error))
            return 0

    def _note(self, trouble: str) -> None:
        if trouble != self._trouble:
            telemetry.log.warning("quarantine.failed", reason=trouble)
        self._trouble = trouble

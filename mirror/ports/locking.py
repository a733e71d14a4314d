"""Locks between processes, on one machine or on several."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Protocol

from mirror.ports.recording import Records


class Lease(Protocol):
    """A lock that its caller has. It ends with `release`, with the process, or, if its server is far away, when it can
    no longer be renewed.

        try_hold() ──> held ── release(), or the end of `with` ──> released
                         └── not renewed in time, or taken by another ──> lost: `lost` is set
    """

    @property
    def lost(self) -> asyncio.Event:
        """Set once another process may have the lock although this lease was not released. Never set by a lock of the
        kernel.
        """

    def fence(self, records: Records) -> Records:
        """The same records, to be written by whoever has this lock. If it may be lost unnoticed, a write raises
        `LeaseLost` once it is, and a late one is replaced by the next holder's.
        """

    def release(self) -> None:
        """Give the lock up. Repeatable, never blocks, never raises: a server that is far away is informed in the
        background, and if that fails the lease expires.
        """

    def __enter__(self) -> Lease: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Release the lock."""


class Locks(Protocol):
    """Locks by name, which are not reentrant. Every call may raise `StoreError`, or `IndexUnavailable` if the locks are
    in Redis.
    """

    def hold(self, name: str) -> AbstractAsyncContextManager[Lease]:
        """Wait for the lock, and hold it inside the context."""

    async def try_hold(self, name: str) -> Lease | None:
        """Take the lock if it is free now; None if it is not."""

    async def is_held(self, name: str) -> bool:
        """Whether anybody has the lock."""

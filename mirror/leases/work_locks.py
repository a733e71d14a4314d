"""Locks for work that one process of one replica does for all of them.

    the lock of this machine ── taken ──> the lease of the cluster ── taken ──> held
                             │                                     └─ another replica's ──> both are free
                             └─ another worker's ──> the bucket is not asked

So only one worker of each replica competes for a lease.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Final

from mirror.ports import Lease, Locks, Records


class WorkLease:
    """See `mirror.ports.Lease`: a lock of this machine, with a lease of the cluster."""

    def __init__(self, own: Lease, shared: Lease) -> None:
        self._own = own
        self._shared = shared
        self.lost: Final[asyncio.Event] = shared.lost

    def __repr__(self) -> str:
        return f"<WorkLease {self._shared!r}>"

    def fence(self, records: Records) -> Records:
        """See `Lease.fence`."""
        return self._shared.fence(records)

    def release(self) -> None:
        """See `Lease.release`."""
        self._shared.release()
        self._own.release()

    def __enter__(self) -> WorkLease:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.release()


class WorkLocks:
    """See `mirror.ports.Locks`."""

    def __init__(self, own: Locks, shared: Locks, is_shared: Callable[[str], bool]) -> None:
        """`own` are the locks of this machine, `shared` those of the cluster. `is_shared` says of a name whether the
        work is done by one replica for all.
        """
        self._own = own
        self._shared = shared
        self._is_shared = is_shared

    def __repr__(self) -> str:
        return f"<WorkLocks {self._shared!r}>"

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[Lease]:
        """See `Locks.hold`."""
        async with self._own.hold(name) as own:
            if not self._is_shared(name):
                yield own
                return
            async with self._shared.hold(name) as shared:
                yield WorkLease(own, shared)

    async def try_hold(self, name: str) -> Lease | None:
        """See `Locks.try_hold`."""
        own = await self._own.try_hold(name)
        if own is None or not self._is_shared(name):
            return own
        try:
            shared = await self._shared.try_hold(name)
        except BaseException:
            own.release()
            raise
        if shared is None:
            own.release()
            return None
        return WorkLease(own, shared)

    async def is_held(self, name: str) -> bool:
        """See `Locks.is_held`."""
        if await self._own.is_held(name):
            return True
        return self._is_shared(name) and await self._shared.is_held(name)

"""Builds the purge of a replica, which all other replicas carry out as well."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from mirror.app.clustering import Cluster
from mirror.app.storage import Storage
from mirror.app.stored_records import BucketUse
from mirror.errors import StoreError
from mirror.eviction.cluster_purge import ClusterPurge
from mirror.eviction.known_purges import KnownPurges, Orders
from mirror.eviction.purge import Purge
from mirror.store.local.json_records import JsonRecords
from mirror.store.local.layout import Layout
from mirror.store.objects.purge_orders import BucketPurgeOrders

#: Seconds between two looks at what the workers have seen, and until one counts as standing still.
_LOOK: Final = 0.05
_PATIENCE: Final = 5.0


async def _nowhere() -> None:
    """A command: the workers that run read the notices on the disk within a second."""


def in_all_replicas(
    storage: Storage,
    cluster: Cluster,
    purge: Purge,
    everywhere: Callable[[], Awaitable[None]] = _nowhere,
) -> ClusterPurge:
    """A purge that all replicas carry out. `everywhere` returns once no worker of this one answers with what was
    purged.
    """
    known = storage.purges or know_purges(storage.layout, storage.bucket)
    return ClusterPurge(purge, everywhere, cluster.notices, known, is_shared=storage.bucket is not None)


def know_purges(layout: Layout, use: BucketUse | None) -> KnownPurges:
    """What this process knows of the purges that were ordered; nothing is read yet."""
    orders: Orders = JsonRecords(layout, "purge-orders") if use is None else BucketPurgeOrders(use.bucket)
    return KnownPurges(orders, JsonRecords(layout, "purges-done"))


async def all_have_seen(here: Callable[[], list[str]], have: Callable[[list[str]], Awaitable[bool]]) -> None:
    """Returns once every worker of this replica has heeded the notices that are `here` now, on its disk; `have` says
    whether they have. Raises `StoreError` if one of them stands still.
    """
    notices = await asyncio.to_thread(here)
    end = time.monotonic() + _PATIENCE
    # workers are processes, which show on the disk what they have seen
    while not await have(notices):
        if time.monotonic() > end:
            raise StoreError("a worker has not heeded a purge: it stands still")
        await asyncio.sleep(_LOOK)

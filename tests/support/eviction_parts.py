"""The parts of eviction, put together for any store, index and clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from mirror.eviction.evictor import Evictor
from mirror.eviction.protection import Protection
from mirror.eviction.quarantine_sweep import QuarantineSweeper
from mirror.eviction.rebuilding import IndexRebuilder
from mirror.eviction.rounds import EvictionRounds
from mirror.eviction.space import Space
from mirror.eviction.usage import StoreUsage
from mirror.eviction.write_behind import WriteBehind
from mirror.graph.references import ReferenceReader
from mirror.oci.digest import Digest
from mirror.policy.eviction import Watermarks
from mirror.policy.quarantine_limits import QuarantineLimits
from mirror.ports import BlobStore, Catalog, ContentIndex


async def _no_rebuild() -> None:
    pass


@dataclass(frozen=True, slots=True)
class EvictionParts:
    """As one process has them."""

    write_behind: WriteBehind
    evictor: Evictor
    space: Space
    rounds: EvictionRounds


def make_eviction(
    store: BlobStore,
    catalog: Catalog,
    index: ContentIndex,
    watermarks: Watermarks,
    *,
    exclusive: Callable[[], AbstractAsyncContextManager[object]],
    protected: Callable[[], Collection[Digest]] = lambda: (),
    pinned: Callable[[float], Collection[Digest]] = lambda _: (),
    rebuild: Callable[[], Awaitable[object]] = _no_rebuild,
    reclaim: Callable[[bool], int] = lambda in_use: 0,
    quarantine: QuarantineLimits | None = None,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    most_blobs: int = 100_000,
    soon: float = 1.0,
) -> EvictionParts:
    """As `mirror/app/storage.py` does it for the disk."""
    protection = Protection()
    protection.add(protected)
    protection.add_on_disk(pinned)
    write_behind = WriteBehind(store, index, now=now, most_blobs=most_blobs)
    usage = StoreUsage(store, index, write_behind, now=now)
    references = ReferenceReader(store, catalog)
    evictor = Evictor(store, index, write_behind, usage, references, protection, exclusive=exclusive, now=now)
    rebuilder = IndexRebuilder(index, write_behind, rebuild, now=now)
    sweeper = QuarantineSweeper(store, quarantine or QuarantineLimits(), now=now)
    space = Space(
        store,
        evictor,
        usage,
        write_behind,
        protection,
        sweeper,
        watermarks,
        rebuilder=rebuilder,
        reclaim=reclaim,
        soon=soon,
    )
    return EvictionParts(
        write_behind, evictor, space, EvictionRounds(space, usage, write_behind, rebuilder, sleep=sleep)
    )

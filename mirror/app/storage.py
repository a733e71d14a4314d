"""Builds disk and index: enough for commands that need no server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from mirror.app.routes import age_rule
from mirror.config import (
    Config,
)
from mirror.eviction.evictor import Evictor
from mirror.eviction.pinned_images import PinnedContent
from mirror.eviction.reconcile import ensure
from mirror.fills.flights import Flights
from mirror.graph.references import ReferenceReader
from mirror.index.embedded import EmbeddedIndex
from mirror.oci.digest import Digest
from mirror.policy.eviction import Watermarks
from mirror.policy.pins import PinRule
from mirror.policy.quarantine_limits import QuarantineLimits
from mirror.ports import ContentIndex
from mirror.repository.tag_history import TagHistories
from mirror.store.local.blobs import LocalStore
from mirror.store.local.catalog import LocalCatalog
from mirror.store.local.freezes import LocalFreezes
from mirror.store.local.json_records import JsonRecords
from mirror.store.local.layout import Layout
from mirror.store.local.locks import Locks
from mirror.store.local.pin_files import LocalPins
from mirror.store.local.recovery import sweep
from mirror.values.sizes import parse_capacity, parse_size

#: Locks between all processes of a store; commands take them, too.
MISSES_LOCK = "misses"
SCRUB_LOCK = "scrub"
#: Seconds without a new byte after which an interrupted download may be dropped, if eviction does not free enough.
_IDLE = 60.0


@dataclass(frozen=True, slots=True)
class LocalDisk:
    """The files of the store, without an index: enough for commands that read the content or set pins."""

    layout: Layout
    store: LocalStore
    catalog: LocalCatalog
    pins: LocalPins


@dataclass(slots=True)
class Storage:
    """Disk and index, and what maintains them: enough for commands that need no server."""

    layout: Layout
    store: LocalStore
    catalog: LocalCatalog
    freezes: LocalFreezes
    pins: LocalPins
    index: ContentIndex
    locks: Locks
    evictor: Evictor
    pinned: PinnedContent


class ProtectedDigests:
    """The digests that are being downloaded, which the evictor must not drop.

    The evictor is built before the flights, so `flights` is set later. Until then no digest is protected.
    """

    def __init__(self) -> None:
        self.flights: Flights | None = None

    def digests(self) -> Collection[Digest]:
        return frozenset(self.flights.digests()) if self.flights else ()


def open_disk(config: Config) -> LocalDisk:
    """The store's files. Blocking; nothing needs to be closed. Raises `StoreError`."""
    layout = Layout(config.store.root)
    return LocalDisk(layout, LocalStore(layout), LocalCatalog(layout), LocalPins(layout))


@asynccontextmanager
async def open_storage(config: Config, in_flight: ProtectedDigests | None = None) -> AsyncIterator[Storage]:
    """Opens disk and index, and closes them at the end. Raises `StoreError`, `ConfigError`."""
    in_flight = in_flight or ProtectedDigests()
    async with AsyncExitStack() as stack:
        disk = await asyncio.to_thread(open_disk, config)
        layout, store, catalog, pins = disk.layout, disk.store, disk.catalog, disk.pins
        locks = Locks(layout, secret=store.id)
        index = _open_index(config, layout, store.id)
        stack.push_async_callback(index.aclose)
        names = ReferenceReader(store, catalog)
        freezes = LocalFreezes(layout)
        histories = TagHistories(catalog, freezes)
        pinned = PinnedContent(
            catalog,
            pins,
            pin_rules(config),
            names,
            frozen=freezes.look,
            answer=lambda repo, tag: histories.answer(repo, tag, age_rule(config, repo)),
        )
        evictor = Evictor(
            store,
            index,
            water=Watermarks(parse_capacity(config.store.capacity), config.store.high_water, config.store.low_water),
            names=names,
            protected=in_flight.digests,
            pinned=pinned.digests,
            exclusive=lambda: locks.named("evict"),
            rebuild=lambda: ensure(store, catalog, index, exclusive=lambda: locks.named("rebuild")),
            reclaim=lambda: sweep(layout, keep=_IDLE, now=time.time).bytes,
            quarantine=QuarantineLimits(parse_size(config.store.quarantine_size), config.store.quarantine_keep),
        )
        yield Storage(layout, store, catalog, freezes, pins, index, locks, evictor, pinned)


def _open_index(config: Config, layout: Layout, store_id: str) -> ContentIndex:
    if url := config.index.url.get_secret_value():
        # imported here, so that commands without Redis do not load its library
        from mirror.index.redis import RedisIndex, parse_redis_url

        return RedisIndex(parse_redis_url(url), store_id=store_id, budget=config.index.timeout)
    return EmbeddedIndex(layout.root / "index.sqlite")


def pin_rules(config: Config) -> list[PinRule]:
    """The pins that the configuration sets."""
    return [PinRule(pin.match, pin.reason) for pin in config.pin]


def scrub_notes(layout: Layout) -> JsonRecords:
    """The record of how far the scrub of the whole store has come."""
    return JsonRecords(layout, "scrub")

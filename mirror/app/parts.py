"""What is built, by the names that its users know."""

from __future__ import annotations

from dataclasses import dataclass

from mirror.ports import ContentIndex
from mirror.repository.evictor import Evictor
from mirror.repository.pins import PinnedContent
from mirror.repository.router import Router
from mirror.repository.shelf import Shelf
from mirror.server.admin import Admin
from mirror.server.front import Front
from mirror.server.health import Readiness
from mirror.store.catalog import LocalCatalog
from mirror.store.freezes import LocalFreezes
from mirror.store.layout import Layout
from mirror.store.local import LocalStore
from mirror.store.locks import Locks
from mirror.store.pins import LocalPins
from mirror.transfer.jobs import Jobs
from mirror.transfer.schedule import Sync

__all__ = ["App", "Disk", "Storage"]


@dataclass(frozen=True, slots=True)
class Disk:
    """The truth alone: enough for the command line to look at what is here, and to say what must stay."""

    layout: Layout
    store: LocalStore
    catalog: LocalCatalog
    pins: LocalPins


@dataclass(slots=True)
class Storage:
    """Disk and index, and what keeps them in order: enough for the command line without a server."""

    layout: Layout
    store: LocalStore
    catalog: LocalCatalog
    freezes: LocalFreezes
    pins: LocalPins
    index: ContentIndex
    locks: Locks
    evictor: Evictor
    pinned: PinnedContent


@dataclass(slots=True)
class App:
    """A worker's part of the mirror."""

    front: Front
    readiness: Readiness
    router: Router
    shelf: Shelf
    storage: Storage
    sync: Sync
    jobs: Jobs
    admin: Admin

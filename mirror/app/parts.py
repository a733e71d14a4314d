"""A worker, by the names that the users of its parts know."""

from __future__ import annotations

from dataclasses import dataclass

from mirror.app.storage import Storage
from mirror.repository.router import Router
from mirror.repository.shelf import Shelf
from mirror.server.admin import Admin
from mirror.server.front import Front
from mirror.server.health import Readiness
from mirror.transfer.jobs import Jobs
from mirror.transfer.schedule import Sync

__all__ = ["App"]


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

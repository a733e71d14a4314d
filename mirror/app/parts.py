"""A worker, by the names that the users of its parts know."""

from __future__ import annotations

from dataclasses import dataclass

from mirror.app.storage import Storage
from mirror.prefetch.jobs import Jobs
from mirror.prefetch.sync import Sync
from mirror.repository.router import Router
from mirror.repository.shared import Shared
from mirror.server.admin.handler import Admin
from mirror.server.health import Readiness
from mirror.server.registry.handler import RegistryHandler

__all__ = ["App"]


@dataclass(slots=True)
class App:
    """A worker's part of the mirror."""

    front: RegistryHandler
    readiness: Readiness
    router: Router
    shelf: Shared
    storage: Storage
    sync: Sync
    jobs: Jobs
    admin: Admin

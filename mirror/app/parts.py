"""The parts of a worker, under the names by which other modules use them."""

from __future__ import annotations

from dataclasses import dataclass

from mirror.app.storage import Storage
from mirror.prefetch.jobs import Jobs
from mirror.prefetch.sync import Sync
from mirror.repository.router import Router
from mirror.repository.shared import Shared
from mirror.server.admin.api import Admin
from mirror.server.probes import Readiness
from mirror.server.registry.handler import RegistryHandler


@dataclass(slots=True)
class App:
    """Everything that one worker is made of."""

    front: RegistryHandler
    readiness: Readiness
    router: Router
    shelf: Shared
    storage: Storage
    sync: Sync
    jobs: Jobs
    admin: Admin

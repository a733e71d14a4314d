"""Builds the admin API and the work that is requested through it: jobs and sync rules."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

from mirror import __version__, telemetry
from mirror.access.audit import AuditLog
from mirror.app.client_files import ClientFiles
from mirror.app.prefetching import make_jobs, make_sync, open_leases
from mirror.app.repositories import Repositories
from mirror.app.storage import Storage, make_purge, pin_rules
from mirror.config import Config, masked
from mirror.policy.image_names import Image, parse_image
from mirror.policy.selection import search
from mirror.prefetch.jobs import Jobs, prefetching
from mirror.prefetch.sync import Sync
from mirror.server.admin.api import Admin
from mirror.server.admin.image_admin import ImageAdmin
from mirror.server.admin.traffic_log import TrafficLog, total
from mirror.server.admin.worker_status import Workers
from mirror.server.registry.access_control import AccessControl
from mirror.store.local.json_records import JsonRecords
from mirror.store.local.purge_notices import Purges
from mirror.store.local.status_board import StatusBoard


@dataclass(frozen=True, slots=True)
class Administration:
    """The admin API, and what runs behind it."""

    admin: Admin
    sync: Sync
    jobs: Jobs
    workers: Workers
    traffic: TrafficLog


def open_administration(
    config: Config,
    storage: Storage,
    repositories: Repositories,
    gate: AccessControl | None,
    audit: AuditLog | None,
    stack: AsyncExitStack,
    now: Callable[[], float],
) -> Administration:
    """Builds the admin API; `stack` closes what is opened for it."""
    router, table = repositories.router, repositories.upstreams.table
    sync = make_sync(config, storage, router.guarded, open_leases(config, storage, stack), now=now)

    def parse(text: str) -> Image:
        return parse_image(text, table)

    jobs = make_jobs(storage, {"prefetch": prefetching(router.guarded, parse), "sync": sync.job}, now=now)
    workers = _make_workers(storage, repositories)
    traffic = TrafficLog(storage.records("traffic"), locks=storage.locks)
    images = ImageAdmin(
        storage.store,
        storage.catalog,
        storage.pins,
        storage.freezes,
        storage.index,
        storage.eviction.evictor,
        storage.eviction.space,
        make_purge(config, storage, repositories.shared.caches.forget),
        rules=pin_rules(config),
        search=lambda text: search(text, table),
    )
    admin = Admin(
        jobs,
        sync,
        images,
        workers,
        traffic,
        parse_image=parse,
        status=_Status(config, storage, workers),
        config=masked(config),
        clients=ClientFiles(config),
        version=__version__,
        gate=gate if config.access.has_admins else None,
        audit=audit,
    )
    return Administration(admin, sync, jobs, workers, traffic)


def _make_workers(storage: Storage, repositories: Repositories) -> Workers:
    purges = Purges(JsonRecords(storage.layout, "purges"))

    def look() -> None:
        for repo, tags, digests in purges.new():
            repositories.shared.caches.forget(repo, tags, digests)

    board = StatusBoard(storage.layout, storage.locks)
    return Workers(board, repositories.shared.flights, repositories.upstreams.states, look=look)


#: Seconds that the status waits until the size of the store is counted.
_COUNTED: Final = 1.0


class _Status:
    """The status of all workers and of the store, for the admin API."""

    def __init__(self, config: Config, storage: Storage, workers: Workers) -> None:
        self._offline = config.offline
        self._storage = storage
        self._workers = workers

    async def __call__(self) -> dict[str, Any]:
        eviction = self._storage.eviction
        size, limit = await eviction.space.fullness(_COUNTED) or (None, None)
        quarantined = await asyncio.to_thread(eviction.space.quarantined)
        workers = await self._workers.workers()
        return {
            "version": __version__,
            "worker": os.getpid(),
            "uptime": round(self._workers.uptime, 1),
            "workers": workers,
            "store": {
                "root": str(self._storage.layout.root),
                "bytes": size,
                "limit": limit,
                "quarantine": quarantined,
                "failing": int(await asyncio.to_thread(telemetry.measured, "mirror_store_failing")),
            },
            "index": {"trouble": eviction.write_behind.trouble},
            "flights": len(await self._workers.flights()),
            "traffic": (await asyncio.to_thread(total)).to_json(),
            "offline": self._offline,
        }

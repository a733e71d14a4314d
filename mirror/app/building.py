"""Builds one worker.

`build` opens everything from top to bottom, and closes it in the reverse order.
"""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from mirror import __version__, telemetry
from mirror.access.audit import AuditLog
from mirror.aio.memo import Memo, redis_cache
from mirror.aio.singleflight import end
from mirror.app.client_auth import open_gate
from mirror.app.client_files import ClientFiles
from mirror.app.housekeeping import keep_house, keep_scrubbing
from mirror.app.parts import App
from mirror.app.purging import make_purge
from mirror.app.routes import content_lists, route_rule
from mirror.app.storage import MISSES_LOCK, Storage, open_storage, pin_rules
from mirror.app.syncing import make_sync, open_leases
from mirror.app.tasks import make_jobs
from mirror.app.upstreams import Upstreams
from mirror.config import (
    Config,
    TraceSettings,
    masked,
)
from mirror.fills.flights import Flights
from mirror.fills.read_ahead import ReadAhead
from mirror.heartbeat import Heartbeat
from mirror.index.sorted_tags import LocalSortedTags
from mirror.inspect.recent_answers import Recent
from mirror.policy.image_names import Image, parse_image
from mirror.policy.rules import RouteRule
from mirror.policy.selection import search
from mirror.ports import BlobInfo
from mirror.prefetch.jobs import prefetching
from mirror.repository.grants import Grants
from mirror.repository.miss_report import Misses
from mirror.repository.router import Router
from mirror.repository.shared import Shared
from mirror.repository.tag_history import TagHistories
from mirror.repository.tag_windows import TagWindows
from mirror.server.admin.api import Admin
from mirror.server.admin.image_admin import ImageAdmin
from mirror.server.admin.traffic_log import TrafficLog, total
from mirror.server.admin.worker_status import Workers
from mirror.server.probes import Readiness, health_pages
from mirror.server.process_metrics import keep_pulse
from mirror.server.registry.handler import Page, RegistryHandler
from mirror.server.registry.sending import Sender
from mirror.store.local.answer_files import LocalRecent
from mirror.store.local.json_records import JsonRecords
from mirror.store.local.miss_file import LocalMisses
from mirror.store.local.purge_notices import Purges
from mirror.store.local.status_board import StatusBoard
from mirror.trust.cosign import read_key
from mirror.values.sizes import parse_size

#: Upper bounds: threads are started when they are needed. Each fill uses one while it receives.
_FILLING_THREADS = 256
_SENDING_THREADS = 16


@asynccontextmanager
async def build(
    config: Config,
    *,
    housework: bool = True,
    pulse: Heartbeat | None = None,
    now: Callable[[], float] = time.time,
) -> AsyncIterator[App]:
    """Opens everything that one worker needs, and closes it at the end.

    `housework` starts the background tasks of a server; commands do without them. The worker reports through `pulse`
    that its event loop runs. `now` is the clock, in epoch seconds.

    Raises `StoreError`, `ConfigError`.
    """
    async with AsyncExitStack() as stack:
        storage = await stack.enter_async_context(open_storage(config, now=now))
        if config.offline:
            telemetry.log.info("sealed mirror contacts no upstream")
        filling = ThreadPoolExecutor(_FILLING_THREADS, "fill")
        stack.callback(filling.shutdown, wait=False, cancel_futures=True)
        sending = ThreadPoolExecutor(_SENDING_THREADS, "send")
        stack.callback(sending.shutdown, wait=False, cancel_futures=True)

        memo = _open_memo(config, now)
        stack.push_async_callback(memo.aclose)
        upstreams = Upstreams(config, filling, memo)
        stack.push_async_callback(upstreams.aclose)
        upstreams.open()

        if housework and config.trace.endpoint:
            stack.push_async_callback(await asyncio.to_thread(_start_tracing, config.trace))

        async def landed(info: BlobInfo) -> None:
            await shelf.landed(info)

        flights = Flights(
            storage.store,
            storage.eviction.space,
            filling,
            landed=landed,
            label=upstreams.label,
            patience=config.server.wait_for_upstream,
        )
        stack.push_async_callback(flights.aclose)
        storage.eviction.protection.add(flights.digests)
        misses = Misses(
            LocalMisses(storage.layout),
            storage.store,
            storage.catalog,
            exclusive=lambda: storage.locks.hold(MISSES_LOCK),
            now=now,
        )
        noting = asyncio.create_task(misses.run())
        stack.push_async_callback(end, noting)
        stack.push_async_callback(misses.aclose)
        grants = Grants(storage.index, storage.catalog, storage.store)
        stack.push_async_callback(grants.aclose)
        shelf = Shared(
            flights=flights,
            store=storage.store,
            catalog=storage.catalog,
            index=storage.index,
            grants=grants,
            memo=memo,
            executor=filling,
            exclusive=storage.locks.hold,
            now=now,
            touch=storage.eviction.write_behind.touch,
            arrived=storage.eviction.write_behind.record_blob,
            name=storage.eviction.write_behind.record_references,
            histories=TagHistories(storage.catalog, storage.freezes),
            lists=TagWindows(
                LocalSortedTags(storage.layout.lists, parse_size(config.store.tag_lists_max_size), now=now)
            ),
            label=upstreams.label,
            ahead=ReadAhead(storage.eviction.space.limit, at_once=config.server.max_concurrent_prefetches),
            misses=misses,
        )
        stack.push_async_callback(shelf.aclose)

        readiness = Readiness()
        router = Router(
            upstreams.table,
            [(route.match, route_rule(route, config)) for route in config.route],
            RouteRule(offline=config.offline),
            upstreams.named,
            shelf,
            lists=content_lists(config),
            keys={str(path): read_key(path) for route in config.route for path in route.signed_by},
        )
        upstreams.forgotten = router.forget
        stack.push_async_callback(router.aclose)
        kept = LocalRecent(storage.layout, storage.locks)
        stack.callback(kept.close)
        recent = Recent(kept if housework else None, now=now)
        sender = Sender(sending, stall=config.server.client_stall_timeout)
        gate = await open_gate(config, storage.layout, upstreams.label, stack)
        audit = None
        if config.access.audit_log is not None:
            audit = AuditLog(config.access.audit_log)
            stack.callback(audit.close)
        front = RegistryHandler(
            router,
            sender,
            _pages(config, readiness, pulse),
            log_requests=config.server.access_log,
            gate=gate,
            audit=audit,
            recent=recent,
        )

        sync = make_sync(config, storage, router.guarded, open_leases(config, storage, stack), now=now)

        def parse(text: str) -> Image:
            return parse_image(text, upstreams.table)

        jobs = make_jobs(storage, {"prefetch": prefetching(router.guarded, parse), "sync": sync.job}, now=now)
        workers = _make_workers(storage, shelf, flights, upstreams)
        traffic = TrafficLog(storage.records("traffic"), locks=storage.locks)
        admin = Admin(
            jobs,
            sync,
            ImageAdmin(
                storage.store,
                storage.catalog,
                storage.pins,
                storage.freezes,
                storage.index,
                storage.eviction.evictor,
                storage.eviction.space,
                make_purge(config, storage, shelf),
                rules=pin_rules(config),
                search=lambda text: search(text, upstreams.table),
            ),
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
        app = App(front, readiness, router, shelf, storage, sync, jobs, admin)

        if housework:
            telemetry.BUILD.labels(__version__, platform.python_version()).set(1)
            for work in (
                storage.eviction.rounds.run(),
                keep_house(config, storage),
                keep_scrubbing(config, app),
                keep_pulse(beat=pulse.beat) if pulse else keep_pulse(),
                recent.run(),
                workers.run(),
                traffic.run(),
            ):
                task = asyncio.create_task(work)
                stack.push_async_callback(end, task)
        stack.push_async_callback(storage.eviction.write_behind.flush)
        stack.push_async_callback(recent.flush)
        yield app


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


def _pages(config: Config, readiness: Readiness, pulse: Heartbeat | None) -> dict[str, Page]:
    blocked = config.server.blocked_timeout
    if pulse is None or not blocked:
        return health_pages(readiness)
    return health_pages(readiness, silence=pulse.beats.silence, longest=blocked / 2)


def _make_workers(storage: Storage, shelf: Shared, flights: Flights, upstreams: Upstreams) -> Workers:
    purges = Purges(JsonRecords(storage.layout, "purges"))

    def look() -> None:
        for repo, tags, digests in purges.new():
            shelf.forget(repo, tags, digests)

    return Workers(StatusBoard(storage.layout, storage.locks), flights, upstreams.states, look=look)


def _start_tracing(settings: TraceSettings) -> Callable[[], Awaitable[None]]:
    """Starts tracing, and returns the function that ends it. Blocking: importing the library is slow, so it is imported
    only if tracing is configured.
    """
    from mirror.telemetry.tracing import start

    return start(settings.endpoint, settings.sample_ratio, version=__version__)


def _open_memo(config: Config, now: Callable[[], float]) -> Memo:
    url = config.index.url.get_secret_value()
    shared = redis_cache(url, budget=config.index.timeout) if url else None
    return Memo(shared=shared, budget=config.index.timeout, now=now)

"""Builds one worker.

`build` opens everything from top to bottom, and closes it in the reverse order.
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from mirror import __version__, telemetry
from mirror.access.audit import AuditLog
from mirror.aio.singleflight import cancel_and_wait
from mirror.app.administration import Administration, open_administration
from mirror.app.bucket import make_room_for_waiting
from mirror.app.client_auth import open_audit, open_gate
from mirror.app.collecting import collect_when_due, sweep_when_due
from mirror.app.housekeeping import (
    fetching_through,
    forget_when_due,
    keep_ledger,
    resume_lazy_pulls,
    run_housekeeping,
    run_scrubs,
)
from mirror.app.object_storage.bucket_upkeep import confirm_bucket, keep_bucket, keep_cache, until_listed
from mirror.app.object_storage.redirecting import open_redirects
from mirror.app.reporting import Reports, open_reports
from mirror.app.repositories import Repositories, open_repositories
from mirror.app.retaining import open_pull_notes, retain_when_due
from mirror.app.storage import Storage, blob_places, open_storage
from mirror.clock import steady_time
from mirror.config import Config, TraceSettings
from mirror.errors import StoreError
from mirror.eviction.scrub import HostedNaming, Scrub
from mirror.eviction.write_behind import WriteBehind
from mirror.graph.blob_places import BlobPlaces
from mirror.heartbeat import Heartbeat
from mirror.inspect.recent_answers import RecentAnswers
from mirror.policy.clients.networks import Networks
from mirror.ports import Bucket
from mirror.prefetch.jobs import Jobs
from mirror.prefetch.scheduler import SyncScheduler
from mirror.prefetch.sync import Sync
from mirror.replication.replication_scheduler import ReplicationScheduler
from mirror.repository.protocol import Fetchable
from mirror.repository.router import Router
from mirror.repository.shared import Shared
from mirror.retention.pull_notes import PullNotes
from mirror.rounds import begin
from mirror.server.admin.api import Admin
from mirror.server.probes import Readiness, health_pages
from mirror.server.process_metrics import beat_regularly
from mirror.server.registry.access_control import AccessControl
from mirror.server.registry.client_addresses import ClientAddresses
from mirror.server.registry.handler import Page, RegistryHandler
from mirror.server.registry.push import Pushes
from mirror.server.registry.receiving import Receiver
from mirror.server.registry.redirects import Redirects
from mirror.server.registry.sending import Sender
from mirror.store.local.answer_files import LocalRecent
from mirror.store.local.local_records import local_catalog
from mirror.values.sizes import parse_size

if TYPE_CHECKING:
    from mirror.app.clustering import Cluster

#: Seconds without a byte after which no end of a server waits for an upload session.
_ABANDONED: Final = 30.0
#: An upper bound: threads are started when they are needed.
_SENDING_THREADS: Final = 16


@dataclass(frozen=True, slots=True)
class OpenUploads:
    """How many upload sessions are on this disk, and how many of them are `active`: clients go on with them."""

    open: int = 0
    active: int = 0


@dataclass(frozen=True, slots=True)
class App:
    """Everything that one worker is made of."""

    front: RegistryHandler
    readiness: Readiness
    router: Router
    shared: Shared
    storage: Storage
    scheduler: SyncScheduler
    replication: ReplicationScheduler
    jobs: Jobs
    admin: Admin
    places: BlobPlaces

    @property
    def sync(self) -> Sync:
        """The sync rules."""
        return self.scheduler.sync

    def uploads(self) -> OpenUploads:
        """Blocking: the upload sessions on this disk; none if they cannot be read."""
        since = time.time() - _ABANDONED
        try:
            sessions = self.storage.hosted.uploads.sessions()
        except StoreError:
            return OpenUploads()
        return OpenUploads(len(sessions), sum(session.changed_at > since for session in sessions))

    def scrub(self, *, rate: float | None, repair: bool = True, read: Callable[[int], None] = lambda _: None) -> Scrub:
        """Returns a scrub that hashes blobs at no more than `rate` bytes per second; None: as fast as it can.

        Damaged blobs are fetched again if `repair` is set and the repository is neither sealed nor hosted. `read` is
        called with the number of bytes that were read.
        """
        storage = self.storage
        if storage.bucket is None:
            catalog, hosted = storage.catalog, HostedNaming(storage.hosted.blobs, self.places)
        else:
            # hosted blobs have copies here, which are fetched again when they are asked for
            catalog, hosted = local_catalog(storage.layout), None
        return Scrub(
            storage.evictable,
            catalog,
            hosted=hosted,
            rate=rate,
            fetch_again=fetching_through(self.router, self.shared.caches) if repair else None,
            may_fetch=lambda repo: isinstance(self.router.repository(repo), Fetchable),
            read=read,
        )


@asynccontextmanager
async def build(
    config: Config,
    *,
    housework: bool = True,
    pulse: Heartbeat | None = None,
    bucket: Bucket | None = None,
    now: Callable[[], float] = time.time,
    steady: Callable[[], float] = steady_time,
) -> AsyncIterator[App]:
    """Opens everything that one worker needs, and closes it at the end.

    `housework` starts the background tasks of a server; commands do without them. The worker reports through `pulse`
    that its event loop runs. `bucket` is used in place of the one that is configured. `now` is the clock, in epoch
    seconds; `steady` one that cannot be set, in seconds.

    Raises `StoreError`, `ConfigError`.
    """
    async with AsyncExitStack() as stack:
        if config.store.bucket is not None:
            make_room_for_waiting()
        storage = await stack.enter_async_context(open_storage(config, bucket=bucket, serves=housework, now=now))
        if housework:
            await confirm_bucket(storage)
        if config.offline:
            telemetry.log.info("sealed mirror contacts no upstream")
        if housework and config.trace.endpoint:
            stack.push_async_callback(await asyncio.to_thread(_start_tracing, config.trace))
        repositories = await open_repositories(config, storage, stack, now, steady)
        recent = _open_recent(storage, stack, now, on_disk=housework)
        addresses = ClientAddresses(Networks(config.server.trusted_proxies))
        gate = await open_gate(config, storage, repositories, addresses, stack, now)
        audit = open_audit(config, stack)
        announcer = repositories.hosting.verbs.parts.events
        reports = await stack.enter_async_context(open_reports(config, storage, announcer, now))
        readiness, sender = Readiness(), _open_sender(config, stack)
        if storage.cluster is not None:
            # imported here: a mirror without replicas does not even load it
            from mirror.app.clusters.blob_exchange import answer_blobs

            answer_blobs(storage.cluster, repositories.router, sender)
        front = _open_front(
            config,
            repositories.router,
            sender,
            _pages(config, readiness, pulse),
            gate,
            audit,
            recent,
            addresses,
            open_redirects(config, storage, addresses, stack),
            _open_pushes(config, storage, repositories),
        )
        admin = open_administration(config, storage, repositories, gate, audit, stack, now, steady)
        app = App(
            front,
            readiness,
            repositories.router,
            repositories.shared,
            storage,
            SyncScheduler(admin.sync),
            ReplicationScheduler(
                admin.replications, ready=partial(until_listed, storage) if storage.bucket is not None else None
            ),
            admin.jobs,
            admin.admin,
            blob_places(config, storage),
        )
        if housework:
            pulls = open_pull_notes(config, storage, now)
            stack.push_async_callback(asyncio.to_thread, pulls.flush)
            if pulls.asked:
                stack.callback(telemetry.listen(pulls.listen))
            telemetry.BUILD.labels(__version__, platform.python_version()).set(1)
            own = _of_this_worker(storage, admin, recent, pulls, reports, pulse)
            for work in (*own, *_for_the_store(config, app, admin, now, steady)):
                stack.push_async_callback(cancel_and_wait, begin(work))
        stack.push_async_callback(storage.eviction.write_behind.flush)
        stack.push_async_callback(recent.flush)
        yield app


def _of_this_worker(
    storage: Storage,
    admin: Administration,
    recent: RecentAnswers,
    pulls: PullNotes,
    reports: Reports | None,
    pulse: Heartbeat | None,
) -> Iterator[Coroutine[Any, Any, None]]:
    """The background work of every worker: what it notes, publishes and measures of itself, and what it sends."""
    yield beat_regularly(beat=_beat(pulse, storage.eviction.write_behind)) if pulse else beat_regularly()
    yield recent.run()
    yield pulls.run()
    yield admin.workers.run()
    yield admin.traffic.run()
    if reports is not None:
        yield reports.run()
    if storage.leasing is not None:
        yield storage.leasing.keep_clock()


def _for_the_store(
    config: Config,
    app: App,
    admin: Administration,
    now: Callable[[], float],
    steady: Callable[[], float],
) -> Iterator[Coroutine[Any, Any, None]]:
    """The background work about the store and the cluster, most of which one worker at a time does for all."""
    storage = app.storage
    yield storage.eviction.rounds.run()
    yield run_housekeeping(config, storage)
    yield keep_ledger(config, storage)
    yield forget_when_due(config, storage, app.shared.histories.clocks.earlier)
    yield collect_when_due(config, storage, admin.collector)
    yield sweep_when_due(config, storage, now, steady)
    yield retain_when_due(config, storage, admin.retention)
    yield run_scrubs(config, storage, app.scrub(rate=parse_size(config.scrub.rate)))
    if storage.bucket is not None:
        yield keep_bucket(storage, app.router.forget)
    if storage.bucket_cache is not None:
        yield keep_cache(storage)
    if app.router.gives_parts:
        yield resume_lazy_pulls(storage, app.router)
    if admin.cluster_purge is not None:
        yield admin.cluster_purge.run(partial(storage.locks.try_hold, "purge-orders"))
    if storage.cluster is not None:
        yield _look_at_members(storage, storage.cluster)
        yield from _follow(config, storage)


def _look_at_members(storage: Storage, cluster: Cluster) -> Coroutine[Any, Any, None]:
    # imported here: a mirror without replicas does not even load it
    from mirror.peers.member_looks import MemberLooks

    return MemberLooks(cluster.members, cluster.client).run(partial(storage.locks.try_hold, "member-looks"))


def _follow(config: Config, storage: Storage) -> list[Coroutine[Any, Any, None]]:
    """What follows the changes of other replicas, if there are any."""
    if storage.cluster is None or storage.bucket is None:
        return []
    # imported here: a mirror without replicas does not even load it
    from mirror.app.clusters.journal_following import exchange_changes, follow_journals

    exchange_changes(storage.bucket, storage.cluster)
    return [follow_journals(config, storage)]


def _open_sender(config: Config, stack: AsyncExitStack) -> Sender:
    threads = ThreadPoolExecutor(_SENDING_THREADS, "send")
    stack.callback(threads.shutdown, wait=False, cancel_futures=True)
    return Sender(threads, stall=config.server.client_stall_timeout)


def _open_front(
    config: Config,
    router: Router,
    sender: Sender,
    pages: dict[str, Page],
    gate: AccessControl | None,
    audit: AuditLog | None,
    recent: RecentAnswers,
    addresses: ClientAddresses,
    redirects: Redirects | None,
    pushes: Pushes,
) -> RegistryHandler:
    return RegistryHandler(
        router,
        sender,
        pages,
        log_requests=config.server.access_log,
        access=gate,
        audit=audit,
        recent=recent,
        pushes=pushes,
        addresses=addresses,
        redirects=redirects,
    )


def _open_pushes(config: Config, storage: Storage, repositories: Repositories) -> Pushes:
    receiver = Receiver(parse_size(config.hosting.min_upload_rate))
    if storage.cluster is None:
        return Pushes(receiver)
    # imported here: a mirror without replicas does not even load it
    from mirror.app.clusters.uploads_elsewhere import open_uploads_elsewhere

    return Pushes(receiver, open_uploads_elsewhere(storage.cluster, storage, repositories, receiver))


def _open_recent(storage: Storage, stack: AsyncExitStack, now: Callable[[], float], *, on_disk: bool) -> RecentAnswers:
    if not on_disk:
        return RecentAnswers(now=now)
    file = LocalRecent(storage.layout, storage.locks)
    stack.callback(file.close)
    return RecentAnswers(file, now=now)


def _beat(pulse: Heartbeat, uses: WriteBehind) -> Callable[[], None]:
    """What beats. By it, the other workers learn whether clients are served here: what they do in the background gives
    way to those as well, because all share one disk and one index.
    """
    uses.idle_elsewhere = pulse.beats.idle
    return lambda: pulse.beat(uses.used_here_at)


def _pages(config: Config, readiness: Readiness, pulse: Heartbeat | None) -> dict[str, Page]:
    blocked = config.server.blocked_timeout
    if pulse is None or not blocked:
        return health_pages(readiness)
    return health_pages(readiness, silence=pulse.beats.silence, longest=blocked / 2)


def _start_tracing(settings: TraceSettings) -> Callable[[], Awaitable[None]]:
    """Starts tracing, and returns the function that ends it. Blocking: importing the library is slow, so it is imported
    only if tracing is configured.
    """
    from mirror.telemetry.tracing import start

    return start(settings.endpoint, settings.sample_ratio, version=__version__)

"""Builds the admin API and the work that is requested through it: jobs and sync rules."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import astuple, dataclass
from functools import partial
from typing import TYPE_CHECKING

from mirror import __version__
from mirror.access.audit import AuditLog
from mirror.aio.caches import shown
from mirror.app.client_files import ClientFiles
from mirror.app.collecting import open_collector
from mirror.app.object_storage.bucket_upkeep import memory_status
from mirror.app.prefetching import make_jobs, make_sync, open_leases
from mirror.app.replicating import open_copies, open_replications
from mirror.app.repositories import Repositories
from mirror.app.retaining import open_retention
from mirror.app.storage import Storage, blob_places, immutable_tags, make_purge, pin_rules, quota_rules
from mirror.app.virtual import MemberNames
from mirror.collection.collector import GarbageCollector
from mirror.config import Config, redacted_settings
from mirror.eviction.cached_copies import CachedCopies
from mirror.hosting.damaged_blobs import DamagedBlobs
from mirror.hosting.operator_deletions import OperatorDeletions
from mirror.hosting.quotas import Quotas
from mirror.policy.hosted.stay_rules import StayRules
from mirror.prefetch.jobs import Jobs, prefetching
from mirror.prefetch.sync import Sync
from mirror.replication.replications import Replications
from mirror.retention.retention_schedule import Retention
from mirror.server.admin.api import Admin, BackgroundWork, ShownSettings
from mirror.server.admin.bucket_status import BucketFacts, RememberedRecords
from mirror.server.admin.copy_admin import CopyAdmin
from mirror.server.admin.event_admin import EventAdmin
from mirror.server.admin.hosted_admin import HostedAdmin
from mirror.server.admin.image_admin import ImageAdmin
from mirror.server.admin.mirror_status import ClusterFacts, HostedFacts, LeaseJson, MirrorStatus
from mirror.server.admin.repository_list import RepositoryList
from mirror.server.admin.retention_admin import RetentionAdmin
from mirror.server.admin.traffic_log import TrafficLog
from mirror.server.admin.worker_status import PeerStatus, ReplicaWork, Workers
from mirror.server.registry.access_control import AccessControl
from mirror.store.local.json_records import JsonRecords
from mirror.store.local.purge_notices import PurgeNotices
from mirror.store.local.status_board import StatusBoard
from mirror.values.timestamps import format_moment

if TYPE_CHECKING:
    from mirror.app.clustering import Cluster
    from mirror.eviction.cluster_purge import ClusterPurge
    from mirror.eviction.purge import Purge


@dataclass(frozen=True, slots=True)
class Administration:
    """The admin API, and what runs behind it."""

    admin: Admin
    sync: Sync
    jobs: Jobs
    workers: Workers
    traffic: TrafficLog
    collector: GarbageCollector
    replications: Replications
    retention: Retention
    #: The purge that other replicas carry out, too; None if there are none.
    cluster_purge: ClusterPurge | None = None


def open_administration(
    config: Config,
    storage: Storage,
    repositories: Repositories,
    gate: AccessControl | None,
    audit: AuditLog | None,
    stack: AsyncExitStack,
    now: Callable[[], float],
    steady: Callable[[], float],
) -> Administration:
    """Builds the admin API; `stack` closes what is opened for it. `now` is in epoch seconds; `steady`: see
    `GraceClock`.
    """
    router, table = repositories.router, repositories.upstreams.table
    sync = make_sync(config, storage, router.guarded, open_leases(config, storage, stack), now=now)
    parse = MemberNames(config, storage.stored.is_taken_now).parse
    replications = open_replications(config, storage, repositories, audit, now)
    kinds = {"prefetch": prefetching(router.guarded, parse), "sync": sync.job, "replicate": replications.job}
    jobs = make_jobs(storage, kinds, now=now)
    notices = PurgeNotices(JsonRecords(storage.layout, "purges"))
    workers = _make_workers(storage, repositories, notices)
    purge = make_purge(config, storage, repositories.shared.forget)
    cluster_purge = None
    if storage.cluster is not None:
        cluster_purge = _in_all_replicas(storage, storage.cluster, purge, workers, notices)
    traffic = TrafficLog(storage.records("traffic"), locks=storage.locks)
    images = ImageAdmin(
        blob_places(config, storage),
        storage.catalog,
        storage.pins,
        storage.freezes,
        storage.index,
        storage.eviction.evictor,
        storage.eviction.space,
        cluster_purge or purge,
        rules=StayRules(pin_rules(config), immutable_tags(config)),
        table=table,
    )
    stack.push_async_callback(images.aclose)
    keep_deleted = {entry.name: entry.keep_deleted for entry in config.hosted}
    verbs = repositories.hosting.verbs
    threads = None if storage.bucket is None else storage.bucket.threads.admin
    deletions = OperatorDeletions(verbs.parts, verbs.deleting, keep_deleted, threads=threads)
    damaged = DamagedBlobs(storage.hosted.blobs, deletions.holders)
    status = MirrorStatus(
        config.store.root,
        storage.eviction.space,
        storage.eviction.write_behind,
        workers,
        traffic,
        HostedFacts(Quotas(storage.hosted.ledger, quota_rules(config)), damaged, bucket_facts(config, storage)),
        version=__version__,
        offline=config.offline,
        caches=shown,
        cluster=_cluster_facts(config, storage),
    )
    collector = open_collector(config, storage, verbs.parts, now, audit, steady=steady)
    retention = open_retention(config, storage, verbs.parts, now, audit, steady=steady)
    listed = RepositoryList(
        storage.catalog, storage.hosted.records, storage.hosted.ledger, list(keep_deleted), table, threads
    )
    stack.push_async_callback(listed.aclose)
    hosted = HostedAdmin(
        deletions,
        CachedCopies(
            storage.store,
            storage.catalog,
            storage.evictable,
            storage.eviction.evictor,
            table,
            storage.bucket_cache.purge if storage.bucket_cache else None,
        ),
        damaged,
        table,
        keep_deleted,
        collector,
        listed,
        RetentionAdmin(retention, table, config.hosting.retention.plan, threads),
        parse_image=parse,
        now=now,
    )
    admin = Admin(
        BackgroundWork(jobs, sync, replications),
        images,
        status,
        hosted,
        CopyAdmin(
            open_copies(config, storage, repositories),
            table,
            parse,
            gate if config.access.has_admins else None,
        ),
        EventAdmin(storage.hosted.outbox, [endpoint.name for endpoint in config.events.endpoint]),
        parse_image=parse,
        settings=ShownSettings(redacted_settings(config), ClientFiles(config)),
        access=gate if config.access.has_admins else None,
        audit=audit,
    )
    return Administration(admin, sync, jobs, workers, traffic, collector, replications, retention, cluster_purge)


def _in_all_replicas(
    storage: Storage, cluster: Cluster, purge: Purge, workers: Workers, notices: PurgeNotices
) -> ClusterPurge:
    # imported here: a mirror without replicas does not even load it
    from mirror.app.clusters.cluster_purges import all_have_seen, in_all_replicas

    everywhere = partial(all_have_seen, notices.here, workers.have_heeded)
    made = in_all_replicas(storage, cluster, purge, everywhere)
    cluster.effects.add(made.effect)
    return made


def _cluster_facts(config: Config, storage: Storage) -> ClusterFacts | None:
    """What is known of the cluster; None if there is none."""
    if storage.cluster is None:
        return None
    name, address, leasing = config.cluster.name, config.cluster.address, storage.leasing
    if leasing is None:
        return ClusterFacts(name, address)

    def leases() -> list[LeaseJson]:
        return [
            {"work": each.name, "holder": each.holder, "since": format_moment(each.since)}
            for each in leasing.board.states()
        ]

    return ClusterFacts(name, address, leases, lambda: leasing.clock.offset)


def bucket_facts(config: Config, storage: Storage) -> BucketFacts | None:
    """What is known of the bucket; None if there is none."""
    use = storage.bucket
    if use is None or config.store.bucket is None:
        return None

    def records() -> RememberedRecords:
        seen = memory_status(storage.layout, use)
        listing = seen["listing"] or {}
        return RememberedRecords(seen["id"], bool(seen["complete"]), listing.get("listed"))

    return BucketFacts(
        config.store.bucket,
        use.bucket.health,
        lambda: use.owner.is_overtaken,
        records,
        storage.bucket_cache.facts if storage.bucket_cache else lambda: None,
        lambda: use.owner.trouble,
    )


def _make_workers(storage: Storage, repositories: Repositories, purges: PurgeNotices) -> Workers:
    async def look() -> None:
        for purge in await asyncio.to_thread(purges.new):
            repositories.shared.forget(purge.repo, purge.tags, purge.digests)

    board = StatusBoard(storage.layout, storage.locks)
    health = storage.bucket.bucket.health if storage.bucket is not None else lambda: None
    replica = ReplicaWork(partial(_peers, storage.cluster), purges.seen) if storage.cluster is not None else None
    states = repositories.upstreams.states
    return Workers(board, repositories.shared.flights, states, bucket=health, look=look, replica=replica)


def _peers(cluster: Cluster) -> list[PeerStatus]:
    members = cluster.members
    return [PeerStatus(peer, *astuple(members.state(peer))) for peer in members.peers()]

"""Builds what brings images in before clients ask: jobs, sync rules, and the leases that decide which replica runs a
rule.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack

from mirror.app.routes import route_of
from mirror.app.storage import Storage
from mirror.app.stored_records import SYNC_RUNS
from mirror.config import Config, SyncSettings, routing_table
from mirror.oci.reference import Repo
from mirror.policy.routing import RoutingTable
from mirror.prefetch.jobs import Jobs, Work
from mirror.prefetch.run_leases import Leases
from mirror.prefetch.sync import Sync
from mirror.prefetch.sync_rules import SyncRule
from mirror.repository.protocol import Readable
from mirror.values.platforms import parse_platforms

#: The shortest time-out, in seconds, of Redis calls for leases.
_LEASE_BUDGET = 1.0


def make_jobs(
    storage: Storage, work: Mapping[str, Work] | None = None, *, now: Callable[[], float] = time.time
) -> Jobs:
    """The jobs of a store.

    `work` is the kinds of jobs that this process can run. Without it jobs can only be listed and cancelled.
    """
    jobs, queue, cancels = (storage.records(kind) for kind in ("jobs", "job-queue", "job-cancels"))
    return Jobs(jobs, queue, cancels, locks=storage.locks, work=work or {}, now=now)


def make_sync(
    config: Config,
    storage: Storage,
    source_for: Callable[[Repo], Readable],
    leases: Leases | None = None,
    *,
    now: Callable[[], float] = time.time,
) -> Sync:
    """The sync rules of the configuration, with their state on disk."""
    table = routing_table(config)
    return Sync(
        [_sync_rule(rule, table, config) for rule in config.sync],
        source_for,
        storage.records("sync"),
        locks=storage.work,
        leases=leases,
        seed=storage.store.id if storage.leasing is None else config.cluster.name,
        now=now,
        shared=None if storage.leasing is None else storage.records(SYNC_RUNS),
    )


def _sync_rule(settings: SyncSettings, table: RoutingTable, config: Config) -> SyncRule:
    repo = settings.repository(table)
    return SyncRule(
        settings.title,
        repo,
        settings.tag_set,
        settings.plan,
        parse_platforms(settings.platforms),
        settings.referrers,
        settings.every_replica,
        route_of(config, repo)[1].offline,
    )


def open_leases(config: Config, storage: Storage, stack: AsyncExitStack) -> Leases | None:
    """The leases by which replicas with a common Redis agree which of them runs a rule; None without Redis or rules,
    and in a cluster that has a bucket, which has the leases then.

    No request waits for a lease, so the time-out may be longer than that of the index. `stack` closes the connections.
    """
    url = config.index.url.get_secret_value()
    if not url or not config.sync or storage.leasing is not None:
        return None
    from mirror.index.leases import RedisLeases
    from mirror.index.redis_address import parse_redis_url

    budget = max(_LEASE_BUDGET, config.index.timeout)
    leases = RedisLeases(parse_redis_url(url), owner=storage.store.id, budget=budget)
    stack.push_async_callback(leases.aclose)
    return leases

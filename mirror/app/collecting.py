"""Opens the garbage collection of hosted content."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

from mirror import telemetry
from mirror.access.audit import AuditLog
from mirror.app.object_storage.bucket_upkeep import list_records, until_listed
from mirror.app.storage import Storage
from mirror.clock import steady_time
from mirror.collection.bucket_sweep import BucketSweeper
from mirror.collection.collection_report import CollectionReport
from mirror.collection.collector import GarbageCollector
from mirror.collection.grace_clock import GraceClock
from mirror.config import Config
from mirror.hosting.parts import HostedParts
from mirror.policy.hosted.collection import CollectionRules, RegistryRules

#: Seconds between two looks whether the records of the bucket are listed.
_LOOK_EVERY: Final = 2.0
#: Threads of a round that wait for a bucket.
_THREADS: Final = 16


def collection_rules(config: Config) -> CollectionRules:
    """What the settings say about collection."""
    registries = {
        entry.name: RegistryRules(entry.keep_deleted, entry.dangling_referrers == "collect") for entry in config.hosted
    }
    upstreams = {upstream.name for upstream in config.upstream}
    return CollectionRules(config.hosting.grace, registries, upstreams)


def grace_clock(config: Config, now: Callable[[], float], steady: Callable[[], float] = steady_time) -> GraceClock:
    """The clock by which ages of hosted content are judged. `now` is in epoch seconds; `steady`: see `GraceClock`."""
    longest = max((config.hosting.grace, *(entry.keep_deleted for entry in config.hosted)))
    return GraceClock(now, steady, longest)


def open_collector(
    config: Config,
    storage: Storage,
    parts: HostedParts,
    now: Callable[[], float],
    audit: AuditLog | None = None,
    *,
    steady: Callable[[], float] = steady_time,
) -> GarbageCollector:
    """The collector of this process. Each round gets a line in the audit log. `now` is in epoch seconds; `steady`: see
    `GraceClock`.
    """

    def ended(report: CollectionReport) -> None:
        freed = {"links": report.links, "blobs": report.blobs, "bytes": report.bytes}
        if audit:
            audit.record(caller="mirror", action="collect", status=200, **freed)
        if report.links or report.blobs:
            telemetry.notice(telemetry.Notice.CONTENT_COLLECTED, **freed)

    if storage.blobs is not None:
        # a walk reads every manifest once: none of them may push others off the disk
        parts = replace(parts, contents=storage.blobs.contents().passing())
    rules, clock = collection_rules(config), grace_clock(config, now, steady)
    return GarbageCollector(
        parts,
        rules,
        storage.work,
        storage.records("collection"),
        clock,
        ended=ended,
        threads=0 if storage.bucket is None else _THREADS,
        check=storage.check_bucket,
        prepare=None if storage.leasing is None else partial(_list_anew, storage),
    )


async def _list_anew(storage: Storage) -> None:
    """Learns what other replicas have written: what names a blob must be known before the blob may go."""
    if storage.bucket is not None:
        await list_records(storage.layout, storage.bucket)


def open_sweeper(
    config: Config, storage: Storage, now: Callable[[], float], steady: Callable[[], float] = steady_time
) -> BucketSweeper | None:
    """The sweep of the bucket by this process; None without a bucket. `now` is in epoch seconds; `steady`: see
    `GraceClock`.
    """
    if storage.hosted.sweep is None:
        return None
    return BucketSweeper(
        storage.hosted.sweep,
        storage.work,
        storage.records("collection"),
        grace_clock(config, now, steady),
        rate=config.hosting.sweep_rate,
        check=storage.check_bucket,
    )


async def collect_when_due(config: Config, storage: Storage, collector: GarbageCollector) -> None:
    """Collects every `hosting.collect_every` seconds, if anything is hosted here."""
    if config.hosted and config.hosting.collect_every:
        await until_listed(storage)
        await collector.run_when_due(config.hosting.collect_every)


async def sweep_when_due(
    config: Config, storage: Storage, now: Callable[[], float], steady: Callable[[], float]
) -> None:
    """Sweeps the bucket every `hosting.sweep_every` seconds, if there is one."""
    sweeper = open_sweeper(config, storage, now, steady)
    if sweeper is not None and config.hosting.sweep_every:
        await until_listed(storage)
        await sweeper.run_when_due(config.hosting.sweep_every)

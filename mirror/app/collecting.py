"""Opens the garbage collection of hosted content."""

from __future__ import annotations

from collections.abc import Callable

from mirror import telemetry
from mirror.access.audit import AuditLog
from mirror.app.storage import Storage
from mirror.collection.collection_report import CollectionReport
from mirror.collection.collector import GarbageCollector
from mirror.collection.grace_clock import GraceClock
from mirror.config import Config
from mirror.hosting.parts import HostedParts
from mirror.intake.tag_history import steady_time
from mirror.policy.hosted.collection import CollectionRules, RegistryRules


def collection_rules(config: Config) -> CollectionRules:
    """What the settings say about collection."""
    registries = {
        entry.name: RegistryRules(entry.keep_deleted, entry.dangling_referrers == "collect") for entry in config.hosted
    }
    upstreams = {upstream.name for upstream in config.upstream}
    return CollectionRules(config.hosting.grace, registries, upstreams)


def open_collector(
    config: Config,
    storage: Storage,
    parts: HostedParts,
    now: Callable[[], float],
    audit: AuditLog | None = None,
) -> GarbageCollector:
    """The collector of this process. Each round gets a line in the audit log. `now` is in epoch seconds."""
    rules = collection_rules(config)
    believed_after = max((rules.grace, *(each.keep_deleted for each in rules.registries.values())))

    def ended(report: CollectionReport) -> None:
        if audit:
            counted = {"links": report.links, "blobs": report.blobs, "bytes": report.bytes}
            audit.record(caller="mirror", action="collect", status=200, **counted)
        if report.links or report.blobs:
            freed = {"links": report.links, "blobs": report.blobs, "bytes": report.bytes}
            telemetry.notice(telemetry.Notice.CONTENT_COLLECTED, **freed)

    clock = GraceClock(now, steady_time, believed_after)
    return GarbageCollector(parts, rules, storage.locks, storage.records("collection"), clock, ended=ended)


async def collect_when_due(config: Config, collector: GarbageCollector) -> None:
    """Collects every `hosting.collect_every` seconds, if anything is hosted here."""
    if config.hosted and config.hosting.collect_every:
        await collector.run_when_due(config.hosting.collect_every)

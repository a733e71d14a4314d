"""Opens the retention of hosted content."""

from __future__ import annotations

from collections.abc import Callable

from mirror.access.audit import AuditLog
from mirror.app.collecting import grace_clock
from mirror.app.object_storage.bucket_upkeep import until_listed
from mirror.app.storage import Storage, pin_rules
from mirror.clock import steady_time
from mirror.config import Config
from mirror.hosting.links import Links
from mirror.hosting.parts import HostedParts
from mirror.hosting.placing import Placing
from mirror.hosting.retiring import Retiring
from mirror.policy.hosted.retention_rules import RegistryRetention, RetentionRules
from mirror.retention.protected_images import ProtectedImages
from mirror.retention.pull_notes import PullNotes, PullTimes
from mirror.retention.repository_retention import RetentionTools
from mirror.retention.retention_marks import RetentionMarks
from mirror.retention.retention_report import RetentionReport
from mirror.retention.retention_schedule import SCHEDULE, Retention

_RECORDS = "retention"
_PULLS = "pulls"


def retention_rules(config: Config) -> RetentionRules:
    """What the settings say about retention."""
    registries = {
        entry.name: RegistryRetention(
            # what nobody may delete from is left alone
            () if entry.read_only else tuple(each.policy for each in entry.retention),
            entry.keep_deleted,
            entry.dangling_referrers == "collect",
        )
        for entry in config.hosted
    }
    return RetentionRules(registries, config.hosting.grace)


def open_pull_notes(config: Config, storage: Storage, now: Callable[[], float]) -> PullNotes:
    """The pulls that this process sees. `now` is in epoch seconds."""
    return PullNotes(storage.records(_PULLS), retention_rules(config), now)


def open_retention(
    config: Config,
    storage: Storage,
    parts: HostedParts,
    now: Callable[[], float],
    audit: AuditLog | None = None,
    *,
    steady: Callable[[], float] = steady_time,
) -> Retention:
    """The retention of this process. Each round by schedule gets a line in the audit log. `now` is in epoch seconds;
    `steady`: see `GraceClock`.
    """
    rules, marks, strict = retention_rules(config), storage.records(_RECORDS), storage.hosted.strict
    tools = RetentionTools(
        parts,
        rules,
        Retiring(parts, Placing(parts, Links(parts))),
        ProtectedImages(strict.catalog, strict.pins, pin_rules(config), strict.freezes, parts.immutable, now),
        PullTimes(storage.records(_PULLS)),
        RetentionMarks(marks),
        grace_clock(config, now, steady).read,
    )

    def ended(report: RetentionReport) -> None:
        # rounds by hand are written by whoever asked for them
        if audit and report.by == SCHEDULE:
            counted = {"tags": report.tags, "manifests": report.manifests, "complete": report.complete}
            audit.record(caller="mirror", action="retention", status=200, **counted)

    return Retention(tools, storage.work, marks, ended=ended)


async def retain_when_due(config: Config, storage: Storage, retention: Retention) -> None:
    """Deletes by rules when it is due, if there are rules and a schedule."""
    if (plan := config.hosting.retention.plan) is not None:
        await until_listed(storage)
        await retention.run_when_due(plan)

"""Builds what copies images: into other repositories of this site, and to other registries."""

from __future__ import annotations

from collections.abc import Callable

from mirror.access.audit import AuditLog
from mirror.app.repositories import Repositories
from mirror.app.routes import route_of
from mirror.app.storage import Storage
from mirror.config import Config, ReplicationSettings
from mirror.errors import RequestError
from mirror.oci.reference import Repo
from mirror.policy.access_rules import Action
from mirror.policy.hosted.replication_steps import Deletes, TagRules
from mirror.replication.copy_order import CopyOrder
from mirror.replication.copy_run import Copies, Rights, check_rights
from mirror.replication.here import HereRecords
from mirror.replication.registry_target import KnownBlobs, RegistryTarget
from mirror.replication.replication_rules import ReplicationRule, SeenRecords
from mirror.replication.replications import Replications
from mirror.replication.rule_run import RuleRun, RunReport
from mirror.replication.site_target import SiteTarget
from mirror.replication.target import Target
from mirror.repository.protocol import Readable
from mirror.store.objects.record_tree import Reads
from mirror.values.sizes import parse_size


def open_copies(config: Config, storage: Storage, repositories: Repositories) -> Copies:
    """What copies images for people. Their sources are read as clients see them, with the rules about content."""
    table = repositories.upstreams.table
    verified = {entry.name for entry in config.upstream if entry.access == "verify"}

    def source_for(repo: Repo) -> Readable:
        route = table.registry(repo.registry)
        if route is not None and route[1].name in verified:
            raise RequestError(f"{repo.registry} is asked about each of its callers, so its images are not copied")
        return repositories.router.guarded(repo)

    known: dict[str, KnownBlobs] = {}

    def target_for(order: CopyOrder, source: Readable, rights: Rights) -> Target:
        repo = order.destination

        def check() -> None:
            check_rights(order, rights)

        def may_overwrite() -> bool:
            return rights.may(Action.OVERWRITE, repo)

        if table.hosts_registry(repo.registry):
            copying = repositories.hosting.copying
            return SiteTarget(copying, order.source, repo, order.caller, check, may_overwrite)
        if not repositories.upstreams.takes_pushes(repo.registry):
            raise RequestError(
                f"{repo} is not copied to: {repo.registry} is neither hosted here nor an upstream with push = true"
            )
        if route_of(config, repo)[1].offline:
            raise RequestError(f"{repo} is sealed: its upstream is never contacted")
        writer = repositories.upstreams.writer(repo.registry)
        blobs = known.setdefault(repo.registry, KnownBlobs())
        return RegistryTarget(
            writer, repo.name, source, storage.contents, blobs, check, lambda _tag, _now, _to: may_overwrite()
        )

    return Copies(source_for, target_for)


def open_replications(
    config: Config,
    storage: Storage,
    repositories: Repositories,
    audit: AuditLog | None,
    now: Callable[[], float],
) -> Replications:
    """The replication rules of the configuration, with their state on disk. Runs that change something, or fail, are
    written to the audit log.
    """
    here = HereRecords(repositories.hosting.verbs.parts)
    seen = SeenRecords(storage.records("replicated"))

    def run_of(settings: ReplicationSettings) -> RuleRun:
        return RuleRun(
            replication_rule(settings, config),
            here,
            seen,
            repositories.router.guarded,
            repositories.upstreams.writer,
            storage.contents,
        )

    def ended(rule: str, by: str, report: RunReport) -> None:
        # the commands write a line of their own
        if audit and by != "hand":
            counts = {name: value for name, value in report.to_json().items() if isinstance(value, int) and value}
            reason = report.error or next(iter(report.failures), None)
            status = 200 if report.ok else 502
            audit.record(caller="mirror", action="replicate", status=status, rule=rule, reason=reason, **counts)

    return Replications(
        map(run_of, config.replication),
        # looked at every few seconds; nothing is deleted because of them, but other replicas write them, too
        storage.stored.json("replication", Reads.REMEMBERED if storage.leasing is None else Reads.STRICT),
        locks=storage.work,
        seed=storage.store.id,
        now=now,
        ended=ended,
    )


def replication_rule(settings: ReplicationSettings, config: Config) -> ReplicationRule:
    """A rule of the configuration."""
    tags = TagRules(tuple(settings.tags), settings.overwrite, Deletes(settings.deletes), tuple(settings.not_moved_by))
    return ReplicationRule(
        settings.name,
        settings.from_,
        settings.to,
        settings.plan,
        tags,
        settings.rename,
        settings.on == "push",
        settings.referrers,
        None if settings.rate is None else float(parse_size(settings.rate)),
        config.offline,
    )

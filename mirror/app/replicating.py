"""Builds what copies images: into other repositories of this site, and to other registries."""

from __future__ import annotations

from mirror.app.repositories import Repositories
from mirror.config import Config
from mirror.errors import RequestError
from mirror.oci.reference import Repo
from mirror.policy.access_rules import Action
from mirror.replication.copy_order import CopyOrder
from mirror.replication.copy_run import Copies, Rights, check_rights
from mirror.replication.site_target import SiteTarget
from mirror.replication.target import Target
from mirror.repository.protocol import Readable


def open_copies(config: Config, repositories: Repositories) -> Copies:
    """What copies images for people. Their sources are read as clients see them, with the rules about content."""
    table = repositories.upstreams.table
    verified = {entry.name for entry in config.upstream if entry.access == "verify"}

    def source_for(repo: Repo) -> Readable:
        route = table.registry(repo.registry)
        if route is not None and route[1].name in verified:
            raise RequestError(f"{repo.registry} is asked about each of its callers, so its images are not copied")
        return repositories.router.guarded(repo)

    def target_for(order: CopyOrder, source: Readable, rights: Rights) -> Target:
        repo = order.destination
        if not table.hosts_registry(repo.registry):
            raise RequestError(f"{repo.registry} is not hosted here, so nothing is copied to it")
        return SiteTarget(
            repositories.hosting.copying,
            order.source,
            repo,
            order.caller,
            lambda: check_rights(order, rights),
            lambda: rights.may(Action.OVERWRITE, repo),
        )

    return Copies(source_for, target_for)

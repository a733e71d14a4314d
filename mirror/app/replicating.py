"""Builds what copies images: into other repositories of this site, and to other registries."""

from __future__ import annotations

from mirror.app.repositories import Repositories
from mirror.app.routes import route_of
from mirror.app.storage import Storage
from mirror.config import Config
from mirror.errors import RequestError
from mirror.oci.reference import Repo
from mirror.policy.access_rules import Action
from mirror.replication.copy_order import CopyOrder
from mirror.replication.copy_run import Copies, Rights, check_rights
from mirror.replication.registry_target import KnownBlobs, RegistryTarget
from mirror.replication.site_target import SiteTarget
from mirror.replication.target import Target
from mirror.repository.protocol import Readable


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
                f"{repo.registry} is neither hosted here nor an upstream with push = true, so nothing is copied to it"
            )
        if route_of(config, repo)[1].offline:
            raise RequestError(f"{repo} is sealed: its upstream is never contacted")
        writer = repositories.upstreams.writer(repo.registry)
        blobs = known.setdefault(repo.registry, KnownBlobs())
        return RegistryTarget(writer, repo.name, source, storage.contents, blobs, check, may_overwrite)

    return Copies(source_for, target_for)

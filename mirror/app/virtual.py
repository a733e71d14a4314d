"""Opens the virtual registries, and finds the members that commands mean by their names."""

from __future__ import annotations

from collections.abc import Callable

from mirror.app.hosting import Hosting
from mirror.app.storage import Storage
from mirror.config import Config, virtual_rules
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.repository.protocol import Readable
from mirror.repository.shared import Shared
from mirror.virtual.virtual_repository import VirtualMemory, VirtualParts, VirtualRepository


def open_virtual(
    config: Config,
    storage: Storage,
    shared: Shared,
    hosting: Hosting,
    member: Callable[[Repo], Readable],
) -> Callable[[Repo], VirtualRepository]:
    """Opens all virtual registries; the result makes their repositories. `member` returns a member's repository, with
    the rules about its content.
    """
    rules, memory = virtual_rules(config), VirtualMemory(shared.caches.now)

    async def has_tag(repo: Repo, tag: str) -> bool:
        return await hosting.repository(repo).has_tag(tag)

    async def may_serve(repo: Repo, digest: Digest) -> bool:
        return await shared.grants.known_size(repo, digest) is not None

    parts = {
        name: VirtualParts(each, storage.hosted.records.is_taken, member, has_tag, may_serve, memory)
        for name, each in rules.items()
    }
    return lambda repo: VirtualRepository(repo, parts[repo.registry])

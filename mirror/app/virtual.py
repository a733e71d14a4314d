"""Opens the virtual registries, and finds the members that commands mean by their names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mirror.app.hosting import Hosting
from mirror.app.storage import Storage
from mirror.config import Config, routing_table, virtual_rules
from mirror.errors import NameUnknown
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.access_rules import Action
from mirror.policy.image_names import Image, parse_image
from mirror.policy.virtual.members import VirtualRules
from mirror.repository.protocol import Readable
from mirror.repository.shared import Shared
from mirror.virtual.virtual_repository import VirtualMemory, VirtualParts, VirtualRepository


class MemberNames:
    """The images that operators mean by names of virtual registries. Reads a few records at each call."""

    def __init__(self, config: Config, is_taken: Callable[[Repo], bool]) -> None:
        self._table = routing_table(config)
        self._rules = virtual_rules(config)
        self._is_taken = is_taken

    def __repr__(self) -> str:
        return f"<MemberNames {', '.join(self._rules)}>"

    def parse(self, text: str, is_visible: Callable[[Repo], bool] = lambda repo: True) -> Image:
        """Like `parse_image`. An image of a virtual registry becomes that of the member that answers for the name.
        Raises `NameUnknown` if nothing is here under that name, or if the member's repository is not visible to the
        caller: who may not see it must not learn by a virtual name that it exists.
        """
        image = parse_image(text, self._table, virtual=True)
        rules = self._rules.get(image.repo.registry)
        if rules is None:
            return image
        repo = rules.meant(image.repo.name, self._is_taken)
        if repo is None or not is_visible(repo):
            keeper = self._keeper(rules, image.repo.name, is_visible)
            if keeper is not None:
                raise NameUnknown(f"{text}: nothing is here under this name, and {keeper} keeps it from upstreams")
            members = ", ".join(str(each) for each in rules.candidates(image.repo.name, Action.PULL))
            raise NameUnknown(f"{text}: nothing is here under this name; name the image of a member ({members})")
        return replace(image, repo=repo)

    def _keeper(self, rules: VirtualRules, name: str, is_visible: Callable[[Repo], bool]) -> Repo | None:
        """The hosted repository whose name is another spelling of this one at Docker Hub; None if there is none."""
        repos = (repo for spelling in rules.spellings(name) for repo in rules.hosted_repos(spelling))
        return next((repo for repo in repos if self._is_taken(repo) and is_visible(repo)), None)


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

    some_sealed = config.offline or any(route.offline for route in config.route)
    is_taken, learn = storage.stored.is_taken_now, storage.stored.learn_names
    parts = {
        name: VirtualParts(
            each,
            is_taken,
            member,
            has_tag,
            may_serve,
            memory,
            some_sealed,
            learn if storage.bucket is not None else None,
        )
        for name, each in rules.items()
    }
    return lambda repo: VirtualRepository(repo, parts[repo.registry])

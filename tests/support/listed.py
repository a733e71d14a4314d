"""Lists of repositories, whose reading is noted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from mirror.graph.listed_repositories import ListedRepositories
from mirror.oci.reference import Repo


class Names:
    """Repositories that come and go. `looked` are those that a list has looked at, in this order."""

    def __init__(self, repos: Iterable[Repo]) -> None:
        self.there = {*repos}
        self.added = 0
        self.looked: list[Repo] = []
        #: Called for each that is looked at.
        self.look: Callable[[], object] = int

    def add(self, repo: Repo) -> None:
        """Let it be there, and count it."""
        self.there.add(repo)
        self.added += 1

    def read(self, after: str) -> Iterator[Repo]:
        """As `Catalog.repositories`."""
        for repo in sorted(self.there, key=str):
            if str(repo) > after:
                self.look()
                self.looked.append(repo)
                yield repo


def list_of(repos: Iterable[Repo]) -> ListedRepositories:
    """A list of these repositories, to which none is added."""
    names = Names(repos)
    return ListedRepositories(names.read, lambda: names.added)

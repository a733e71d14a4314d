"""Records of hosted registries in one tree, those of all others in another."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from mirror.oci.reference import Repo
from mirror.ports import Condition, RecordTree, Version, Versioned


class RoutedTree:
    """See `mirror.ports.RecordTree`. For whoever serves and shows what is configured now; what changes hosted content
    uses the hosted tree itself, which has the records of registries that are no longer configured, too.
    """

    def __init__(self, is_hosted: Callable[[str], bool], *, hosted: RecordTree, cached: RecordTree) -> None:
        """`is_hosted` says of a registry whether it is hosted here."""
        self._is_hosted = is_hosted
        self._hosted = hosted
        self._cached = cached

    def __repr__(self) -> str:
        return f"<RoutedTree {self._hosted!r} {self._cached!r}>"

    def read(self, key: str) -> Versioned[bytes] | None:
        return self._of_key(key).read(key)

    def write(self, key: str, content: bytes, *, expect: Condition = None) -> Version:
        return self._of_key(key).write(key, content, expect=expect)

    def drop(self, key: str, *, expect: Condition = None) -> None:
        self._of_key(key).drop(key, expect=expect)

    def names(self, folder: str) -> Iterable[str]:
        return self._of_key(folder).names(folder)

    def folders(self, folder: str) -> Iterable[str]:
        return self._of_key(folder).folders(folder)

    def registries(self) -> Iterator[str]:
        yield from (registry for registry in self._hosted.registries() if self._is_hosted(registry))
        yield from (registry for registry in self._cached.registries() if not self._is_hosted(registry))

    def repositories(
        self, folders: Collection[str], registry: str = "", *, had: bool = False, after: str = ""
    ) -> Iterator[Repo]:
        if registry:
            yield from self._of_registry(registry).repositories(folders, registry, had=had, after=after)
            return
        hosted = self._hosted.repositories(folders, had=had, after=after)
        # the disk may have records of a time before the bucket
        cached = self._cached.repositories(folders, had=had, after=after)
        yield from heapq.merge(
            (repo for repo in hosted if self._is_hosted(repo.registry)),
            (repo for repo in cached if not self._is_hosted(repo.registry)),
            key=str,
        )

    def take(self, repo: Repo, *, again: bool = False) -> None:
        self._of_registry(repo.registry).take(repo, again=again)

    def had(self, repo: Repo, folders: Sequence[str]) -> Iterable[str]:
        return self._of_registry(repo.registry).had(repo, folders)

    def forget(self, repo: Repo, folders: Sequence[str]) -> bool:
        return self._of_registry(repo.registry).forget(repo, folders)

    def repositories_added(self) -> int:
        counts = self._hosted.repositories_added(), self._cached.repositories_added()
        return -1 if -1 in counts else sum(counts)

    def flush(self) -> None:
        self._hosted.flush()
        self._cached.flush()

    def _of_key(self, key: str) -> RecordTree:
        parts = key.split("/", 2)
        return self._of_registry(parts[1] if len(parts) > 1 else "")

    def _of_registry(self, registry: str) -> RecordTree:
        return self._hosted if self._is_hosted(registry) else self._cached

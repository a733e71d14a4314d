"""Records in a bucket, for those who lose nothing by what it does not say."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TypeVar

from mirror.errors import BucketUnavailable
from mirror.oci.reference import Repo
from mirror.ports import Condition, RecordTree, Version, Versioned

T = TypeVar("T")


class SilentTree:
    """See `mirror.ports.RecordTree`. It is only read, and what cannot be read now counts as absent.

    Eviction reads hosted records by this: without one, a copy on the disk is evicted that a pin would keep, and is
    fetched again. Otherwise a bucket that is down would let the disk fill up.
    """

    def __init__(self, tree: RecordTree) -> None:
        self._tree = tree

    def __repr__(self) -> str:
        return f"<SilentTree {self._tree!r}>"

    def read(self, key: str) -> Versioned[bytes] | None:
        try:
            return self._tree.read(key)
        except BucketUnavailable:
            return None

    def write(self, key: str, content: bytes, *, expect: Condition = None) -> Version:
        """Raises `TypeError`: whoever writes must know what is there."""
        raise TypeError(f"{key} is not written through a tree that is silent")

    def drop(self, key: str, *, expect: Condition = None) -> None:
        """Raises `TypeError`, like `write`."""
        raise TypeError(f"{key} is not deleted through a tree that is silent")

    def names(self, folder: str) -> Iterator[str]:
        return _as_far_as_known(lambda: self._tree.names(folder))

    def folders(self, folder: str) -> Iterator[str]:
        return _as_far_as_known(lambda: self._tree.folders(folder))

    def registries(self) -> Iterator[str]:
        return _as_far_as_known(self._tree.registries)

    def repositories(
        self, folders: Collection[str], registry: str = "", *, had: bool = False, after: str = ""
    ) -> Iterator[Repo]:
        return _as_far_as_known(lambda: self._tree.repositories(folders, registry, had=had, after=after))

    def take(self, repo: Repo, *, again: bool = False) -> None:
        """Raises `TypeError`, like `write`."""
        raise TypeError(f"{repo} is not taken through a tree that is silent")

    def had(self, repo: Repo, folders: Sequence[str]) -> Iterator[str]:
        return _as_far_as_known(lambda: self._tree.had(repo, folders))

    def forget(self, repo: Repo, folders: Sequence[str]) -> bool:
        """Raises `TypeError`, like `write`."""
        raise TypeError(f"{repo} is not forgotten through a tree that is silent")

    def repositories_added(self) -> int:
        return self._tree.repositories_added()

    def flush(self) -> None:
        """Does nothing: nothing is written."""


def _as_far_as_known(names: Callable[[], Iterable[T]]) -> Iterator[T]:
    try:
        yield from names()
    except BucketUnavailable:
        return

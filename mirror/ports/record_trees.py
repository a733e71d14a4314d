"""Small versioned records by key, on a disk or in a bucket: what catalogs and records of repositories are made of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from mirror.oci.reference import Repo
from mirror.ports.versioned import Condition, Version, Versioned


class RecordTree(Protocol):
    """Records by key, such as `repositories/docker.io/library/app/_tags/v1`: a path below the root of a store
    (`store/local/layout.py` draws it). All calls block.

    None, or a name that is not listed, means that there certainly is no such record. Every call raises `StoreError` if
    that cannot be said.
    """

    def read(self, key: str) -> Versioned[bytes] | None:
        """The content of a record."""

    def write(self, key: str, content: bytes, *, expect: Condition = None) -> Version:
        """Write or replace a record; `content` is not empty. Every reader sees it at once; durable after `flush`. Of
        several writers that expect the same version, one succeeds. Raises `RecordChanged`, `StoreFull`.
        """

    def drop(self, key: str, *, expect: Condition = None) -> None:
        """Delete a record; durable after `flush`. Repeatable. Raises `RecordChanged`."""

    def names(self, folder: str) -> Iterable[str]:
        """The names of the records directly in a folder, in no order."""

    def folders(self, folder: str) -> Iterable[str]:
        """The names of the folders directly in a folder that have a record, or had one, in no order."""

    def registries(self) -> Iterable[str]:
        """The registries that have a record, or had one, in no order."""

    def repositories(
        self, folders: Collection[str], registry: str = "", *, had: bool = False, after: str = ""
    ) -> Iterable[Repo]:
        """The repositories that have a record in one of these folders (`_tags`, ...): all, or those of one registry.
        `had`: also those that had one.

        They come in the order of their names as text, in which `corp-x/app` is before `corp/app`, and only those whose
        names are after `after`, which need not be the name of any. Looks no further than the caller iterates; with
        `had`, all names may be read first. Each that is there the whole time comes once, whatever changes meanwhile.
        """

    def take(self, repo: Repo, *, again: bool = False) -> None:
        """Let the repository have had a record, durable on return; repeatable. To be called before it gets a link that
        is more than a reservation, and `again` after that. Trees that see this by the link itself do nothing.
        """

    def had(self, repo: Repo, folders: Sequence[str]) -> Iterable[str]:
        """Those of these folders in which the repository has a record, or had one since `forget`, in their order. Looks
        no further than the caller iterates. Quick enough for the event loop.
        """

    def forget(self, repo: Repo, folders: Sequence[str]) -> bool:
        """Let it be as if the repository never had a record in these folders. False, and nothing changes, if it has
        one. Repeatable.
        """

    def repositories_added(self) -> int:
        """A counter that increases, for every process, whenever a new repository has a tag or a manifest. -1 if it
        cannot be read. Quick enough for the event loop.
        """

    def flush(self) -> None:
        """Make all that was written and dropped before the call survive a power cut."""

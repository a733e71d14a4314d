"""Small versioned records by key, on a disk or in a bucket: what catalogs and records of repositories are made of."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol

from mirror.oci.reference import Repo
from mirror.ports.versioned import Expected, Version, Versioned


class RecordTree(Protocol):
    """Records by key, such as `repositories/docker.io/library/app/_tags/v1`: a path below the root of a store
    (`store/local/layout.py` draws it). All calls block.

    None, or a name that is not listed, means that there certainly is no such record. Every call raises `StoreError` if
    that cannot be said.
    """

    def read(self, key: str) -> Versioned[bytes] | None:
        """The content of a record."""

    def write(self, key: str, content: bytes, *, expect: Expected = None) -> Version:
        """Write or replace a record; `content` is not empty. Every reader sees it at once; durable after `flush`. Of
        several writers that expect the same version, one succeeds. Raises `RecordChanged`, `StoreFull`.
        """

    def drop(self, key: str, *, expect: Expected = None) -> None:
        """Delete a record; durable after `flush`. Repeatable. Raises `RecordChanged`."""

    def names(self, folder: str) -> Iterable[str]:
        """The names of the records directly in a folder, in no order."""

    def registries(self) -> Iterable[str]:
        """The registries that have a record, or had one, in no order."""

    def repositories(self, folders: Collection[str], registry: str = "", *, had: bool = False) -> Iterable[Repo]:
        """The repositories that have a record in one of these folders (`_tags`, ...), in no order: all, or those of one
        registry. `had`: also those that had one.
        """

    def flush(self) -> None:
        """Make all that was written and dropped before the call survive a power cut."""

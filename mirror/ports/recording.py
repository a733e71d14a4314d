"""Small JSON records by key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from mirror.ports.versioned import Expected, Version, Versioned


class Records(Protocol):
    """The JSON records of one kind (jobs, syncs, ...), by key. All calls block for a short time.

    A record that is None, or not listed, is certainly absent, or does not parse. Every call raises `StoreError` if that
    cannot be determined.
    """

    def get(self, key: str) -> dict[str, Any] | None:
        """The record of this key, with its `key`."""

    def versioned(self, key: str) -> Versioned[dict[str, Any]] | None:
        """Like `get`, with the version of the record."""

    def put(self, key: str, record: Mapping[str, Any], *, expect: Expected = None) -> Version:
        """Write the record; durable on return. Raises `RecordChanged` if the record is not in the expected version,
        `StoreError`, `StoreFull`.
        """

    def drop(self, key: str, *, expect: Expected = None) -> bool:
        """Delete the record; True if there was one. Repeatable. Raises `RecordChanged`, `StoreError`."""

    def all(self) -> Iterator[dict[str, Any]]:
        """Every record, in no order, each with its `key`."""

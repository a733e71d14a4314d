"""Small JSON records by key."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from mirror.policy.unreadable_records import UnreadableRecord
from mirror.ports.versioned import Expected, Version, Versioned

T = TypeVar("T")


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


class CheckedRecords(Records, Protocol):
    """Records for callers that must not take a damaged record for an absent one."""

    def has(self, key: str) -> bool:
        """True if there is a record of this key, or may be, even one that cannot be read."""

    def look(self, read: Callable[[dict[str, Any]], T | None]) -> tuple[Sequence[T], Sequence[UnreadableRecord]]:
        """The results of `read` for every record, in no order, and the records that cannot be read or for which `read`
        returned None. Raises `StoreError` if that cannot be determined now.
        """

    def changed(self) -> int | None:
        """A number that differs after each change; None if unknown: they must then be read. Quick enough for the event
        loop.
        """

"""What a migration of hosted content needs besides the trees of records: the bytes of both sides, and a journal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from mirror.oci.digest import Digest
from mirror.policy.hosted.migration_steps import Written


class MigratedBytes(Protocol):
    """The hosted bytes of one side of a migration. All calls block, and raise `StoreError`."""

    def sizes(self) -> Iterator[tuple[Digest, int]]:
        """Every hosted blob and manifest with its size in bytes, in no order; without those that are lost or wait to be
        collected.
        """

    def size(self, digest: Digest) -> int | None:
        """The size of a hosted blob in bytes; None if there certainly is none."""

    def fetch(self, digest: Digest, read: Callable[[int], None]) -> AbstractContextManager[tuple[Path, int]]:
        """A file with the bytes of a blob and their number, checked against the digest and synced. The file belongs to
        the caller until the end of the block. `read` is called with the size of each piece that was read; it may wait,
        and raise to stop. Raises `BlobUnknown`, `BlobDamaged`, `StoreFull`.
        """

    def store(self, digest: Digest, file: Path, size: int) -> None:
        """Store a blob out of a file that `fetch` gave. Durable on return. Repeatable. Raises `StoreFull`."""


class MigrationJournal(Protocol):
    """What the passes of a migration between two stores have written, so that a later pass knows what is its own. All
    calls block, and raise `IndexUnavailable`.

        nothing ── begin(v1) ──> perhaps v1 ── done() ──> v1 ── begin(v2) ──> v1, perhaps v2 ── done() ──> v2
                                                            └── begin(DELETED) ──> v1, perhaps deleted ── forget()
    """

    def written(self, prefix: str) -> Mapping[str, Written]:
        """What was written, by key, of all keys that begin with `prefix`."""

    def begin(self, versions: Mapping[str, str]) -> None:
        """Note what is about to be written, by key. Durable on return."""

    def done(self, versions: Mapping[str, str]) -> None:
        """Note what the target certainly has, by key."""

    def forget(self, keys: Sequence[str]) -> None:
        """Note that neither side has these records."""

    def close(self) -> None:
        """Close the journal. Repeatable."""

"""What has changed lately in hosted repositories whose records several replicas write."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from mirror.oci.reference import Repo


class RecordJournals(Protocol):
    """Journals of changes: one for each hosted repository, and one for each kind of JSON records.

    records changed ── note() ──> in the journal ── the client is answered
                                       └── another replica: sync() ──> what it remembers of these records is doubted

    All calls block, and raise `StoreError`. Without other replicas nothing needs a journal.
    """

    def note(self, repo: Repo, keys: Collection[str]) -> None:
        """Write down, durable on return, that these records of a repository may have changed: its names and contents
        are looked at again by every replica. To be called after they were written and before the client is answered.
        Calls at the same time share the work.
        """

    def sync(self, repo: Repo, age: float = 0.0) -> int:
        """Bring what this replica remembers of a repository up to date with its journal, unless that was done within
        the last `age` seconds. Callers that wait at the same time share one request.

        Returns a number that differs if anything has changed since another call, for every process of this replica.
        """

    def note_kind(self, kind: str) -> None:
        """Like `note`, for the JSON records of one kind, such as `freezes`."""

    def sync_kind(self, kind: str, age: float = 0.0) -> int:
        """Like `sync`, for the JSON records of one kind."""

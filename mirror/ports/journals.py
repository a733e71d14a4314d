"""What other replicas change in the records of hosted content: journals, and what a machine remembers of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from mirror.oci.reference import Repo
from mirror.policy.cluster.change_journal import ChangeJournal
from mirror.ports.versioned import Version


class Look(Enum):
    """What a look at a journal says of all that is remembered of its records."""

    #: It is true now.
    COUNTS = "counts"
    #: Another replica changes the records: each must be asked for.
    CHANGING = "changing"
    #: The bucket does not answer: it was true at the last look. That there is no record is not believed then.
    OLD = "old"


class RecordJournals(Protocol):
    """The journals of all records that several replicas write: one for each hosted repository, and some for the JSON
    records. `policy/cluster/change_journal.py` draws a journal.

        a replica ── writing() ──> the journal says that it writes ──> its records ──> some seconds without a write
                     ──> the journal names what it wrote, and that it writes no more
        another one ── sync() ──> nobody writes: what it remembers counts, but for what was named
                             └──> somebody writes: nothing that it remembers counts

    All calls block, and raise `StoreError`.
    """

    def writing(self, key: str) -> AbstractContextManager[None]:
        """To be held while a record is written: other replicas then do not believe what they remember of its group. On
        return from the context they can see the record.
        """

    def sync(self, repo: Repo, age: float = 0.0) -> bool:
        """Bring what this replica remembers of a repository up to date with its journal, unless that was done within
        the last `age` seconds. Callers that wait at the same time share one request. True if what is remembered counts.
        """

    def sync_kind(self, kind: str, age: float = 0.0) -> bool:
        """Like `sync`, for the JSON records of one kind, such as `freezes`."""

    def doubt(self, repos: Collection[Repo], kinds: Collection[str]) -> None:
        """Let the next `sync` of each ask the bucket, however young the last one is. Raises nothing."""


@dataclass(frozen=True, slots=True)
class JournalPosition:
    """What a machine remembers of a journal. Times are in seconds since the machine was started.

    `version` and `content` are those of the object, `looked_at` when the request for it began. `others` has the other
    replicas that were writing: for each the `seq` of its entry, and since when this machine has seen that entry.
    `listed` are folders of which all names are known; `gaps` counts how often everything had to be doubted.
    `confirmed_at`: when the request began that last wrote this replica's own entry; negative infinity if it has none,
    or if another run wrote it.
    """

    version: Version | None
    content: bytes
    looked_at: float
    others: Mapping[str, tuple[int, float]]
    listed: frozenset[str]
    gaps: int
    confirmed_at: float


@dataclass(frozen=True, slots=True)
class OwnChanges:
    """The keys of the records that this replica has written and not named yet, and the `seq` of its entry, 0 if it has
    none. `is_all`: the entry stands for nothing else.
    """

    keys: frozenset[str]
    seq: int
    is_all: bool


class JournalMemory(Protocol):
    """What one machine remembers of the journals, shared by its processes. Raises `IndexUnavailable`."""

    def position(self, name: str) -> JournalPosition | None:
        """What is remembered of a journal; None if nothing that counts is. Quick enough for the event loop."""

    def learn(
        self,
        name: str,
        journal: ChangeJournal | None,
        version: Version | None,
        began_at: float,
        *,
        wrote: Collection[str] | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """Note the state of a journal (None: there is none), which a request gave that began at `began_at`; an earlier
        state than the one that is remembered is ignored. The records that others have changed become unknown, or all of
        the group if that is not known; then `changed` is called, in the same transaction.

        `wrote`: this process has written this state, and in it the keys that this replica has changed.
        """

    def begin(self, name: str, key: str, fresh: float) -> bool:
        """Note that this replica is about to write a record. False if its own entry in the journal is older than
        `fresh` seconds, or about to end.
        """

    def end(self, name: str, linger: float) -> OwnChanges | None:
        """What this replica has written, once nothing was written for `linger` seconds; its entry is then about to end.
        None if something is being written, or may still arrive.
        """

    def writing(self) -> Sequence[str]:
        """The journals in which this replica has an entry, or in which it has not yet named what it wrote."""

    def list_folders(self, name: str, folders: Collection[str], gaps: int) -> None:
        """Note that all names of these folders are known, unless everything was doubted since `gaps`."""

    def doubt(self, names: Collection[str], age: float) -> None:
        """Let the last look at these journals be at least `age` seconds old."""

    def close(self) -> None:
        """Close the file. Repeatable."""

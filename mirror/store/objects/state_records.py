"""The records of the states of hosted blobs, in a tree of records."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from mirror.errors import RecordDamaged
from mirror.oci.digest import Digest
from mirror.policy.hosted.blob_state import BlobState, no_blob
from mirror.ports import ABSENT, Expected, Version, Versioned
from mirror.store.objects.object_keys import (
    LOST,
    STATE_FOLDERS,
    lost_key,
    parse_lost_name,
    parse_state_key,
    state_folder,
    state_key,
)

#: Is in the records of queued blobs alone. Most records of a scan need not be parsed.
_QUEUED = b'"queuedAt"'


class StateTree(Protocol):
    """What is needed of a `RecordTree`, which has the words for each."""

    def read(self, key: str) -> Versioned[bytes] | None: ...

    def write(self, key: str, content: bytes, *, expect: Expected = None) -> Version: ...

    def drop(self, key: str, *, expect: Expected = None) -> None: ...

    def names(self, folder: str) -> Iterable[str]: ...

    def flush(self) -> None: ...


@dataclass(frozen=True, slots=True)
class FoundState:
    """The state of a blob, and what a change of it must expect: its version, or that there is no record. If the record
    is damaged, the state says nothing.
    """

    state: BlobState
    expect: Expected
    is_damaged: bool = False

    @property
    def version(self) -> Version | None:
        """The version of the record; None if there is none."""
        return self.expect if isinstance(self.expect, str) else None


class BlobStates:
    """The states of all hosted blobs. All calls block, and raise `StoreError` if the tree cannot be read."""

    def __init__(self, tree: StateTree) -> None:
        self._tree = tree
        #: The names in the folder that `after` listed last: a folder has many pages.
        self._listed: tuple[str, list[str]] = "", []

    def __repr__(self) -> str:
        return f"<BlobStates {self._tree!r}>"

    def find(self, digest: Digest) -> FoundState:
        """The state of a blob; that of a blob which was never here if there is no record. Raises `RecordDamaged`."""
        found = self._tree.read(state_key(digest))
        if found is None:
            return FoundState(no_blob(digest), ABSENT)
        state = BlobState.from_json(digest, found.record)
        if state is None:
            raise RecordDamaged(f"the state of the hosted blob {digest} is damaged", found.version)
        return FoundState(state, found.version)

    def write(self, state: BlobState, expect: Expected) -> Version:
        """Change the state of a blob. Durable after `flush`. Raises `RecordChanged`."""
        return self._tree.write(state_key(state.digest), state.to_json(), expect=expect)

    def after(self, digest: Digest | None) -> Iterator[BlobState]:
        """The states of the blobs after `digest`, in the order of algorithm and digits, without damaged records."""
        if digest is None:
            self._listed = "", []
        first = bisect.bisect_left(STATE_FOLDERS, state_folder(digest)) if digest else 0
        for folder in STATE_FOLDERS[first:]:
            names = self._names(folder)
            begin = bisect.bisect_right(names, digest.hex) if digest and folder == state_folder(digest) else 0
            for name in names[begin:]:
                if state := self._read(f"{folder}/{name}"):
                    yield state

    def queued(self) -> Iterator[BlobState]:
        """The states of all blobs that wait to be collected, in no order. Damaged records are left out."""
        for folder in STATE_FOLDERS:
            for name in self._tree.names(folder):
                if state := self._read(f"{folder}/{name}", _QUEUED):
                    yield state

    def _names(self, folder: str) -> list[str]:
        if self._listed[0] != folder:
            self._listed = folder, sorted(self._tree.names(folder))
        return self._listed[1]

    def _read(self, key: str, having: bytes = b"") -> BlobState | None:
        digest = parse_state_key(key)
        found = self._tree.read(key) if digest else None
        return BlobState.from_json(digest, found.record) if digest and found and having in found.record else None

    # --------------------------------------------------------------------------------------------- marks of lost ones

    def mark_lost(self, digest: Digest) -> None:
        """Let `marked` name the blob; to be called before its state says that it is lost. Repeatable."""
        self._tree.write(lost_key(digest), b"{}")

    def drop_mark(self, digest: Digest) -> None:
        """Let `marked` no longer name the blob. Repeatable."""
        self._tree.drop(lost_key(digest))

    def marked(self) -> list[Digest]:
        """The blobs that may be lost, in no order."""
        return [digest for name in self._tree.names(LOST) if (digest := parse_lost_name(name))]

    def flush(self) -> None:
        """Make all changes durable."""
        self._tree.flush()


@dataclass(frozen=True, slots=True)
class StateViews:
    """The same states, read in two ways: `asked` asks the bucket in every call; `remembered` may be out of date, and a
    change by a version that it has seen then fails.
    """

    asked: BlobStates
    remembered: BlobStates

"""The records of the states of hosted blobs, in a tree of records."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Final, Protocol

from mirror.errors import RecordDamaged
from mirror.oci.digest import Digest
from mirror.policy.hosted.blob_state import BlobState, no_blob
from mirror.ports import ABSENT, Expected, RecordState, RememberedRecord, Version, Versioned
from mirror.store.objects.object_keys import (
    LOST,
    STATE_FOLDERS,
    lost_key,
    parse_lost_name,
    parse_state_key,
    state_key,
)

_PAGE: Final = 500
#: Records of a page that are read one after the other; of more, so many are read at once.
_FEW: Final = 8
_THREADS: Final = 16
#: Is in the records of queued blobs alone. Most records of a scan need not be parsed.
_QUEUED: Final = b'"queuedAt"'


class StateTree(Protocol):
    """What is needed of a `BucketTree`, which has the words for each."""

    def read(self, key: str) -> Versioned[bytes] | None: ...

    def write(self, key: str, content: bytes, *, expect: Expected = None) -> Version: ...

    def drop(self, key: str, *, expect: Expected = None) -> None: ...

    def names(self, folder: str) -> Iterable[str]: ...

    def scan(self, prefix: str, after: str, count: int) -> Sequence[RememberedRecord]: ...

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
        return chain.from_iterable(self._pages(state_key(digest) if digest else ""))

    def queued_pages(self) -> Iterator[list[BlobState]]:
        """The states of all blobs that wait to be collected, without damaged records: for each page of the records of
        all blobs those that are in it, perhaps none.
        """
        return self._pages("", _QUEUED)

    def _pages(self, after: str, having: bytes = b"") -> Iterator[list[BlobState]]:
        """The states whose records have a text, behind the key `after`, one list for each page of records."""
        for folder in STATE_FOLDERS:
            begin = after
            while rows := self._tree.scan(folder, begin, _PAGE):
                begin = rows[-1].key
                page = []
                for row, content in zip(rows, self._contents(rows), strict=True):
                    digest = parse_state_key(row.key)
                    state = BlobState.from_json(digest, content) if digest and content and having in content else None
                    if state:
                        page.append(state)
                yield page
                # other threads want to work, too
                os.sched_yield()

    def _contents(self, rows: Sequence[RememberedRecord]) -> Iterable[bytes | None]:
        """The contents of records. After the loss of a disk most of them must be read: then several at once."""
        unread = sum(row.state is not RecordState.DELETED and row.content is None for row in rows)
        if unread < _FEW:
            return map(self._content, rows)
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="states") as pool:
            return list(pool.map(self._content, rows))

    def _content(self, row: RememberedRecord) -> bytes | None:
        """The content of a record; None if it was deleted, or is damaged."""
        if row.state is RecordState.DELETED:
            return None
        if row.state is RecordState.LIVE and row.content is not None:
            return row.content
        with suppress(RecordDamaged):
            if found := self._tree.read(row.key):
                return found.record
        return None

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

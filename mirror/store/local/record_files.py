"""Versioned records as small files below `repositories/`: what the catalog and the records of hosted content share.

A record is replaced by a rename, so a reader sees the old or the new record and needs no lock. Of several writers that
expect the same version of a record, one succeeds (`record_versions.py`).

    no file                          None: there is certainly no such record
    a file that cannot be read       StoreError: there may be a record
    a file that does not parse       RecordDamaged: truncated by an old crash, or foreign
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Final, TypeVar

from mirror.errors import RecordDamaged, RequestError
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo, check_name, check_registry, check_tag
from mirror.ports import Expected, Version, Versioned
from mirror.store.local.durable import (
    ABSENT_ERRNOS,
    AnyPath,
    PendingSyncs,
    make_folder,
    read_whole,
    store_errors,
    write_whole,
)
from mirror.store.local.layout import Layout, digest_from
from mirror.store.local.record_versions import only_writer, version_of

T = TypeVar("T")

#: The folders whose records make a repository one that is listed.
LISTED: Final = ("_tags", "_manifests")


class RecordFiles:
    """Reads and writes records, and remembers which folders must be synced. May be used from any thread."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._unsynced = PendingSyncs()

    def __repr__(self) -> str:
        return f"<RecordFiles {self._layout.repositories}>"

    def write(self, path: str, content: bytes, expect: Expected = None) -> Version:
        """Write or replace a record. Durable after `flush`. Raises `RecordChanged`, `StoreError`."""
        folder = os.path.dirname(path)
        with store_errors("writing a record of a repository"):
            make_folder(folder, below=self._layout.repositories, sync=self._unsynced.add)
            first = os.path.basename(folder) in LISTED and not _has_files(folder)
            guard = only_writer(self._layout, path, expect)
            write_whole(path, content, through=self._layout.ingests, sync=self._unsynced.add, guard=guard)
            if first:
                self._note_added()
        return version_of(content)

    def drop(self, path: str, expect: Expected = None) -> None:
        """Delete a record. Durable after `flush`. Repeatable. Raises `RecordChanged`, `StoreError`."""
        with (
            store_errors("dropping a record of a repository"),
            only_writer(self._layout, path, expect),
            suppress(FileNotFoundError, NotADirectoryError),
        ):
            os.unlink(path)
            self._unsynced.add(os.path.dirname(path))

    def flush(self) -> None:
        """Make everything that was written and dropped before the call survive a power cut. Raises `StoreError`."""
        with store_errors("making names of records durable"):
            self._unsynced.sync()

    def _note_added(self) -> None:
        """Raise the count of repositories. Called after the record is written: a process that reads the count and then
        lists the folders misses none.
        """
        # if this fails, other processes list the repository some seconds later
        with suppress(OSError):
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self._layout.repositories_added, flags, 0o600)
            try:
                os.write(descriptor, b".")
            finally:
                os.close(descriptor)


def read_file(path: AnyPath, what: str) -> bytes | None:
    """The content of the file; None if there is certainly no file. Raises `StoreError` if the file cannot be read."""
    try:
        return read_whole(path)
    except OSError as error:
        if error.errno in ABSENT_ERRNOS:
            return None
        with store_errors(f"reading {what}"):
            raise


def read_record(path: str, parse: Callable[[bytes], T | None], what: str) -> Versioned[T] | None:
    """The parsed record; None if there is no file. Raises `RecordDamaged` if it does not parse, `StoreError`."""
    text = read_file(path, what)
    if text is None:
        return None
    record = parse(text)
    if record is None:
        raise RecordDamaged(f"{what} is damaged", version_of(text))
    return Versioned(record, version_of(text))


def digests_in(folder: str) -> Iterator[Digest]:
    """The digests that name files in the folder, in no order; nothing if it is absent. Raises `StoreError`."""
    for name in names_in(folder):
        if digest := digest_from(name):
            yield digest


def tags_in(folder: str) -> list[str]:
    """The tags that name files in the folder, sorted; none if it is absent. Raises `StoreError`."""
    return sorted(_tags(names_in(folder)))


def registries_in(layout: Layout) -> Iterator[str]:
    """The registries that have a folder, in no order. Raises `StoreError`."""
    for name in names_in(str(layout.repositories)):
        with suppress(RequestError):
            yield check_registry(name)


def repositories_with(
    layout: Layout, folders: Iterable[str], registry: str = "", *, had: bool = False
) -> Iterator[Repo]:
    """The repositories that have a record in one of these folders, in no order: all, or those of one registry. `had`:
    also those that had one. Raises `StoreError`.
    """
    wanted = frozenset(folders)
    root = layout.repositories
    for folder, below, _files in os.walk(root / registry if registry else root, onerror=_must_be_absent):
        # a folder stays when its last record has gone
        if any(had or _has_files(os.path.join(folder, name)) for name in below if name in wanted):
            found, _, name = os.path.relpath(folder, root).partition("/")
            with suppress(RequestError):
                yield Repo(check_registry(found), check_name(name))
        below[:] = [name for name in below if not name.startswith("_")]


def _has_files(folder: str) -> bool:
    """True if there is anything in the folder. Raises `StoreError`."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError as error:
        _must_be_absent(error)
        return False


def _must_be_absent(error: OSError) -> None:
    """Ignore the error if the folder is absent: a folder that disappears meanwhile counts as empty. Raises `StoreError`
    for any other error, because the caller would take an incomplete list for a complete one.
    """
    if error.errno not in ABSENT_ERRNOS:
        with store_errors("listing records of a repository"):
            raise error


def names_in(folder: str) -> list[str]:
    """The names of everything in the folder, in no order; none if it is absent. Raises `StoreError`."""
    try:
        return os.listdir(folder)
    except OSError as error:
        _must_be_absent(error)
        return []


def _tags(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        with suppress(RequestError):
            yield check_tag(name)

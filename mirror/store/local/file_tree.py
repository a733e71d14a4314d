"""A tree of records as small files below the root of the store, which `layout.py` draws.

A record is replaced by a rename, so a reader sees the old or the new record and needs no lock. Of several writers that
expect the same version of a record, one succeeds (`record_versions.py`).

    no file                          None: there is certainly no such record
    a file that cannot be read       StoreError: there may be a record

    no folder ── the first record ──> the repository has records ── the last one goes ──> it had records
        ^                                                                                      │
        └────────────────────── forget, prune: the empty folders are deleted ──────────────────┘

A writer whose folder is deleted meanwhile makes it again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final

from mirror.errors import RequestError
from mirror.oci.reference import Repo, check_registry
from mirror.ports import Condition, Version, Versioned
from mirror.store.local.durable import (
    ABSENT_ERRNOS,
    AnyPath,
    PendingSyncs,
    make_folder,
    read_whole,
    store_errors,
    write_whole,
)
from mirror.store.local.layout import Layout
from mirror.store.local.record_versions import only_writer, version_of
from mirror.store.records.record_keys import LISTED, repo_from

#: Characters of the name of a repository with its registry, at most: nothing that is longer is one.
_LONGEST: Final = 512
#: How often a writer makes its folder, at most, if others delete it before it has a file.
_TRIES: Final = 5


class FileTree:
    """A `RecordTree` on the local disk, shared by processes. Remembers which folders must be synced. May be used from
    any thread.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._unsynced = PendingSyncs()

    def __repr__(self) -> str:
        return f"<FileTree {self._layout.root}>"

    def read(self, key: str) -> Versioned[bytes] | None:
        content = read_file(self._layout.record(key), f"the record {key}")
        return None if content is None else Versioned(content, version_of(content))

    def write(self, key: str, content: bytes, *, expect: Condition = None) -> Version:
        path = self._layout.record(key)
        with store_errors("writing a record of a repository"):
            for left in reversed(range(_TRIES)):
                try:
                    self._write(path, content, expect)
                    break
                except FileNotFoundError:
                    # the folder was empty, and was deleted at that moment (`prune`)
                    if not left:
                        raise
        return version_of(content)

    def _write(self, path: str, content: bytes, expect: Condition) -> None:
        folder = os.path.dirname(path)
        make_folder(folder, below=self._layout.root, sync=self._unsynced.add)
        first = os.path.basename(folder) in LISTED and not _has_files(folder)
        guard = only_writer(self._layout, path, expect)
        write_whole(path, content, through=self._layout.ingests, sync=self._unsynced.add, guard=guard)
        if first:
            self._note_added()

    def drop(self, key: str, *, expect: Condition = None) -> None:
        path = self._layout.record(key)
        with (
            store_errors("dropping a record of a repository"),
            only_writer(self._layout, path, expect),
            suppress(FileNotFoundError, NotADirectoryError),
        ):
            os.unlink(path)
            self._unsynced.add(os.path.dirname(path))

    def names(self, folder: str) -> list[str]:
        return _names_in(self._layout.record(folder))

    def folders(self, folder: str) -> list[str]:
        path = self._layout.record(folder)
        return [name for name in _names_in(path) if os.path.isdir(f"{path}/{name}")]

    def registries(self) -> Iterator[str]:
        for name in _names_in(str(self._layout.repositories)):
            with suppress(RequestError):
                yield check_registry(name)

    def repositories(
        self, folders: Collection[str], registry: str = "", *, had: bool = False, after: str = ""
    ) -> Iterator[Repo]:
        walk = _Walk(os.fspath(self._layout.repositories), frozenset(folders), had, after)
        return walk.below("", [registry]) if registry else walk.repositories()

    def take(self, repo: Repo, *, again: bool = False) -> None:
        """Nothing to do: the folders say it."""

    def had(self, repo: Repo, folders: Sequence[str]) -> Iterator[str]:
        path = self._layout.repository(repo)
        with store_errors(f"looking whether {repo} exists"):
            for number, folder in enumerate(folders):
                if _exists(f"{path}/{folder}"):
                    yield folder
                elif not number and not _exists(path):
                    return

    def forget(self, repo: Repo, folders: Sequence[str]) -> bool:
        path = self._layout.repository(repo)
        with store_errors(f"releasing the name {repo}"):
            found: list[str] = []
            if not all(_find_folders(f"{path}/{folder}", found) for folder in folders):
                return False
            try:
                # the first of the folders goes last: until then, the repository had records
                for below in sorted(found, key=lambda each: each == f"{path}/{folders[0]}"):
                    with suppress(FileNotFoundError):
                        os.rmdir(below)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return False
                raise
        return True

    def prune(self, repo: Repo, folders: Sequence[str]) -> bool:
        """Like `forget`; then delete also the folder of the repository and those above it, as far as they are empty. If
        a crash comes in between, empty folders stay for good, which nothing lists.
        """
        if not self.forget(repo, folders):
            return False
        path, root = self._layout.repository(repo), os.fspath(self._layout.repositories)
        with store_errors(f"deleting the folder of {repo}"):
            while path != root:
                try:
                    os.rmdir(path)
                except FileNotFoundError:
                    pass
                except OSError as error:
                    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                        break
                    raise
                path = os.path.dirname(path)
        return True

    def repositories_added(self) -> int:
        try:
            return os.stat(self._layout.repositories_added).st_size
        except FileNotFoundError:
            return 0
        except OSError:
            return -1

    def flush(self) -> None:
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


class _Walk:
    """One walk over the folders of repositories, in the order of their names as text.

    That is not the order of the folders: `a` comes before `a-b`, and that before `a/b`. What is below a folder is
    therefore put off until the next name of the same folder is behind it.
    """

    def __init__(self, root: str, wanted: Collection[str], had: bool, after: str) -> None:
        """`wanted` are the names of the folders that make a repository; those whose names are not behind `after` are
        left out.
        """
        self._root = root
        self._wanted = wanted
        self._had = had
        self._after = after

    def repositories(self) -> Iterator[Repo]:
        """Every repository. Raises `StoreError`."""
        _, registries = self._look(self._root)
        yield from self.below("", registries)

    def below(self, beginning: str, names: Iterable[str]) -> Iterator[Repo]:
        """The repositories in the folders of these names, whose paths have this beginning, and below them. A folder is
        looked at when its turn comes. Raises `StoreError`.
        """
        after = self._after
        #: Folders that were looked at, and what is directly below; each name is the beginning of the next one.
        pending: list[tuple[str, list[str]]] = []
        for name in sorted(names):
            path = f"{beginning}{name}"
            while pending and pending[-1][0] < path:
                yield from self.below(*pending.pop())
            inner = f"{path}/"
            goes_on = inner > after or after.startswith(inner)
            if path <= after and not goes_on:
                continue
            wanted, folders = self._look(f"{self._root}/{path}")
            if path > after and self._has_record(path, wanted) and (repo := repo_from(path)) is not None:
                yield repo
            if folders and goes_on and len(path) < _LONGEST:
                pending.append((inner, folders))
        while pending:
            yield from self.below(*pending.pop())

    def _look(self, folder: str) -> tuple[list[str], list[str]]:
        """The names of the wanted folders in a folder, and of those that may have repositories."""
        wanted, found = [], []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = entry.name
                    if not name.startswith("_"):
                        if entry.is_dir(follow_symlinks=False):
                            found.append(name)
                    elif name in self._wanted and _is_folder(entry):
                        wanted.append(name)
        except OSError as error:
            _must_be_absent(error)
        return wanted, found

    def _has_record(self, path: str, wanted: list[str]) -> bool:
        """True if one of these folders has a record, or if those count that had one: a folder stays."""
        if self._had:
            return bool(wanted)
        # tags first: they are fewer than manifests
        return any(_has_files(f"{self._root}/{path}/{name}") for name in sorted(wanted, reverse=True))


def read_file(path: AnyPath, what: str) -> bytes | None:
    """The content of the file; None if there is certainly no file. Raises `StoreError` if the file cannot be read."""
    try:
        return read_whole(path)
    except OSError as error:
        if error.errno in ABSENT_ERRNOS:
            return None
        with store_errors(f"reading {what}"):
            raise


def _exists(path: str) -> bool:
    """True if there is such a file or folder. Raises `OSError` if that cannot be said."""
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno in ABSENT_ERRNOS:
            return False
        raise
    return True


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """True if this is a folder, or a link to one; False also for a link that certainly leads to none: the rest of the
    list is complete without it. Raises `OSError` if it cannot be said.
    """
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno in ABSENT_ERRNOS or error.errno == errno.ELOOP:
            return False
        raise


def _has_files(folder: str) -> bool:
    """True if there is anything in the folder. Raises `StoreError`."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError as error:
        _must_be_absent(error)
        return False


def _find_folders(folder: str, found: list[str]) -> bool:
    """Adds the folder and all below it to `found`, the inner ones first. False, and no more is read, if there is
    anything else: a folder may have a million records. Raises `StoreError`.
    """
    inner = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    return False
                inner.append(entry.path)
    except OSError as error:
        _must_be_absent(error)
        return True
    for each in inner:
        if not _find_folders(each, found):
            return False
    found.append(folder)
    return True


def _must_be_absent(error: OSError) -> None:
    """Ignore the error if the folder is absent: a folder that disappears meanwhile counts as empty. Raises `StoreError`
    for any other error, because the caller would take an incomplete list for a complete one.
    """
    if error.errno not in ABSENT_ERRNOS:
        with store_errors("listing records of a repository"):
            raise error


def _names_in(folder: str) -> list[str]:
    """The names of everything in the folder, in no order; none if it is absent. Raises `StoreError`."""
    try:
        return os.listdir(folder)
    except OSError as error:
        _must_be_absent(error)
        return []

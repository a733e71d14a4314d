"""File operations that survive a crash, and the translation of `OSError` into the errors of the store."""

from __future__ import annotations

import errno
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, TypeAlias

from mirror.errors import StoreError, StoreFull, reason_of
from mirror.folders import sync_folder

#: A path of any form. `str` is the quickest: a push needs so many paths that `Path` would be a quarter of its cost.
AnyPath: TypeAlias = str | os.PathLike[str]
#: Makes the names in a folder durable, at once or later.
Sync = Callable[[str], None]

#: The disk is full or read-only, or a quota or a limit of the file system was met: eviction may help, and the pull goes
#: on without the store.
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})

#: Errors that prove that there is no such file, including a name that no file can have. Any other error (no descriptors
#: left, EIO, no permission) means only that the file could not be examined.
ABSENT_ERRNOS: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG})


#: Bytes. A read that brings fewer has met the end of a regular file.
_SMALL: Final = 64 << 10
#: Nanoseconds. Once a folder's last change is older than this, a further change will have a different time.
_SETTLED: Final = 2_000_000_000


def last_change(folder: Path) -> int | None:
    """A number that differs after each change of the names in a folder; 0 if there is no such folder.

    None if that is not known: the folder cannot be examined, or it changed so recently that a further change could
    have the same time. The caller must then read the folder.
    """
    try:
        at = os.stat(folder).st_mtime_ns
    except FileNotFoundError:
        return 0
    except OSError:
        return None
    return at if time.time_ns() - at > _SETTLED else None


def store_errors(what: str) -> AbstractContextManager[None]:
    """Turn an `OSError` into `StoreFull` or `StoreError`. The message names the operation, never a client's data."""
    return StoreErrors(what)


class StoreErrors:
    """What `store_errors` returns. A class, because a push enters it thirty times, and a look at the manifests of a
    repository hundreds of times; a generator would take three times as long.
    """

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            kind = StoreFull if error.errno in _FULL else StoreError
            raise kind(f"{self._what}: {reason_of(error)}") from error


class PendingSyncs:
    """Folders with new names that a power cut could still lose. May be used from any thread."""

    def __init__(self) -> None:
        self._folders: set[str] = set()
        self._changing = threading.Lock()
        self._syncing = threading.Lock()

    def add(self, path: AnyPath) -> None:
        """Record that this folder has a new name in it."""
        with self._changing:
            self._folders.add(os.fspath(path))

    def sync(self) -> None:
        """Blocking: sync every folder that was added before the call. Raises `OSError`; the next call then syncs the
        folders that were not synced.
        """
        # one at a time: folders that another call took from the set are durable only once that call has ended
        with self._syncing:
            with self._changing:
                folders, self._folders = self._folders, set()
            try:
                while folders:
                    folder = next(iter(folders))
                    # a folder that was deleted has no names
                    with suppress(FileNotFoundError):
                        sync_folder(folder)
                    folders.remove(folder)
            except BaseException:
                with self._changing:
                    self._folders |= folders
                raise


def make_folder(path: AnyPath, *, below: AnyPath, sync: Sync = sync_folder) -> bool:
    """Make a folder (mode 0700, because cached content may be private) and sync its parents up to `below`, which must
    exist. Returns False if the folder existed.

    Without the sync, a power cut can lose the folder together with the synced file in it. Raises `OSError`.
    """
    missing = []
    step, root = os.fspath(path), os.fspath(below)
    while step != root and not os.path.isdir(step):
        missing.append(step)
        step = os.path.dirname(step)
    for folder in reversed(missing):
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            if not os.path.isdir(folder):
                raise
        sync(os.path.dirname(folder))
    return bool(missing)


def is_named(descriptor: int, path: AnyPath) -> bool:
    """True if the path leads to this open file. Raises `OSError`."""
    try:
        named = os.lstat(path)
    except FileNotFoundError:
        return False
    own = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of `data`, in several writes if need be. Raises `OSError`.

    A nearly full disk writes a part and reports the error only at the next write.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_whole(
    path: AnyPath,
    content: bytes,
    *,
    through: AnyPath,
    mode: int = 0o600,
    sync: Sync = sync_folder,
    guard: AbstractContextManager[None] | None = None,
) -> None:
    """Write or replace a small file atomically, even across a power cut. Its name is durable once `sync` has synced its
    folder. `through` is a folder on the same filesystem for the temporary file. The rename is done inside `guard`.

    Raises `OSError`, or what `guard` raises to refuse the change, and then leaves no temporary file behind.
    """
    _replace(path, content, through=through, mode=mode, finish=os.fsync, guard=guard or nullcontext())
    sync(os.path.dirname(path))


def write_lightly(path: AnyPath, content: bytes, *, through: AnyPath) -> None:
    """Like `write_whole`, but without syncs, which once a second would slow down the disk for its real work. After a
    power cut the file may have its old content or be empty. Raises `OSError`.
    """
    _replace(path, content, through=through, mode=0o600, finish=lambda _descriptor: None, guard=nullcontext())


def _replace(
    path: AnyPath,
    content: bytes,
    *,
    through: AnyPath,
    mode: int,
    finish: Callable[[int], None],
    guard: AbstractContextManager[None],
) -> None:
    temporary = os.path.join(through, f"tmp-{secrets.token_hex(16)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            write_all(descriptor, content)
            finish(descriptor)
        finally:
            os.close(descriptor)
        with guard:
            os.rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


@contextmanager
def closed_on_error(descriptor: int) -> Iterator[int]:
    """Closes the descriptor if the block raises; otherwise it is the caller's."""
    try:
        yield descriptor
    except BaseException:
        os.close(descriptor)
        raise


def read_whole(path: AnyPath) -> bytes:
    """The content of a small file. Raises `OSError`.

    Takes half as many system calls as `Path.read_bytes`.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = os.read(descriptor, _SMALL)
        if len(content) < _SMALL:
            return content
        pieces = [content]
        while piece := os.read(descriptor, _SMALL):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(descriptor)

"""Small steps on files that survive a crash, and the border where `OSError` ends."""

from __future__ import annotations

import errno
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from mirror.errors import StoreError, StoreFull

__all__ = [
    "ABSENT",
    "PendingSyncs",
    "last_change",
    "make_folder",
    "store_errors",
    "sync_folder",
    "write_all",
    "write_lightly",
    "write_whole",
]

#: Makes the names in a folder durable, now or later.
Sync = Callable[[Path], None]

#: The disk, a quota, or the file system's own limits: eviction may help, and the pull goes on without the store.
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})

#: What says for certain that there is no such file: a name that no file can have says it as well. All else (no
#: descriptors, EIO, no permission) says only that we could not look.
ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG})


#: Nanoseconds after which the time of a folder's last change will not hide another one.
_SETTLED: Final = 2_000_000_000


def last_change(folder: Path) -> int | None:
    """A number that differs after each change of a folder's names; 0: there is no such folder.

    None if it cannot be told: the folder cannot be looked at, or it changed so lately that one more change could have
    the same time. The caller must read the folder then.
    """
    try:
        at = os.stat(folder).st_mtime_ns
    except FileNotFoundError:
        return 0
    except OSError:
        return None
    return at if time.time_ns() - at > _SETTLED else None


@contextmanager
def store_errors(what: str) -> Iterator[None]:
    """`OSError` becomes `StoreFull` or `StoreError`, with what was being done and never a client's data."""
    try:
        yield
    except OSError as error:
        kind = StoreFull if error.errno in _FULL else StoreError
        raise kind(f"{what}: {os.strerror(error.errno) if error.errno else error}") from error


def sync_folder(path: Path) -> None:
    """Make renames in a folder durable. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class PendingSyncs:
    """Folders with names in them that a power cut could still lose. May be used from any thread."""

    def __init__(self) -> None:
        self._folders: set[Path] = set()
        self._changing = threading.Lock()
        self._syncing = threading.Lock()

    def add(self, path: Path) -> None:
        """There is a new name in this folder."""
        with self._changing:
            self._folders.add(path)

    def sync(self) -> None:
        """Blocking: whatever was added before the call is durable when it returns. Raises `OSError`."""
        # one at a time: what another call has taken from the set is only durable when that call has ended
        with self._syncing:
            with self._changing:
                folders, self._folders = self._folders, set()
            for folder in folders:
                sync_folder(folder)


def make_folder(path: Path, *, below: Path, sync: Sync = sync_folder) -> bool:
    """Make a folder (0700: cached content may be private) and sync its parents up to `below`, which exists. False: it
    was there.

    Without the sync a power cut can lose the folder together with the synced file in it.
    """
    missing = []
    step = path
    while step != below and not step.is_dir():
        missing.append(step)
        step = step.parent
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
        sync(folder.parent)
    return bool(missing)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """`write` until everything is written: a nearly full disk writes a part and reports the error only next time."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_whole(path: Path, content: bytes, *, through: Path, mode: int = 0o600, sync: Sync = sync_folder) -> None:
    """Put a small file in its place, whole or not at all, even after a power cut; its name is durable once `sync` has
    seen to its folder. `through` is a folder for the temporary name on the same filesystem. Raises `OSError`; nothing
    is left behind then.
    """
    _replace(path, content, through=through, mode=mode, finish=os.fsync)
    sync(path.parent)


def write_lightly(path: Path, content: bytes, *, through: Path) -> None:
    """The same without its syncs, which once a second would slow down what the disk is there for: after a power cut the
    file may be the old one, or empty. Raises `OSError`.
    """
    _replace(path, content, through=through, mode=0o600, finish=lambda _descriptor: None)


def _replace(path: Path, content: bytes, *, through: Path, mode: int, finish: Callable[[int], None]) -> None:
    temporary = through / f"tmp-{secrets.token_hex(16)}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            write_all(descriptor, content)
            finish(descriptor)
        finally:
            os.close(descriptor)
        temporary.rename(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise

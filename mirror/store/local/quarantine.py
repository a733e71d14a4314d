"""Damaged blobs on disk, out of service. The life of one:

    blobs/<…> ── put() ──> 1 its time of change: now ──> 2 a rename to quarantine/<name>
                              └── drop(), unless somebody holds its lock ──> absent

Whoever has it open reads on. The time of change says when it was set aside: it is written first, so that a blob never
lies here with an older one. Files of other names are foreign and left alone.

Several processes may find the same damaged blob. The first one sets it aside and fetches it again; the others must not
take the new file for the old one. So `put` moves the very file that its caller has read and still has open (its inode
cannot be given to a new file until then), one `put` at a time over all processes of the store.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat as modes
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mirror.oci.digest import Digest
from mirror.policy.quarantine import QuarantinedBlob
from mirror.store.local.durable import last_change, store_errors
from mirror.store.local.layout import Layout, digest_from
from mirror.store.local.locks import is_locked, open_lock

__all__ = ["changed", "drop", "kept", "put"]


def put(layout: Layout, digest: Digest, seen: int | None) -> bool:
    """Move the file that is open as the descriptor `seen` (None: the disk refuses to open it) here, if the blob's name
    still leads to it; returns whether it did. Repeatable. Raises `StoreError`.
    """
    path = layout.blob(digest)
    with store_errors(f"setting {digest} aside"), _one_at_a_time(layout):
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return False
        if not (_cannot_be_opened(path) if seen is None else os.path.samestat(found, os.fstat(seen))):
            return False
        # what refuses to take a time is set aside all the same
        with suppress(OSError):
            os.utime(path, (found.st_atime, time.time()), follow_symlinks=False)
        # the folder may have been cleared away by hand; what is damaged must not stay in its place for that
        layout.quarantine.mkdir(mode=0o700, exist_ok=True)
        try:
            os.rename(path, _path(layout, digest))
        except FileNotFoundError:
            return False
        return True


@contextmanager
def _one_at_a_time(layout: Layout) -> Iterator[None]:
    """Blocking, for the few system calls of another process's `put`."""
    lock = open_lock(layout, "quarantine")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _cannot_be_opened(path: str) -> bool:
    """Whether the disk does not give the file at all. Raises `OSError` if that cannot be told."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return True
    return False


def changed(layout: Layout) -> int | None:
    """Another number after each change; None: that cannot be told (`last_change`)."""
    return last_change(layout.quarantine)


def kept(layout: Layout) -> list[QuarantinedBlob]:
    """In no order. Raises `StoreError`."""
    found = []
    with store_errors("listing the quarantine"), suppress(FileNotFoundError):
        for entry in os.scandir(layout.quarantine):
            if (digest := digest_from(entry.name)) is None:
                continue
            with suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if modes.S_ISREG(status.st_mode):
                    found.append(QuarantinedBlob(digest, status.st_size, status.st_mtime))
    return found


def drop(layout: Layout, digest: Digest) -> int:
    """The bytes that this frees; 0 too for one that is written to. Repeatable. Raises `StoreError`."""
    path = _path(layout, digest)
    with store_errors(f"dropping {digest} from the quarantine"):
        try:
            size = os.lstat(path).st_size
            if _is_held(path):
                return 0
            os.unlink(path)
        except FileNotFoundError:
            return 0
    return size


def _path(layout: Layout, digest: Digest) -> str:
    return f"{layout.quarantine}/{digest.algorithm}-{digest.hex}"


def _is_held(path: str) -> bool:
    """Whether a filler still has the lock that it had on the growing file, which is the same file."""
    try:
        return is_locked(path)
    except OSError as error:
        if error.errno == errno.ENOLCK:
            raise
        # a file that the disk does not open, nobody writes
        return False

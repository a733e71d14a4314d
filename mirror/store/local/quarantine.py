"""Damaged blobs on disk, out of service. The life of a damaged blob:

    blobs/<…> ── put() ──> 1 its mtime is set to now ──> 2 a rename to quarantine/<name>
                              └── drop(), unless a filler holds its lock ──> absent

Readers that have the file open can still read it. Its mtime is the time at which it was set aside; `put` sets the mtime
before the rename, so a file never lies here with an older one. Files of other names are foreign and left alone.

Several processes may find the same damaged blob. The first one sets it aside and fetches it again; the others must not
mistake the new file for the damaged one. So `put` moves only the file that its caller has read and still has open (the
inode of an open file is not reused). Only one `put` runs at a time among all processes of the store.
"""

from __future__ import annotations

import errno
import os
import stat as modes
import time
from contextlib import suppress

from mirror.oci.digest import Digest
from mirror.policy.quarantine_limits import QuarantinedBlob
from mirror.store.local.durable import last_change, store_errors
from mirror.store.local.layout import Layout, digest_from
from mirror.store.local.locks import is_locked, locked


def put(layout: Layout, digest: Digest, seen: int | None) -> bool:
    """Move a damaged blob into the quarantine, if its name still leads to the file that the caller examined. `seen` is
    the open descriptor of that file; None if the disk failed to open it. Returns True if the file was moved.

    Repeatable. Raises `StoreError`.
    """
    path = layout.blob(digest)
    with store_errors(f"setting {digest} aside"), locked(layout, "quarantine"):
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return False
        if not (_cannot_be_opened(path) if seen is None else os.path.samestat(status, os.fstat(seen))):
            return False
        # the blob is set aside even if its times cannot be set
        with suppress(OSError):
            os.utime(path, (status.st_atime, time.time()), follow_symlinks=False)
        # an operator may have deleted the folder; the damaged blob must still leave its place
        layout.quarantine.mkdir(mode=0o700, exist_ok=True)
        try:
            os.rename(path, _path(layout, digest))
        except FileNotFoundError:
            return False
        return True


def _cannot_be_opened(path: str) -> bool:
    """True if the disk fails to open the file (EIO). Raises any other `OSError`."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return True
    return False


def changed(layout: Layout) -> int | None:
    """A number that differs after each change; None if that is not known (see `last_change`)."""
    return last_change(layout.quarantine)


def blobs(layout: Layout) -> list[QuarantinedBlob]:
    """The blobs in the quarantine, in no order. Raises `StoreError`."""
    blobs = []
    with store_errors("listing the quarantine"), suppress(FileNotFoundError):
        for entry in os.scandir(layout.quarantine):
            if (digest := digest_from(entry.name)) is None:
                continue
            with suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if modes.S_ISREG(status.st_mode):
                    blobs.append(QuarantinedBlob(digest, status.st_size, status.st_mtime))
    return blobs


def drop(layout: Layout, digest: Digest) -> int:
    """Delete a blob from the quarantine; returns the bytes freed, 0 if it is absent or a filler still writes to it.

    Repeatable. Raises `StoreError`.
    """
    path = _path(layout, digest)
    with store_errors(f"dropping {digest} from the quarantine"):
        try:
            size = os.lstat(path).st_size
            if _is_filled(path):
                return 0
            os.unlink(path)
        except FileNotFoundError:
            return 0
    return size


def _path(layout: Layout, digest: Digest) -> str:
    return f"{layout.quarantine}/{digest.algorithm}-{digest.hex}"


def _is_filled(path: str) -> bool:
    """True if a filler still holds the lock on this file: the lock of a growing file survives its renames."""
    try:
        return is_locked(path)
    except OSError as error:
        if error.errno == errno.ENOLCK:
            raise
        # no filler writes to a file that cannot be opened
        return False

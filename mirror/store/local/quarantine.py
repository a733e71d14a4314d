"""Damaged blobs on disk, out of service. The life of a damaged blob:

    blobs/<…>  ── put() ──> 1 its mtime is set to now ──> 2 a rename to quarantine/<name>
                               └── drop(), unless a filler holds its lock ──> absent
    hosted/<…> ── put(), put_hosted() ──> likewise to hosted-damaged/<name> ── the blob gets its name again ──> absent

Readers that have the file open can still read it. Its mtime is the time at which it was set aside; `put` sets the mtime
before the rename, so a file never lies here with an older one. Files of other names are foreign and left alone.

Several processes may find the same damaged blob. The first one sets it aside and fetches it again; the others must not
mistake the new file for the damaged one. So `put` moves only the file that its caller has read and still has open (the
inode of an open file is not reused). Only one `put` runs at a time among all processes of the store. A blob that has
both names loses both, if they are one file.

No upstream has what is hosted, so a damaged hosted blob is kept, whatever its size: it may be all that is left. A push
of the same digest repairs it, and `blob_names.py` then drops it.
"""

from __future__ import annotations

import errno
import os
import stat as modes
import time
from contextlib import suppress
from pathlib import Path

from mirror.oci.digest import Digest
from mirror.policy.quarantine_limits import QuarantinedBlob
from mirror.store.local.durable import last_change, store_errors
from mirror.store.local.layout import Layout
from mirror.store.local.locks import is_locked, locked
from mirror.store.local.record_versions import only_writer
from mirror.store.records.record_keys import digest_from


def put(layout: Layout, digest: Digest, seen: int | None) -> bool:
    """Move a damaged blob aside, if a name of it still leads to the file that the caller examined: from `blobs/` into
    the quarantine, from `hosted/` into `hosted-damaged/`. `seen` is the open descriptor of that file; None if the disk
    failed to open it. Returns True if a name was moved.

    Repeatable. Raises `StoreError`.
    """
    with store_errors(f"setting {digest} aside"), locked(layout, "quarantine"):
        moved = _move(layout.blob(digest), layout.quarantine, digest, seen)
    # the cache's name comes first: once it is gone, the damaged file cannot be given a hosted name any more
    path = layout.hosted_blob(digest)
    with store_errors(f"setting the hosted blob {digest} aside"):
        if os.path.lexists(path):
            with only_writer(layout, layout.queued_blob(digest)):
                return _move(path, layout.hosted_damaged, digest, seen) or moved
    return moved


def put_hosted(layout: Layout, digest: Digest) -> None:
    """Move the file under a blob's hosted name into `hosted-damaged/`. The caller excludes all others who change that
    name. Repeatable. Raises `OSError`.
    """
    path = layout.hosted_blob(digest)
    with suppress(FileNotFoundError):
        _set_aside(path, os.lstat(path), layout.hosted_damaged, digest)


def _move(path: str, folder: Path, digest: Digest, seen: int | None) -> bool:
    try:
        status = os.lstat(path)
        if not (_cannot_be_opened(path) if seen is None else os.path.samestat(status, os.fstat(seen))):
            return False
        _set_aside(path, status, folder, digest)
    except FileNotFoundError:
        return False
    return True


def _set_aside(path: str, status: os.stat_result, folder: Path, digest: Digest) -> None:
    # the blob is set aside even if its times cannot be set
    with suppress(OSError):
        os.utime(path, (status.st_atime, time.time()), follow_symlinks=False)
    # an operator may have deleted the folder; the damaged blob must still leave its place
    folder.mkdir(mode=0o700, exist_ok=True)
    os.rename(path, folder / f"{digest.algorithm}-{digest.hex}")


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


def blobs(folder: Path) -> list[QuarantinedBlob]:
    """The blobs in the quarantine or in `hosted-damaged/`, in no order. Raises `StoreError`."""
    blobs = []
    with store_errors("listing damaged blobs"), suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            if (digest := digest_from(entry.name)) is None:
                continue
            with suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if modes.S_ISREG(status.st_mode):
                    blobs.append(QuarantinedBlob(digest, status.st_size, status.st_mtime))
    return blobs


def drop(layout: Layout, digest: Digest) -> int:
    """Delete a blob from the quarantine; returns the bytes freed: 0 if it is absent, if a filler still writes to it, or
    if `hosted-damaged/` has the same file.

    Repeatable. Raises `StoreError`.
    """
    path = _path(layout, digest)
    with store_errors(f"dropping {digest} from the quarantine"):
        try:
            status = os.lstat(path)
            if _is_filled(path):
                return 0
            os.unlink(path)
        except FileNotFoundError:
            return 0
    return status.st_size if status.st_nlink == 1 else 0


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

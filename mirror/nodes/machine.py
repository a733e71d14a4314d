"""Examines the mirror's own machine: the disk of its store, and its limits. Blocking."""

from __future__ import annotations

import errno
import os
import resource
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mirror.errors import reason_of
from mirror.folders import whose
from mirror.nodes.findings import Finding, Level, judge_files, judge_inodes, judge_owners, judge_room
from mirror.values.sizes import Capacity


def look_at_store(root: Path, capacity: Capacity) -> Iterator[Finding]:
    """Yields findings about the store: whether it exists and can be written to, and how much room its disk has. Leaves
    no files behind.
    """
    place = root
    if not root.exists():
        text = f"{root} does not exist yet"
        yield Finding("store", Level.WARNING, text, "`mirror serve` creates it; is this the mirror's machine?")
        place = next(parent for parent in root.parents if parent.exists())
    elif error := _write(root):
        trouble, advice = reason_of(error), "pulls are not cached: repair the disk or its permissions"
        if error.errno == errno.EACCES:
            advice = "run this command as the mirror's user; if this is that user, the mirror cannot start"
            trouble += whose(root)
        yield Finding("store", Level.PROBLEM, f"{root}: {trouble}", advice)
    elif finding := _foreign_files(root):
        yield finding
    else:
        yield Finding("store", Level.OK, f"{root} is writable")
    try:
        status = os.statvfs(place)
    except OSError as error:
        yield Finding("disk", Level.PROBLEM, f"{place}: {reason_of(error)}", "repair the disk")
        return
    unit = status.f_frsize
    yield judge_room(status.f_blocks * unit, status.f_bavail * unit, _blob_bytes(root), capacity)
    yield judge_inodes(status.f_files, status.f_favail)


def _write(root: Path) -> OSError | None:
    """Why a file of 4 KiB cannot be written; None if it can."""
    trial = root / f".doctor-{secrets.token_hex(8)}"
    try:
        descriptor = os.open(trial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, bytes(4096))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        return error
    finally:
        with suppress(OSError):
            trial.unlink()
    return None


def _foreign_files(root: Path) -> Finding | None:
    """A problem if files in the store belong to another user than the store does. Only two levels of folders are
    examined, since there may be millions of files below them.
    """
    try:
        owner = (root / "store.json").stat().st_uid
        entries = []
        for entry in os.scandir(root):
            if entry.name != "lost+found":
                entries.append(entry)
                if entry.is_dir(follow_symlinks=False):
                    with suppress(PermissionError):  # the folder itself belongs to another user
                        entries += os.scandir(entry.path)
        users = {entry.path: entry.stat(follow_symlinks=False).st_uid for entry in entries}
    except OSError:  # there is no store, or a file was removed meanwhile
        return None
    return judge_owners(root, owner, users)


def _blob_bytes(root: Path) -> int:
    """The size in bytes of the blobs on disk."""
    size = 0
    for folder, _, names in os.walk(root / "blobs"):
        for name in names:
            with suppress(OSError):
                size += os.stat(os.path.join(folder, name)).st_size
    return size


def look_at_limits() -> Finding:
    """Judges the open-files limit of this process; a mirror that is started in the same way has the same limit."""
    return judge_files(resource.getrlimit(resource.RLIMIT_NOFILE)[1])

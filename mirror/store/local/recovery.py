"""The sweep of `ingest/`, at start-up and every hour: it removes files that crashes left behind.

    partial, unlocked, of an earlier boot       dropped: after a power cut it can have its size without its bytes
    partial, unlocked, untouched for too long   dropped: no client asked for the blob again
    partial, unlocked, of an older version      dropped: its name does not say which registry sent it
    partial, locked                             left: a process fills it
    state file without its partial              dropped once it is older than any commit could take: a commit drops it
                                                as its last step, after the blob's new name is durable
    tmp-*                                       dropped once it is older than any write could take
    anything else                               foreign: left alone

`blobs/` is not examined: a file there was verified and synced before it got its name.
"""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mirror.store.local.durable import store_errors
from mirror.store.local.ingest_state import boot_id, read_state
from mirror.store.local.layout import Layout, digest_of_ingest, state_of
from mirror.store.records.record_keys import digest_from

#: Seconds. Writing and renaming a small file takes far less.
_TEMPORARY: Final = 3600.0
#: Seconds. Many times what a disk needs to sync the largest blob.
_COMMIT: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Swept:
    """The number of partials and of other files that were dropped, and their size in bytes."""

    partials: int = 0
    strays: int = 0
    bytes: int = 0


def sweep(layout: Layout, *, keep: float, now: Callable[[], float]) -> Swept:
    """Drop files that are of no more use; a partial stays for `keep` seconds after its last byte.

    Other processes may use the store meanwhile. Raises `StoreError` if the folder cannot be listed.
    """
    partials = strays = size = 0
    with store_errors("listing partials"):
        entries = list(os.scandir(layout.ingests))
    for entry in entries:
        with suppress(OSError):
            status = entry.stat(follow_symlinks=False)
            if digest_of_ingest(entry.name):
                is_older_version = digest_from(entry.name) is not None
                if _drop_partial(Path(entry.path), oldest=math.inf if is_older_version else now() - keep):
                    partials, size = partials + 1, size + status.st_size
            elif entry.name.startswith("tmp-") and _last_named(status) < now() - _TEMPORARY:
                os.unlink(entry.path)
                strays, size = strays + 1, size + status.st_size
            elif _is_stray_state(layout, entry.name) and status.st_mtime < now() - _COMMIT:
                os.unlink(entry.path)
                strays += 1
    return Swept(partials, strays, size)


def _last_named(status: os.stat_result) -> float:
    """When a file was last written or got this name, in epoch seconds, or later: a migration gives an old blob one."""
    return max(status.st_mtime, status.st_ctime)


def _is_stray_state(layout: Layout, name: str) -> bool:
    partial = name.removesuffix(".state")
    return digest_of_ingest(partial) is not None and not (layout.ingests / partial).exists()


def _drop_partial(path: Path, *, oldest: float) -> bool:
    """Drop a partial and its state file, under its lock; False if a filler holds the lock or the partial is kept.

    A partial of this boot is kept if it was modified at `oldest` (epoch seconds) or later. Raises `OSError`.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        status = os.fstat(descriptor)
        if os.lstat(path).st_ino != status.st_ino:
            return False
        if status.st_mtime >= oldest and _is_of_this_boot(path, status.st_ino):
            return False
        path.unlink()
        with suppress(FileNotFoundError):
            state_of(path).unlink()
        return True
    finally:
        os.close(descriptor)


def _is_of_this_boot(path: Path, inode: int) -> bool:
    try:
        descriptor = os.open(state_of(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        # without a state file: the filler has just begun and writes it next
        return True
    try:
        state = read_state(descriptor)
    finally:
        os.close(descriptor)
    return state is None or state.inode != inode or state.boot == boot_id()

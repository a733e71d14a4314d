"""What start-up, and every hour after it, does with what crashes left under `ingest/`.

    partial, unlocked, of an earlier boot       dropped: after a power cut its bytes may be missing under its size
    partial, unlocked, untouched for too long   dropped: nobody came back for it
    partial, unlocked, of an older version      dropped: it does not say which registry began it
    partial, locked                             left: somebody fills it
    state file without its partial              dropped once it is older than any commit could take: a commit drops it
                                                as its last step, after the blob's new name is durable
    tmp-*                                       dropped once it is older than any write could take
    anything else                               foreign: left alone

Under `blobs/` nothing is looked at: what has a name there was verified and synced before it got it.
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
from mirror.store.local.layout import Layout, digest_from, digest_of_ingest, state_of

__all__ = ["Swept", "sweep"]

#: Seconds. A small file is written and renamed in far less.
_TEMPORARY: Final = 3600.0
#: Seconds. What a disk needs to sync the largest blob, many times over.
_COMMIT: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Swept:
    """What was dropped, and the bytes of it."""

    partials: int = 0
    strays: int = 0
    bytes: int = 0


def sweep(layout: Layout, *, keep: float, now: Callable[[], float]) -> Swept:
    """Drop what nobody needs; partials stay for `keep` seconds after their last byte. Safe beside other processes.

    Raises `StoreError`.
    """
    partials = strays = size = 0
    with store_errors("listing partials"):
        entries = list(os.scandir(layout.ingests))
    for entry in entries:
        with suppress(OSError):
            found = entry.stat(follow_symlinks=False)
            if digest_of_ingest(entry.name):
                is_older_version = digest_from(entry.name) is not None
                if _drop_partial(Path(entry.path), oldest=math.inf if is_older_version else now() - keep):
                    partials, size = partials + 1, size + found.st_size
            elif entry.name.startswith("tmp-") and found.st_mtime < now() - _TEMPORARY:
                os.unlink(entry.path)
                strays, size = strays + 1, size + found.st_size
            elif _is_stray_state(layout, entry.name) and found.st_mtime < now() - _COMMIT:
                os.unlink(entry.path)
                strays += 1
    return Swept(partials, strays, size)


def _is_stray_state(layout: Layout, name: str) -> bool:
    partial = name.removesuffix(".state")
    return digest_of_ingest(partial) is not None and not (layout.ingests / partial).exists()


def _drop_partial(path: Path, *, oldest: float) -> bool:
    """Under its lock, so that nobody is filling it."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        found = os.fstat(descriptor)
        if os.lstat(path).st_ino != found.st_ino:
            return False
        if found.st_mtime >= oldest and _is_of_this_boot(path, found.st_ino):
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
        # just begun: its filler writes the state next
        return True
    try:
        state = read_state(descriptor)
    finally:
        os.close(descriptor)
    return state is None or state.inode != inode or state.boot == boot_id()

"""Folders on disk, for every room that writes files which must outlive a power cut."""

from __future__ import annotations

import os
from pathlib import Path


def whose(root: Path) -> str:
    """To whom a folder that may not be used belongs, and what to do, as the end of a message; empty if it is ours, or
    not known. If there is no such folder, the one in which it would be made counts.
    """
    user = os.geteuid()
    try:
        place = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
        owner = place.stat().st_uid
    except (OSError, StopIteration):
        return ""
    if owner == user:
        return ""
    if place != root:
        return f": {place} belongs to user {owner}, and this is user {user}: make the folder, and chown it to {user}"
    return f": it belongs to user {owner}, and this is user {user}: run as that user, or chown -R {user} {root}"


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Make the names in a folder durable: those of new, renamed and deleted files. Blocking. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

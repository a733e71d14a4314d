"""The change counters of hosted repositories, on the local disk: the size of the file `_changes` of each.

    note_change ── flock ── size: n ── truncate to n + 1 ── unlock
    changes     ── stat                                              (absent: 0)

A file grows without taking room on the disk, so that a deletion can be noted when the disk is full. A restart of the
machine may lose the last steps, but then no process remembers anything either.
"""

from __future__ import annotations

import fcntl
import os

from mirror.oci.reference import Repo
from mirror.store.local.durable import make_folder, store_errors
from mirror.store.local.layout import Layout


class ChangeFiles:
    """A `ChangeCounter` for all processes of this machine. May be used from any thread."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def __repr__(self) -> str:
        return f"<ChangeFiles {self._layout.repositories}>"

    def changes(self, repo: Repo) -> int:
        try:
            return os.stat(self._layout.changes(repo)).st_size
        except (FileNotFoundError, NotADirectoryError):
            return 0
        except OSError:
            return -1

    def note_change(self, repo: Repo) -> None:
        with store_errors("noting a change of a repository"):
            try:
                descriptor = self._open(repo)
            except FileNotFoundError:
                make_folder(self._layout.repository(repo), below=self._layout.root)
                descriptor = self._open(repo)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                os.ftruncate(descriptor, os.fstat(descriptor).st_size + 1)
            finally:
                os.close(descriptor)

    def _open(self, repo: Repo) -> int:
        return os.open(self._layout.changes(repo), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

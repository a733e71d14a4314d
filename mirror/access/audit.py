"""The audit log: who did what, when, from where, and with which result, as JSON lines in its own file.

    closed ── first record ──> open ── the file was moved away (by a rotation) ──> closed, and opened anew
                                 └── cannot be written ──> logged once; the next record tries again

Each line is a single `write` to a file opened for appending, so that several processes can share it without mixing
lines. A disk that fills up in the middle of a line cuts it off, and only that line is lost: whoever opens the file then
ends it first, and whoever has the file open writes the next line twice, behind what was cut off and as a line of its
own. A pull never fails because the audit log cannot be written.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from mirror import telemetry
from mirror.errors import reason_of


def _now() -> datetime:
    return datetime.now(UTC)


class AuditLog:
    """The audit log of this process. The first record opens the file, and creates it with mode 0600 if it is
    missing: for the owner of its folder, if this process runs as root.
    """

    def __init__(self, path: Path, *, now: Callable[[], datetime] = _now) -> None:
        self._path = path
        self._now = now
        self._descriptor = -1
        self._inode = -1
        self._failing = False

    def __repr__(self) -> str:
        return f"<AuditLog {self._path}{' failing' if self._failing else ''}>"

    def record(self, **fields: object) -> None:
        """Write one line; fields that are None are left out. Raises nothing."""
        line = {"time": self._now().isoformat(timespec="milliseconds").replace("+00:00", "Z")}
        line |= {key: value for key, value in fields.items() if value is not None}  # type: ignore[misc]  # JSON's own types
        try:
            self._open_if_needed()
            written = json.dumps(line, separators=(",", ":")).encode() + b"\n"
            self._write(written)
            if not self._begins_a_line(len(written)):
                self._write(written)
        except OSError as error:
            if not self._failing:
                telemetry.log.error("audit log cannot be written", path=str(self._path), reason=reason_of(error))
            self._failing = True
            self.close()
        else:
            self._failing = False

    def _write(self, line: bytes) -> None:
        """Raises `OSError` if the line is not written as a whole."""
        if os.write(self._descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, "the disk became full in the middle of a line")

    def _begins_a_line(self, length: int) -> bool:
        """False if the bytes written last, `length` of them, follow a line that was cut off. True if the file cannot be
        read.
        """
        try:
            start = os.lseek(self._descriptor, 0, os.SEEK_CUR) - length
            return start <= 0 or os.pread(self._descriptor, 1, start - 1) == b"\n"
        except OSError:
            return True

    def _open_if_needed(self) -> None:
        if self._descriptor >= 0 and self._inode == _inode(self._path):
            return
        self.close()
        self._descriptor = _open(self._path)
        status = os.fstat(self._descriptor)
        self._inode = status.st_ino
        if os.geteuid() == 0 and not status.st_size and stat.S_ISREG(status.st_mode):
            # a command that root runs before the server has written anything must not shut the server out
            folder = os.stat(self._path.parent)
            with suppress(PermissionError):
                os.fchown(self._descriptor, folder.st_uid, folder.st_gid)
        if stat.S_ISREG(status.st_mode):
            os.lseek(self._descriptor, 0, os.SEEK_END)
            if not self._begins_a_line(0):
                self._write(b"\n")

    def close(self) -> None:
        """Close the file; the next record opens it again. Repeatable."""
        if self._descriptor >= 0:
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = self._inode = -1


def _open(path: Path) -> int:
    """Open for appending: a file also for reading, if that is allowed. Raises `OSError`."""
    flags = os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    if path.is_file() or not path.exists():
        with suppress(PermissionError):
            return os.open(path, flags | os.O_RDWR, 0o600)
    return os.open(path, flags | os.O_WRONLY, 0o600)


def _inode(path: Path) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return -2

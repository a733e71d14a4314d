"""An SQLite file of derived data, shared by processes, that any of them may replace by a new one.

A process that sets a damaged file aside holds a lock (flock) on `<file>.lock`, so that two that find the same damage do
not set aside each other's new file. The others notice by the inode that their file was replaced, and open the new one.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


def renew(path: Path, inode: int, *, keep: bool) -> None:
    """Blocking: set the file aside, or delete it unless `keep`; a no-op if its inode is no longer `inode`.

    Another worker has then replaced the file already. Raises `OSError`.
    """
    with file_lock(path):
        if inode_of(path) == inode:
            set_aside(path, keep=keep)


def set_aside(path: Path, *, keep: bool = True) -> None:
    """Move the file to `<file>.old` for diagnosis, or delete it unless `keep`. Delete its logs: they would mislead.

    The caller holds the lock.
    """
    if not keep:
        path.unlink(missing_ok=True)
    for suffix in ("-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        path.replace(path.with_name(path.name + ".old"))


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the lock of the file. Blocking. The kernel releases the lock if its holder dies."""
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def inode_of(path: Path) -> int | None:
    """The inode of the file; None if there is none. Costs 2 µs, and reveals that the file was deleted or replaced."""
    try:
        return path.stat().st_ino
    except OSError:
        return None


def connect(path: Path, busy_timeout: float) -> closing[sqlite3.Connection]:
    """A connection that is closed at the end of the `with`. Transactions are begun by hand."""
    return closing(sqlite3.connect(path, timeout=busy_timeout, isolation_level=None))


class CurrentConnection:
    """A connection that is opened when it is needed, and again when the file was replaced. For one thread at a time."""

    def __init__(
        self,
        path: Path,
        busy_timeout: float,
        prepare: Callable[[], int],
        begin: Callable[[sqlite3.Connection], None] = lambda connection: None,
    ) -> None:
        """`prepare` makes sure that the file exists, and returns its inode; `begin` is called with each connection that
        was opened.
        """
        self._path = path
        self._busy_timeout = busy_timeout
        self._prepare = prepare
        self._begin = begin
        self._connection: sqlite3.Connection | None = None
        #: That of the file that was opened last.
        self.inode: int | None = None

    def __repr__(self) -> str:
        return f"<CurrentConnection {self._path} {'open' if self._connection else 'not open'}>"

    def open(self) -> sqlite3.Connection:
        """The connection to the file that has the name now. Raises `OSError`, `sqlite3.Error`."""
        if self._connection is None or inode_of(self._path) != self.inode:
            self.close()
            self.inode = self._prepare()
            self._connection = sqlite3.connect(
                self._path, timeout=self._busy_timeout, isolation_level=None, check_same_thread=False
            )
            self._begin(self._connection)
        return self._connection

    def close(self) -> None:
        """Close the connection; the next `open` opens another. Repeatable."""
        connection, self._connection = self._connection, None
        if connection:
            with suppress(sqlite3.Error):
                connection.close()


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commits what is done inside; after an error, nothing of it is there. Raises `sqlite3.Error`."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite has ended the transaction already after some errors, such as a full disk
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def satisfies(path: Path, busy_timeout: float, check: Callable[[sqlite3.Connection], bool]) -> bool:
    """True if the file exists, is readable and passes the check, which may fail at a file that lacks a table.

    Raises `sqlite3.Error` if a lock is held or the disk fails: neither makes the file a bad one.
    """
    if not path.exists():
        return False
    try:
        with connect(path, busy_timeout) as connection:
            return check(connection)
    except sqlite3.DatabaseError as error:
        # SQLITE_ERROR: a table is missing, so the file is foreign
        if is_damaged(error) or primary_code(error) == sqlite3.SQLITE_ERROR:
            return False
        raise


def primary_code(error: Exception) -> int:
    """SQLite's primary result code, without the extended part; 0 if the error has none."""
    return int(getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def is_damaged(error: Exception) -> bool:
    return primary_code(error) in _DAMAGED


def is_busy(error: Exception) -> bool:
    return primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

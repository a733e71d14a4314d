"""An SQLite file of derived data, shared by processes, that any of them may replace by a new one.

A process that sets a damaged file aside holds a lock (flock) on `<file>.lock`, so that two that find the same damage do
not set aside each other's new file. The others notice by the inode that their file was replaced, and open the new one.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

from mirror.errors import IndexUnavailable, reason_of

T = TypeVar("T")

#: Bytes by which a log may grow before it is copied. Few and large copies: each ends with an fsync, and a page that was
#: written several times is copied once.
_LOG: Final = 64 << 20
#: Seconds that all writers may be held up until nobody reads in the log.
_HELD_UP: Final = 0.2
#: The part of that growth that may be left to the copy that holds writers up: 1 MiB, or 256 pages, which a disk that
#: seeks for each of them writes within three seconds.
_LITTLE: Final = 1 / 64
#: The length, in such growths, from which on writers are held up however much is left.
_MOST: Final = 2
#: How much of what the copy before has copied another copy may have to copy, to be called progress.
_PROGRESS: Final = 0.75
#: Seconds between two looks whether another process has ended its copy, and how many.
_LOOK_EVERY: Final = 0.02
_LOOKS: Final = 50
#: Bytes before each page in a log (sqlite.org/fileformat2.html, section 4.1).
_FRAME_HEADER: Final = 24

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


def copy_log(
    checkpoint: Callable[[str], tuple[int, int, int]], little: int, most: int, sleep: Callable[[float], None]
) -> None:
    """Blocking: copies a log into its file, and empties it, without holding up writers for more than `little` pages
    unless the log has more than `most`.

    `checkpoint` makes one copy of a mode, and returns what SQLite says: whether it was kept from copying all, the pages
    of the log, and those that have been copied so far (-1 if another process is copying).

        PASSIVE ──┬─ had little to copy ────────────────────────────────────────────────> TRUNCATE
           ^      ├─ had much less to copy than the one before, or another process copies ──┐
           │      └─ no progress: readers, or writers as fast as the disk ──┬─ too long ──> TRUNCATE
           │                                                                └─ else ──────> left as it is
           └────────────────────────────────────────────────────────────────────────────────┘

    PASSIVE holds up nobody, but does not see what is written meanwhile; TRUNCATE holds up all writers until all is
    copied and synced.
    """
    before: int | None = None
    copied = looks = 0
    while True:
        _, pages, now = checkpoint("PASSIVE")
        if pages < 0:
            looks += 1
            if looks > _LOOKS:
                return
            sleep(_LOOK_EVERY)
            continue
        # less than before: a writer has begun the log anew
        count = now - copied if now >= copied else now
        is_little = count + pages - now <= little
        if is_little or (before is not None and count > _PROGRESS * before) or (not count and now < pages):
            break
        before, copied = count, now
    if is_little or pages > most:
        checkpoint("TRUNCATE")


class WriteAheadLog:
    """The log (WAL) of a file, which is copied into the file whenever it has grown by some bytes.

        short ── writes ──> due ── shorten ──┬──> empty
                             ^               └──> not to be emptied (`copy_log`): due again when it has grown as much
                             └───────────────────────────────────────────────────────────────┘

    SQLite copies it too, after each write to a log of some length, but begins it anew only if nobody has written
    meanwhile. While several processes write all the time, that does not happen: the log grows on and on, and each write
    makes another copy, with an fsync.
    """

    def __init__(self, path: Path, step: int = _LOG) -> None:
        """`step` is in bytes."""
        self._path = path
        self._step = step
        #: The size at which it is due, in bytes; None while it is being copied.
        self._limit: int | None = step

    def __repr__(self) -> str:
        return f"<WriteAheadLog of {self._path}, due at {self._limit} bytes>"

    def is_due(self) -> bool:
        """True if it has grown. Cheap: to be asked after each write."""
        return self._limit is not None and self.size() >= self._limit

    def size(self) -> int:
        """In bytes; 0 if there is none."""
        try:
            return os.stat(f"{self._path}-wal").st_size
        except OSError:
            return 0

    def shorten(self) -> None:
        """Blocking: copies it into the file and empties it. Writers of all processes wait for the last little of that,
        and for more only if the log grows faster than it can be copied.
        """
        self._limit = None
        try:
            with suppress(sqlite3.Error):
                self._copy()
        finally:
            self._limit = self.size() + self._step

    def _copy(self) -> None:
        # with `mode=rw`, no file is made where there is none
        place = f"{self._path.absolute().as_uri()}?mode=rw"
        with closing(sqlite3.connect(place, uri=True, timeout=_HELD_UP, isolation_level=None)) as connection:
            page = int(connection.execute("PRAGMA page_size").fetchone()[0]) + _FRAME_HEADER

            def checkpoint(mode: str) -> tuple[int, int, int]:
                busy, pages, copied = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
                return busy, pages, copied

            little, most = int(self._step * _LITTLE) // page, self._step * _MOST // page
            copy_log(checkpoint, little, most, time.sleep)


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


class SharedConnection:
    """A connection for any thread. A damaged file is set aside, and the next call begins a new one."""

    def __init__(self, current: CurrentConnection, path: Path, what: str, damaged: Callable[[], None]) -> None:
        """`what` names the file in errors; `damaged` is called before a damaged file is set aside."""
        self._path = path
        self._what = what
        self._damaged = damaged
        self._using = threading.Lock()
        self._current = current
        self._closed = False
        self._log = WriteAheadLog(path)

    def __repr__(self) -> str:
        return f"<SharedConnection of {self._what}, {'closed' if self._closed else self._current}>"

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Returns the result of the work. Raises `IndexUnavailable`."""
        with self._using:
            if self._closed:
                raise IndexUnavailable(f"{self._what} is closed")
            try:
                return work(self._current.open())
            except (sqlite3.Error, OSError, OverflowError, ValueError, TypeError) as error:
                self._failed(error)
                raise IndexUnavailable(f"{self._what} failed: {reason_of(error)}") from error

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Like `run`, in a transaction."""

        def in_transaction(connection: sqlite3.Connection) -> T:
            with transaction(connection):
                return work(connection)

        result = self.run(in_transaction)
        self.shorten_log()
        return result

    def shorten_log(self) -> None:
        """To be called after each write that was made with `run`: copies the log into the file if it has grown."""
        if self._log.is_due():
            self._log.shorten()

    def renew(self, *, keep: bool) -> None:
        """Set the file that is open aside, or delete it unless `keep`. Raises `IndexUnavailable`."""
        with self._using:
            inode = self._current.inode
            self._current.close()
            try:
                if inode is not None:
                    renew(self._path, inode, keep=keep)
            except OSError as error:
                raise IndexUnavailable(f"{self._what} failed: {reason_of(error)}") from error

    def close(self) -> None:
        """Close the file for good. Repeatable."""
        with self._using:
            self._closed = True
            self._current.close()

    def _failed(self, error: Exception) -> None:
        inode = self._current.inode
        if not is_busy(error):
            self._current.close()
        if is_damaged(error) and inode is not None:
            self._damaged()
            with suppress(OSError):
                renew(self._path, inode, keep=True)


@contextmanager
def current_file(
    path: Path,
    busy_timeout: float,
    schema: int,
    is_current: Callable[[sqlite3.Connection], bool],
    create: Callable[[sqlite3.Connection], None],
    *,
    keep: bool = True,
) -> Iterator[None]:
    """Hold the lock of a file that has this schema and passes `is_current`. Any other one is set aside, or deleted
    unless `keep`, and made anew: `create` begins a transaction and makes the tables. Raises `OSError`, `sqlite3.Error`.
    """

    def passes(connection: sqlite3.Connection) -> bool:
        return connection.execute("PRAGMA user_version").fetchone() == (schema,) and is_current(connection)

    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path):
        if not satisfies(path, busy_timeout, passes):
            set_aside(path, keep=keep)
            with connect(path, busy_timeout) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                create(connection)
                connection.execute(f"PRAGMA user_version = {schema}")
                connection.execute("COMMIT")
        yield


def present_inode(path: Path) -> int:
    """The inode of a file that was just looked at. Raises `FileNotFoundError`."""
    inode = inode_of(path)
    if inode is None:
        raise FileNotFoundError(path)
    return inode


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

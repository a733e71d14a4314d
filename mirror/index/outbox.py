"""The outbox of events: one SQLite file, shared by the processes of one machine. Unlike the other SQLite files it is
no derived data: what it loses is lost.

    <folder>/outbox.sqlite      changes that are being made, events that wait, gaps
             writers/<id>       locked (flock) by the process that prepares changes as `<id>`, for as long as it lives
             turns/<n>          locked during a turn; keys share these files

A commit that prepares a change is synced (FULL); the calls of several threads share one commit. Other commits are not
synced (NORMAL): they survive the death of the process, and what a power cut loses of them is found out again from the
change that was prepared, or is delivered again.

The order of the events of one key is that of their turns. A turn needs no transaction: inside it, the order is read
from a clock of the machine that is never set. An event is not delivered while a change of its key that was prepared
before the event was confirmed may still turn out to come before it.

A damaged file, or one of a later version, is set aside and kept; a new one begins with a gap for each endpoint.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from mirror.errors import StoreError, StoreFull, reason_of
from mirror.folders import sync_folder
from mirror.index.sqlite_file import (
    CurrentConnection,
    connect,
    file_lock,
    inode_of,
    is_busy,
    is_damaged,
    primary_code,
    satisfies,
    transaction,
)
from mirror.index.write_queue import QueuedWrite, WriteQueue
from mirror.ports import Backlog, Gap, Outgoing, PreparedChange, WaitingEvent
from mirror.telemetry import log

T = TypeVar("T")

#: Written to `PRAGMA user_version`.
_SCHEMA: Final = 1
_CREATE: Final = """
BEGIN IMMEDIATE;
-- one row: a name of this file, and what it has
CREATE TABLE state (epoch TEXT NOT NULL, events INTEGER NOT NULL, bytes INTEGER NOT NULL);
-- numbers the boots of the machine, because its clock begins anew with each
CREATE TABLE boots (number INTEGER PRIMARY KEY AUTOINCREMENT, boot TEXT NOT NULL UNIQUE);
CREATE TABLE prepared (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    writer TEXT NOT NULL, -- empty: abandoned
    key    TEXT NOT NULL,
    claim  TEXT NOT NULL
);
CREATE INDEX prepared_by_key ON prepared (key, number);
CREATE TABLE events (
    number  INTEGER PRIMARY KEY AUTOINCREMENT,
    id      TEXT NOT NULL UNIQUE,
    type    TEXT NOT NULL,
    body    TEXT NOT NULL,
    made_at REAL NOT NULL,
    barrier INTEGER NOT NULL, -- the last change that was prepared before the event was confirmed
    bytes   INTEGER NOT NULL
);
CREATE TABLE waiting (
    endpoint TEXT NOT NULL,
    dead     INTEGER NOT NULL,
    key      TEXT NOT NULL,
    turn     TEXT NOT NULL,
    number   INTEGER NOT NULL,
    since    REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    error    TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (endpoint, dead, key, turn, number)
) WITHOUT ROWID;
CREATE INDEX waiting_by_number ON waiting (number);
CREATE TABLE gaps (
    number   INTEGER PRIMARY KEY AUTOINCREMENT,
    endpoint TEXT NOT NULL,
    id       TEXT NOT NULL,
    count    INTEGER NOT NULL,
    first_at REAL NOT NULL,
    last_at  REAL NOT NULL,
    sealed   INTEGER NOT NULL
);
CREATE VIEW listed AS
    SELECT number, id, type, key, endpoint, body, made_at, attempts, error, dead, turn, barrier
    FROM waiting JOIN events USING (number);
CREATE TRIGGER event_added AFTER INSERT ON events BEGIN
    UPDATE state SET events = events + 1, bytes = bytes + new.bytes;
END;
CREATE TRIGGER event_gone AFTER DELETE ON events BEGIN
    UPDATE state SET events = events - 1, bytes = bytes - old.bytes;
END;
CREATE TRIGGER nobody_waits AFTER DELETE ON waiting BEGIN
    DELETE FROM events WHERE number = old.number AND NOT EXISTS (SELECT 1 FROM waiting WHERE number = old.number);
END;
"""
#: The first event of a key, unless a change that may come before it is being made.
_HEAD: Final = """
SELECT * FROM listed
WHERE endpoint = ? AND dead = 0 AND key = ?
  AND NOT EXISTS (SELECT 1 FROM prepared WHERE prepared.key = listed.key AND prepared.number <= listed.barrier)
ORDER BY turn, number LIMIT 1
"""
_LISTED: Final = """
SELECT * FROM listed WHERE (?1 IS NULL OR endpoint = ?1) AND (?2 IS NULL OR dead = ?2)
ORDER BY number, endpoint LIMIT ?3
"""
_NEXT_KEY: Final = "SELECT min(key) FROM waiting WHERE endpoint = ? AND dead = 0 AND key > ?"
_HOLDS: Final = """
SELECT 1 FROM events JOIN waiting USING (number) WHERE id >= ? AND id < ? AND dead = 0 LIMIT 1
"""
#: In a file that has replaced a damaged one, another event may have the number of the one that was sent.
_DELIVERED: Final = """
DELETE FROM waiting WHERE endpoint = ? AND number = ? AND ? = (SELECT id FROM events WHERE number = waiting.number)
"""
_FAILED: Final = """
UPDATE waiting SET attempts = attempts + 1, error = ?
WHERE endpoint = ? AND number = ? AND ? = (SELECT id FROM events WHERE number = waiting.number)
"""
_BURIED: Final = """
UPDATE waiting SET dead = 1, attempts = attempts + 1, error = ?
WHERE endpoint = ? AND number = ? AND ? = (SELECT id FROM events WHERE number = waiting.number)
"""
_EXPIRED: Final = """
UPDATE waiting SET dead = 1 WHERE endpoint = ? AND dead = 0 AND since < ?
"""
_FORGOTTEN: Final = """
DELETE FROM waiting WHERE endpoint = ? AND number IN (SELECT number FROM events WHERE made_at < ?)
"""
_COUNTED: Final = """
SELECT waiting.endpoint, count(*), min(made_at), max(made_at) FROM waiting JOIN events USING (number)
WHERE number IN (SELECT number FROM events ORDER BY number LIMIT ?) GROUP BY waiting.endpoint
"""
_GIVEN_UP: Final = "DELETE FROM waiting WHERE number IN (SELECT number FROM events ORDER BY number LIMIT ?)"
_BACKLOG: Final = """
SELECT endpoint, sum(1 - dead), sum(dead), min(CASE WHEN dead THEN NULL ELSE made_at END)
FROM waiting JOIN events USING (number) GROUP BY endpoint
"""
_RESENT: Final = """
UPDATE waiting SET dead = 0, attempts = 0, since = ?3
WHERE dead = 1 AND (?1 IS NULL OR endpoint = ?1)
  AND (?2 IS NULL OR number = (SELECT number FROM events WHERE id = ?2))
"""
#: Waiting events and dead ones are given up so many at a time.
_GIVEN_UP_AT_ONCE: Final = 100
#: What the kernel calls the boot of this machine.
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
#: Files on which turns are locked. Two keys that share one wait for each other.
_TURNS: Final = 256
#: How often a commit is made again in a new file, because another process has replaced the old one meanwhile.
_TRIES: Final = 5


class SqliteOutbox:
    """See `mirror.ports.Outbox` and `mirror.ports.Deliveries`. The first call opens the file. An instance belongs to
    one process; its calls may come from any thread.
    """

    def __init__(
        self,
        folder: Path,
        endpoints: Collection[str],
        *,
        most_events: int,
        most_bytes: int,
        lost: Callable[[str, int], None] = lambda endpoint, count: None,
        now: Callable[[], float] = time.time,
        busy_timeout: float = 5.0,
    ) -> None:
        """`endpoints` get a gap if the file is lost. `lost` is called after events were given up; `now` is in epoch
        seconds.
        """
        self._path = folder / "outbox.sqlite"
        self._folder = folder
        self._endpoints = tuple(endpoints)
        self._most_events, self._most_bytes = most_events, most_bytes
        self._lost, self._now = lost, now
        self._woken: Callable[[], None] = lambda: None
        self._busy_timeout = busy_timeout
        self._reading, self._looking, self._enlivening = threading.Lock(), threading.Lock(), threading.Lock()
        self._queue = WriteQueue(self._commit, lambda: StoreError("the outbox of events was interrupted"))
        self._writer = CurrentConnection(self._path, busy_timeout, self._prepare_file)
        self._reader = CurrentConnection(self._path, busy_timeout, self._prepare_file)
        #: What changes look at: they do not wait while what waits is counted or listed.
        self._looker = CurrentConnection(self._path, busy_timeout, self._prepare_file, self._look_for_boot)
        #: The number of the machine's boot in the file of `_looker`.
        self._boot = 0
        self._name = secrets.token_hex(8)
        self._alive = -1
        self._closed = False

    def __repr__(self) -> str:
        return f"<SqliteOutbox {self._path}{' closed' if self._closed else ''}>"

    def wake(self, woken: Callable[[], None]) -> None:
        """Calls `woken` from now on after events were confirmed by this process, in any thread."""
        self._woken = woken

    # ----------------------------------------------------------------------------------------------------- changes

    def prepare(self, key: str, claim: str) -> PreparedChange:
        self._live()

        def insert(connection: sqlite3.Connection) -> PreparedChange:
            cursor = connection.execute(
                "INSERT INTO prepared (writer, key, claim) VALUES (?, ?, ?)", (self._name, key, claim)
            )
            return PreparedChange(f"{_epoch(connection)}-{cursor.lastrowid}", key, claim)

        return self._queue.write(insert, synced=True)

    @contextmanager
    def turn(self, key: str) -> Iterator[str]:
        number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=2).digest()) % _TURNS
        boot = self._look(lambda _connection: self._boot)
        try:
            descriptor = _open_lock(self._folder / "turns", f"{number:02x}")
        except OSError as error:
            raise _failed(error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # CLOCK_MONOTONIC is one clock for all processes of the machine, and nobody can set it
            yield f"{boot:06d}.{time.monotonic_ns():019d}"
        finally:
            os.close(descriptor)

    def confirm(self, prepared: PreparedChange | None, order: str, events: Sequence[Outgoing]) -> None:
        lost: dict[str, int] = {}

        def change(connection: sqlite3.Connection) -> None:
            lost.clear()
            if prepared is not None:
                connection.execute("DELETE FROM prepared WHERE number = ?", (_number_in(connection, prepared),))
            if events:
                _add(connection, order, events)
                self._keep_bound(connection, lost)

        self._queue.write(change)
        for endpoint, count in lost.items():
            log.warning("events given up", endpoint=endpoint, count=count)
            self._lost(endpoint, count)
        if events:
            self._woken()

    def _keep_bound(self, connection: sqlite3.Connection, lost: dict[str, int]) -> None:
        """Gives up the oldest events beyond the bound; they are counted in gaps."""
        while True:
            events, size = connection.execute("SELECT events, bytes FROM state").fetchone()
            if events <= self._most_events and size <= self._most_bytes:
                return
            rows = connection.execute(_COUNTED, (_GIVEN_UP_AT_ONCE,)).fetchall()
            for endpoint, count, first_at, last_at in rows:
                _widen_gap(connection, endpoint, count, first_at, last_at)
                lost[endpoint] = lost.get(endpoint, 0) + count
            connection.execute(_GIVEN_UP, (_GIVEN_UP_AT_ONCE,))
            if not rows:
                return

    def orphans(self, key: str | None = None) -> Sequence[PreparedChange]:
        def find(connection: sqlite3.Connection) -> list[PreparedChange]:
            epoch = _epoch(connection)
            found = connection.execute(
                "SELECT number, writer, key, claim FROM prepared WHERE ?1 IS NULL OR key = ?1 ORDER BY number", (key,)
            ).fetchall()
            alive = {writer: self._is_alive(writer) for writer in {row[1] for row in found}}
            return [
                PreparedChange(f"{epoch}-{number}", of, claim)
                for number, writer, of, claim in found
                if not alive[writer]
            ]

        return self._look(find)

    def is_prepared(self, prepared: PreparedChange) -> bool:
        def look(connection: sqlite3.Connection) -> bool:
            found = "SELECT 1 FROM prepared WHERE number = ?"
            return connection.execute(found, (_number_in(connection, prepared),)).fetchone() is not None

        return self._look(look)

    def abandon(self, prepared: PreparedChange) -> None:
        abandoned = "UPDATE prepared SET writer = '' WHERE number = ?"
        self._queue.write(lambda connection: connection.execute(abandoned, (_number_in(connection, prepared),)))

    def _live(self) -> None:
        """Locks the file that shows that this process lives."""
        if self._alive >= 0:
            return
        # the file first: a folder of writers without it says that it was lost
        self._look(lambda connection: None)
        with self._enlivening:
            if self._alive >= 0 or self._closed:
                return
            folder = self._folder / "writers"
            try:
                # locked before it has its name: whoever finds the name unlocked knows that its process is dead
                descriptor = _open_lock(folder, f".{self._name}")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                os.rename(folder / f".{self._name}", folder / self._name)
            except OSError as error:
                raise _failed(error) from error
            self._alive = descriptor

    def _is_alive(self, writer: str) -> bool:
        if writer == self._name:
            return self._alive >= 0
        if not writer:
            return False
        path = self._folder / "writers" / writer
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _failed(error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def sweep(self) -> None:
        """Deletes the files of processes that no longer live and have left no change. Raises `StoreError`."""
        try:
            names = os.listdir(self._folder / "writers")
        except FileNotFoundError:
            return
        except OSError as error:
            raise _failed(error) from error
        left = {row[0] for row in self._read(lambda c: c.execute("SELECT DISTINCT writer FROM prepared").fetchall())}
        for name in names:
            if name not in left and not name.startswith(".") and not self._is_alive(name):
                with suppress(OSError):
                    (self._folder / "writers" / name).unlink()

    def epoch(self) -> str:
        """The name of this file, which no other file has. Raises `StoreError`."""
        return self._look(_epoch)

    def holds(self, change: str) -> bool:
        """Whether the change of this id is prepared here, or an event of it waits. Raises `StoreError`."""

        def look(connection: sqlite3.Connection) -> bool:
            number = _number_in(connection, PreparedChange(change, "", ""))
            if connection.execute("SELECT 1 FROM prepared WHERE number = ?", (number,)).fetchone():
                return True
            # `.` follows `-` among the characters
            return connection.execute(_HOLDS, (f"{change}-", f"{change}.")).fetchone() is not None

        return self._look(look)

    # ---------------------------------------------------------------------------------------------------- deliveries

    def changed(self) -> int:
        return self._read(lambda connection: int(connection.execute("PRAGMA data_version").fetchone()[0]))

    def heads(self, endpoint: str, skip: Collection[str], most: int) -> Sequence[WaitingEvent]:
        def find(connection: sqlite3.Connection) -> list[WaitingEvent]:
            found: list[WaitingEvent] = []
            key = ""
            while len(found) < most:
                (key,) = connection.execute(_NEXT_KEY, (endpoint, key)).fetchone()
                if key is None:
                    break
                if key not in skip and (row := connection.execute(_HEAD, (endpoint, key)).fetchone()):
                    found.append(_waiting(row))
            return found

        return self._read(find)

    def gap(self, endpoint: str) -> Gap | None:
        def seal(connection: sqlite3.Connection) -> Gap | None:
            row = connection.execute(
                "SELECT number, id, count, first_at, last_at FROM gaps WHERE endpoint = ? ORDER BY number LIMIT 1",
                (endpoint,),
            ).fetchone()
            if row:
                connection.execute("UPDATE gaps SET sealed = 1 WHERE number = ?", (row[0],))
            return Gap(*row) if row else None

        exists = "SELECT 1 FROM gaps WHERE endpoint = ? LIMIT 1"
        if not self._read(lambda connection: connection.execute(exists, (endpoint,)).fetchone()):
            return None
        return self._queue.write(seal)

    def told(self, endpoint: str, gap: Gap) -> None:
        self._queue.write(
            lambda connection: connection.execute(
                "DELETE FROM gaps WHERE number = ? AND endpoint = ? AND id = ?", (gap.number, endpoint, gap.id)
            )
        )

    def delivered(self, event: WaitingEvent) -> None:
        self._queue.write(lambda connection: connection.execute(_DELIVERED, (event.endpoint, event.number, event.id)))

    def failed(self, event: WaitingEvent, error: str) -> None:
        self._note(_FAILED, error, event)

    def bury(self, event: WaitingEvent, error: str) -> None:
        self._note(_BURIED, error, event)

    def _note(self, statement: str, error: str, event: WaitingEvent) -> None:
        values = error, event.endpoint, event.number, event.id
        self._queue.write(lambda connection: connection.execute(statement, values))

    def expire(self, endpoint: str, before: float) -> int:
        old = "SELECT 1 FROM waiting WHERE endpoint = ? AND dead = 0 AND since < ? LIMIT 1"
        if not self._read(lambda connection: connection.execute(old, (endpoint, before)).fetchone()):
            return 0
        return self._queue.write(lambda connection: connection.execute(_EXPIRED, (endpoint, before)).rowcount)

    def forget_endpoints(self, known: Collection[str], before: float) -> int:
        listed = self._read(lambda connection: connection.execute("SELECT DISTINCT endpoint FROM waiting").fetchall())
        unknown = [name for (name,) in listed if name not in known]

        def drop(connection: sqlite3.Connection) -> int:
            return sum(connection.execute(_FORGOTTEN, (name, before)).rowcount for name in unknown)

        return self._queue.write(drop) if unknown else 0

    def backlog(self, known: Collection[str]) -> Sequence[Backlog]:
        def count(connection: sqlite3.Connection) -> list[Backlog]:
            rows = connection.execute(_BACKLOG)
            found = {name: (waiting, dead, oldest) for name, waiting, dead, oldest in rows}
            lost = dict(connection.execute("SELECT endpoint, sum(count) FROM gaps GROUP BY endpoint").fetchall())
            return [
                Backlog(name, *found.get(name, (0, 0, None)), lost.get(name, 0))
                for name in [*known, *sorted(found.keys() - set(known))]
            ]

        return self._read(count)

    def listed(self, *, endpoint: str | None, dead: bool | None, most: int) -> Sequence[WaitingEvent]:
        return self._read(
            lambda connection: [_waiting(row) for row in connection.execute(_LISTED, (endpoint, dead, most))]
        )

    def resend(self, *, id: str | None, endpoint: str | None) -> int:
        count = self._queue.write(lambda connection: connection.execute(_RESENT, (endpoint, id, self._now())).rowcount)
        self._woken()
        return count

    # ---------------------------------------------------------------------------------------------------- the file

    def close(self) -> None:
        """Close the files. Repeatable. A change that is still prepared is an orphan from now on."""
        self._closed = True
        with self._queue.turn:
            self._writer.close()
        with self._reading:
            self._reader.close()
        with self._looking:
            self._looker.close()
        descriptor, self._alive = self._alive, -1
        if descriptor >= 0:
            with suppress(OSError):
                (self._folder / "writers" / self._name).unlink()
            os.close(descriptor)

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._reading:
            return self._with(self._reader, work)

    def _look(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._looking:
            return self._with(self._looker, work)

    def _with(self, connection: CurrentConnection, work: Callable[[sqlite3.Connection], T]) -> T:
        for _ in range(_TRIES):
            try:
                return work(self._open(connection))
            except (sqlite3.Error, OSError) as error:
                self._mend(connection, error)
                if not is_damaged(error):
                    raise _failed(error) from error
        raise StoreError("the outbox of events is damaged again and again")

    def _commit(self, batch: Sequence[QueuedWrite[Any]]) -> None:
        try:
            for _ in range(_TRIES):
                try:
                    if self._transact(batch):
                        return
                except (sqlite3.Error, OSError) as error:
                    self._mend(self._writer, error)
                    if not is_damaged(error):
                        raise
            raise StoreError("the outbox was replaced all the time")
        except (sqlite3.Error, OSError, StoreError) as error:
            failure = error if isinstance(error, StoreError) else _failed(error)
            for each in batch:
                each.fail(failure)

    def _transact(self, batch: Sequence[QueuedWrite[Any]]) -> bool:
        """False if the file was replaced meanwhile: what was committed is in the old one."""
        connection = self._open(self._writer)
        level = "FULL" if any(each.synced for each in batch) else "NORMAL"
        connection.execute(f"PRAGMA synchronous = {level}")
        with transaction(connection):
            results = [each.work(connection) for each in batch]
        if inode_of(self._path) != self._writer.inode:
            return False
        for each, result in zip(batch, results, strict=True):
            each.done(result)
        return True

    def _open(self, connection: CurrentConnection) -> sqlite3.Connection:
        if self._closed:
            raise StoreError("the outbox is closed")
        return connection.open()

    def _mend(self, connection: CurrentConnection, error: Exception) -> None:
        """Sets a damaged file aside; the next attempt begins a new one."""
        inode = connection.inode
        if not is_busy(error):
            connection.close()
        if is_damaged(error) and inode is not None:
            with suppress(OSError), file_lock(self._path):
                if inode_of(self._path) == inode:
                    self._set_aside("damaged")

    def _look_for_boot(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA synchronous = FULL")
        self._boot = _number_of_boot(connection)

    def _set_aside(self, why: str) -> None:
        """The caller holds the lock of the file."""
        kept = self._path.with_name(f"outbox-{why}-{secrets.token_hex(4)}.sqlite")
        log.error("event outbox set aside", reason=why, kept=kept.name)
        for suffix in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                self._path.with_name(self._path.name + suffix).rename(kept.with_name(kept.name + suffix))
        self._path.rename(kept)

    def _prepare_file(self) -> int:
        """Make sure that the file exists and has this schema; returns its inode. Raises `OSError`, `sqlite3.Error`."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with file_lock(self._path):
            was_there = self._path.exists() or (self._folder / "writers").exists()
            if self._path.exists() and not satisfies(self._path, self._busy_timeout, _is_current):
                self._set_aside("unknown")
            if not self._path.exists():
                self._create(lost=was_there)
            inode = inode_of(self._path)
            if inode is None:
                raise FileNotFoundError(self._path)
            return inode

    def _create(self, *, lost: bool) -> None:
        fresh = self._path.with_name(".outbox.sqlite")
        fresh.unlink(missing_ok=True)
        with connect(fresh, self._busy_timeout) as connection:
            connection.executescript(_CREATE)
            connection.execute("INSERT INTO state VALUES (?, 0, 0)", (secrets.token_hex(8),))
            if lost:
                for name in self._endpoints:
                    _widen_gap(connection, name, 0, self._now(), self._now())
                    self._lost(name, 0)
            connection.execute(f"PRAGMA user_version = {_SCHEMA}")
            connection.execute("COMMIT")
            connection.execute("PRAGMA journal_mode = WAL")
        os.rename(fresh, self._path)
        for folder in (self._folder, self._folder.parent):
            sync_folder(folder)


def _is_current(connection: sqlite3.Connection) -> bool:
    return bool(
        connection.execute("PRAGMA user_version").fetchone() == (_SCHEMA,)
        and connection.execute("SELECT count(*) FROM state").fetchone() == (1,)
    )


def _epoch(connection: sqlite3.Connection) -> str:
    return str(connection.execute("SELECT epoch FROM state").fetchone()[0])


def _number_of_boot(connection: sqlite3.Connection) -> int:
    """The number of this boot, which is the highest of all. Since this boot had its last one, the disk may have been at
    another machine, and what was done there comes before what is done now.
    """
    boot = _BOOT.read_text().strip()
    if (number := _last_boot(connection, boot)) is None:
        with transaction(connection):
            if (number := _last_boot(connection, boot)) is None:
                number = connection.execute("INSERT OR REPLACE INTO boots (boot) VALUES (?)", (boot,)).lastrowid
    return int(number or 0)


def _last_boot(connection: sqlite3.Connection, boot: str) -> int | None:
    """Its number, if no other boot came after it."""
    row = connection.execute("SELECT number, boot FROM boots ORDER BY number DESC LIMIT 1").fetchone()
    return row[0] if row and row[1] == boot else None


def _number_in(connection: sqlite3.Connection, prepared: PreparedChange) -> int | None:
    """The number of a change in the file; None if it was prepared in another one."""
    epoch, _, number = prepared.id.partition("-")
    return int(number) if epoch == _epoch(connection) else None


def _add(connection: sqlite3.Connection, order: str, events: Sequence[Outgoing]) -> None:
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'prepared'").fetchone()
    barrier = row[0] if row else 0
    for event in events:
        cursor = connection.execute(
            "INSERT OR IGNORE INTO events (id, type, body, made_at, barrier, bytes) VALUES (?, ?, ?, ?, ?, ?)",
            (event.id, event.type, event.body, event.made_at, barrier, len(event.body.encode())),
        )
        if cursor.rowcount:
            rows = [(name, event.key, order, cursor.lastrowid, event.made_at) for name in event.endpoints]
            connection.executemany(
                "INSERT INTO waiting (endpoint, dead, key, turn, number, since) VALUES (?, 0, ?, ?, ?, ?)", rows
            )


def _widen_gap(connection: sqlite3.Connection, endpoint: str, count: int, first_at: float, last_at: float) -> None:
    widened = connection.execute(
        "UPDATE gaps SET count = count + ?, first_at = min(first_at, ?), last_at = max(last_at, ?) "
        "WHERE endpoint = ? AND sealed = 0",
        (count, first_at, last_at, endpoint),
    )
    if not widened.rowcount:
        connection.execute(
            "INSERT INTO gaps (endpoint, id, count, first_at, last_at, sealed) VALUES (?, ?, ?, ?, ?, 0)",
            (endpoint, secrets.token_hex(16), count, first_at, last_at),
        )


def _waiting(row: tuple[Any, ...]) -> WaitingEvent:
    number, id, kind, key, endpoint, body, made_at, attempts, error, dead, _turn, _barrier = row
    return WaitingEvent(number, id, kind, key, endpoint, body, made_at, attempts, error, bool(dead))


def _open_lock(folder: Path, name: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(folder / name, flags, 0o600)
    except FileNotFoundError:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(folder / name, flags, 0o600)


def _failed(error: Exception) -> StoreError:
    full = primary_code(error) == sqlite3.SQLITE_FULL or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    kind = StoreFull if full else StoreError
    return kind(f"the outbox of events failed: {reason_of(error)}")

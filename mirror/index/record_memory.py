"""A `RecordMemory` in one SQLite file, shared by the worker processes of one machine.

One row for each record of the bucket:

    (no row) ── note, end, compare ──> live | deleted | perhaps deleted ── begin ──> unknown, with the writer's token
                                              ^                                        │
                                              └── end, if no other write overlapped ───┤
    unknown, without a token  <── fail; end after an overlap; compare with another ────┘
              └── note ──> live | deleted | (no row)

A row with tokens is unknown for everybody, until all writers have said how they ended. A token whose writer says
nothing (it died, or its write may arrive late) stops counting after some minutes. A row is changed by `note` only if
nothing changed it since the read began: so a slow read never hides a later write.

`epoch` is raised by whatever makes all rows doubtful: another boot of the machine, because a power cut may have lost
the latest changes of this file; another mirror that used the bucket. Rows of an earlier epoch are not trusted. Nor are
those of the epoch -1, which other replicas may have changed (`journal_memory.py`): they are trusted again once they are
read, and not because a listing shows the same version.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from mirror.clock import steady_time
from mirror.index.sqlite_file import (
    CurrentConnection,
    SharedConnection,
    connect,
    current_file,
    present_inode,
    transaction,
)
from mirror.ports import (
    ListedPart,
    ListedRecord,
    ListingStart,
    RecordState,
    RememberedFolder,
    RememberedRecord,
    Version,
)
from mirror.telemetry import log

#: Written to `PRAGMA user_version`. A file of another schema is replaced by a new one.
SCHEMA: Final = 2

_CREATE: Final = """
BEGIN IMMEDIATE;
CREATE TABLE meta (
    epoch    INTEGER NOT NULL,
    complete INTEGER NOT NULL, -- the epoch in which the whole bucket was compared
    stamp    INTEGER NOT NULL, -- that of the last change
    added    INTEGER NOT NULL,
    boot     TEXT NOT NULL,
    bucket   TEXT NOT NULL,
    nonce    TEXT NOT NULL
);
CREATE TABLE records (
    key     TEXT PRIMARY KEY,
    state   INTEGER NOT NULL,
    version TEXT,
    content BLOB,
    epoch   INTEGER NOT NULL,
    stamp   INTEGER NOT NULL,
    -- tokens of writers, separated by blanks; whether several overlapped; until when they count
    writers TEXT NOT NULL DEFAULT '',
    overlap INTEGER NOT NULL DEFAULT 0,
    until   REAL NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE VIEW known AS
    SELECT key, state, version, content, records.epoch, records.stamp, writers, overlap, until, meta.epoch AS current
    FROM records, meta;
CREATE INDEX written ON records (key) WHERE writers <> '';
-- 1: live; 0: unknown. Deleted records, of which a folder may have many, are in no index
CREATE INDEX live ON records (key) WHERE state = 1;
CREATE INDEX unknown ON records (key) WHERE state = 0;
CREATE INDEX doubted ON records (key) WHERE state = 0 AND content IS NOT NULL;
CREATE TABLE counters (folder TEXT PRIMARY KEY, changes INTEGER NOT NULL) WITHOUT ROWID;
"""

_RECALL: Final = "SELECT * FROM known WHERE key = ?"
_SCAN: Final = "SELECT * FROM known WHERE key > ? AND key < ? ORDER BY key LIMIT ?"
_DOUBTED: Final = """
SELECT key FROM records INDEXED BY doubted
WHERE state = 0 AND content IS NOT NULL AND key > ? AND writers = '' ORDER BY key LIMIT ?
"""
_PART: Final = "SELECT * FROM known WHERE key > ? AND key <= ? ORDER BY key LIMIT ?"
_NEXT: Final = "SELECT key FROM records WHERE key > ? AND key < ? ORDER BY key LIMIT 1"
_PUT: Final = """
INSERT INTO records (key, state, version, content, epoch, stamp, writers, overlap, until)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET state = excluded.state, version = excluded.version, content = excluded.content,
    epoch = excluded.epoch, stamp = excluded.stamp, writers = excluded.writers, overlap = excluded.overlap,
    until = excluded.until
"""
#: What others have written meanwhile. Version and content stay: a conditional read may confirm them.
_DOUBT: Final = """
INSERT INTO records (key, state, version, content, epoch, stamp, writers, overlap, until)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET state = excluded.state, epoch = excluded.epoch, stamp = excluded.stamp,
    overlap = writers <> ''
"""
_DISTRUST: Final = "UPDATE records SET epoch = -1, stamp = ?, overlap = writers <> '' WHERE"
#: The numbers are those of `RecordState`: a partial index is used only if they stand in the query.
_STATES_BELOW: Final = """
SELECT EXISTS (SELECT 1 FROM records INDEXED BY live WHERE key > ?1 AND key < ?2 AND state = 1),
    EXISTS (SELECT 1 FROM records INDEXED BY unknown WHERE key > ?1 AND key < ?2 AND state = 0)
"""
#: A record that is being written was live before if its content is remembered.
_WAS_LIVE: Final = """
SELECT EXISTS (SELECT 1 FROM records INDEXED BY live WHERE key > ?1 AND key < ?2 AND state = 1)
    OR EXISTS (
        SELECT 1 FROM records INDEXED BY doubted WHERE key > ?1 AND key < ?2 AND state = 0 AND content IS NOT NULL
    )
"""
#: Folders whose first record makes a repository one that is listed.
_LISTED: Final = ("/_tags", "/_manifests")
#: The folder of all JSON records, whose changes are counted by kind.
_COUNTED: Final = "state/"
#: Behind every name in a folder.
_LAST: Final = "\U0010ffff"
#: Bytes. The content of a larger record is not remembered.
_MOST: Final = 256 << 10
#: Rows that a listing compares in one transaction, and seconds between two of them: pushes must get a turn.
_COMPARED_AT_ONCE: Final = 500
_PAUSE: Final = 0.01


class SqliteRecordMemory:
    """See `mirror.ports.RecordMemory`. The first call opens the file; a missing folder is created."""

    def __init__(
        self,
        path: Path,
        boot: str,
        *,
        settle: float = 300.0,
        busy_timeout: float = 5.0,
        steady: Callable[[], float] = steady_time,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """`boot` names this boot of the machine. `settle`: seconds after which a write that did not say how it ended
        has certainly arrived, or never will. `steady` gives seconds since the boot, the same in all processes. `pause`
        lets others write between two transactions of a listing.
        """
        self._path = path
        self._settle = settle
        self._steady = steady
        self._pause = pause
        #: For calls that the event loop waits for: they must not wait for a scan.
        self._looking = memory_connection(path, boot, busy_timeout)
        self._reading = memory_connection(path, boot, busy_timeout)
        self._writing = memory_connection(path, boot, busy_timeout)

    def __repr__(self) -> str:
        return f"<SqliteRecordMemory {self._path}>"

    def recall(self, key: str) -> RememberedRecord | None:
        row = self._looking.run(lambda connection: connection.execute(_RECALL, (key,)).fetchone())
        return None if row is None else self._record(row)

    def scan(self, after: str, before: str, count: int) -> Sequence[RememberedRecord]:
        rows = self._reading.run(lambda connection: connection.execute(_SCAN, (after, before, count)).fetchall())
        return [self._record(row) for row in rows]

    def doubted(self, after: str, count: int) -> Sequence[str]:
        rows = self._reading.run(lambda connection: connection.execute(_DOUBTED, (after, count)).fetchall())
        return [str(key) for (key,) in rows]

    def folders(self, after: str, before: str, count: int) -> Sequence[RememberedFolder]:
        return self._reading.run(lambda connection: list(_folders(connection, after, before, count)))

    def is_complete(self) -> bool:
        epoch, complete = self._looking.run(_epochs)
        return epoch == complete

    def was_complete(self) -> bool:
        return self._looking.run(_epochs)[1] > 0

    def added(self) -> int:
        [added] = self._looking.run(lambda connection: connection.execute("SELECT added FROM meta").fetchone())
        return int(added)

    def changes(self, folder: str) -> int | None:
        def read(connection: sqlite3.Connection) -> int | None:
            epoch, complete = _epochs(connection)
            row = connection.execute("SELECT changes FROM counters WHERE folder = ?", (folder,)).fetchone()
            # a listing that completes the memory may have brought changes that nothing counted
            return None if epoch != complete else (int(row[0]) if row else 0)

        return self._looking.run(read)

    def note(self, key: str, seen: RememberedRecord | None, version: Version | None, content: bytes | None) -> None:
        def work(connection: sqlite3.Connection) -> None:
            row = connection.execute(_RECALL, (key,)).fetchone()
            if (None if row is None else row[5]) != (None if seen is None else seen.stamp):
                return
            if row is not None and self._is_written(row):
                return
            if version is None:
                if row is not None:
                    connection.execute("DELETE FROM records WHERE key = ?", (key,))
                    _count(connection, key, _next_stamp(connection))
                return
            self._put(connection, key, version, content)

        self._writing.write(work)

    def expect(self, key: str) -> None:
        def work(connection: sqlite3.Connection) -> None:
            if connection.execute(_RECALL, (key,)).fetchone() is None:
                _add(connection, key, RecordState.PERHAPS_DELETED, None, None)

        self._writing.write(work)

    def begin(self, key: str) -> str:
        token = secrets.token_hex(8)

        def work(connection: sqlite3.Connection) -> None:
            row = connection.execute(_RECALL, (key,)).fetchone()
            others = row[6] if row is not None and self._is_written(row) else ""
            overlap = int(bool(others))
            until = self._steady() + self._settle
            self._mark(connection, row, key, f"{others} {token}".strip(), overlap, until)

        self._writing.write(work)
        return token

    def end(self, key: str, token: str, version: Version, content: bytes | None) -> None:
        def work(connection: sqlite3.Connection) -> None:
            row = connection.execute(_RECALL, (key,)).fetchone()
            tokens = row[6].split() if row is not None else []
            if tokens == [token] and not row[7]:
                self._put(connection, key, version, content)
            else:
                # other writes may have come before or after this one
                others = [each for each in tokens if each != token]
                self._mark(connection, row, key, " ".join(others), 1 if others else 0, row[8] if row is not None else 0)

        self._writing.write(work)

    def fail(self, key: str, token: str) -> None:
        def work(connection: sqlite3.Connection) -> None:
            row = connection.execute(_RECALL, (key,)).fetchone()
            if row is not None and token in (tokens := row[6].split()):
                others = [each for each in tokens if each != token]
                self._mark(connection, row, key, " ".join(others), row[7] if others else 0, row[8])

        self._writing.write(work)

    def begin_listing(self) -> ListingStart:
        def read(connection: sqlite3.Connection) -> ListingStart:
            return ListingStart(*connection.execute("SELECT stamp, epoch FROM meta").fetchone())

        return self._looking.run(read)

    def compare(self, start: ListingStart, parts: Sequence[ListedPart]) -> int:
        waiting, changed = deque(parts), 0

        def work(connection: sqlite3.Connection) -> int:
            [epoch] = connection.execute("SELECT epoch FROM meta").fetchone()
            if epoch != start.epoch:
                waiting.clear()
                return 0
            return self._compare_some(connection, start, waiting)

        while waiting:
            changed += self._writing.write(work)
            if waiting:
                self._pause(_PAUSE)
        return changed

    def listed_folders(self, after: str, before: str, count: int) -> Sequence[str]:
        def read(connection: sqlite3.Connection) -> list[str]:
            found: list[str] = []
            beyond = after
            while len(found) < count and (row := connection.execute(_NEXT, (beyond, before)).fetchone()):
                folder = str(row[0]).rpartition("/")[0]
                found.append(folder)
                beyond = f"{folder}/{_LAST}"
            return found

        return self._reading.run(read)

    def completed(self, start: ListingStart) -> bool:
        def work(connection: sqlite3.Connection) -> bool:
            connection.execute("UPDATE meta SET complete = epoch WHERE epoch = ?", (start.epoch,))
            return bool(connection.execute("SELECT epoch = ? FROM meta", (start.epoch,)).fetchone()[0])

        return self._writing.write(work)

    def owner(self) -> tuple[str, str]:
        bucket, nonce = self._looking.run(
            lambda connection: connection.execute("SELECT bucket, nonce FROM meta").fetchone()
        )
        return str(bucket), str(nonce)

    def adopt(self, bucket: str, nonce: str, *, keeps: bool = False) -> None:
        def work(connection: sqlite3.Connection) -> None:
            [known] = connection.execute("SELECT bucket FROM meta").fetchone()
            if known != bucket:
                connection.execute("DELETE FROM records")
                connection.execute("DELETE FROM counters")
                connection.execute("UPDATE meta SET complete = 0")
            connection.execute(
                "UPDATE meta SET epoch = epoch + (bucket <> ? OR (nonce <> ? AND NOT ?)), bucket = ?, nonce = ?",
                (bucket, nonce, keeps, bucket, nonce),
            )

        self._writing.write(work)

    def close(self) -> None:
        self._looking.close()
        self._reading.close()
        self._writing.close()

    def _compare_some(self, connection: sqlite3.Connection, start: ListingStart, waiting: deque[ListedPart]) -> int:
        """Compare the first of the parts that wait, and leave the others, or the rest of one, for the next call."""
        changed, more = 0, _COMPARED_AT_ONCE
        while waiting and more > 0:
            part = waiting.popleft()
            rows = connection.execute(_PART, (part.after, part.upto, more + 1)).fetchall()
            cuts = [found[more - 1] for found in ([row[0] for row in rows], _keys(part)) if len(found) > more]
            if cuts:
                cut = min(cuts)
                rows = [row for row in rows if row[0] <= cut]
                rest = [each for each in part.listed if each.key > cut]
                waiting.appendleft(ListedPart(cut, part.upto, rest))
                part = ListedPart(part.after, cut, [each for each in part.listed if each.key <= cut])
            changed += self._compare(connection, start, part, {row[0]: row for row in rows})
            more -= max(len(rows), len(part.listed), 1)
        return changed

    def _compare(
        self, connection: sqlite3.Connection, start: ListingStart, part: ListedPart, rows: dict[str, Any]
    ) -> int:
        changed, same = 0, []
        for each in part.listed:
            row = rows.pop(each.key, None)
            if row is None:
                state = RecordState.PERHAPS_DELETED if each.is_deleted else RecordState.LIVE
                _add(connection, each.key, state, None, None)
                changed += 1
            elif row[5] <= start.stamp and not self._is_written(row):
                if _agrees(row, each, start.epoch):
                    same.append(each.key)
                elif row[1] != RecordState.UNKNOWN.value:
                    self._doubt(connection, row, each)
                    changed += 1
        for key, row in rows.items():
            if row[5] <= start.stamp and not self._is_written(row) and row[1] != RecordState.UNKNOWN.value:
                self._mark(connection, row, key, "", 0, 0)
                changed += 1
        # most rows are as they were, and cost no write
        connection.executemany(
            "UPDATE records SET epoch = ? WHERE key = ? AND epoch <> ? AND epoch <> -1",
            ((start.epoch, key, start.epoch) for key in same),
        )
        return changed

    def _put(self, connection: sqlite3.Connection, key: str, version: Version, content: bytes | None) -> None:
        state = RecordState.DELETED if content is None else RecordState.LIVE
        kept = None if content is None or len(content) > _MOST else content
        _add(connection, key, state, version, kept)

    @staticmethod
    def _mark(connection: sqlite3.Connection, row: Any, key: str, writers: str, overlap: int, until: float) -> None:
        """Make a row unknown. Version and content stay: a conditional read may confirm them."""
        stamp = _next_stamp(connection)
        version, content = (row[2], row[3]) if row is not None else (None, None)
        [epoch] = connection.execute("SELECT epoch FROM meta").fetchone()
        values = (key, RecordState.UNKNOWN.value, version, content, epoch, stamp, writers, overlap, until)
        connection.execute(_PUT, values)
        _count(connection, key, stamp)

    def _doubt(self, connection: sqlite3.Connection, row: Any, listed: ListedRecord) -> None:
        """Keep of a row what a listing agrees with. A listing never says that a record is absent."""
        state = RecordState(row[1])
        if state is RecordState.LIVE and not listed.is_deleted:
            _add(connection, listed.key, RecordState.LIVE, None, None)
        elif state is RecordState.DELETED and listed.is_deleted:
            _add(connection, listed.key, RecordState.PERHAPS_DELETED, None, None)
        else:
            self._mark(connection, row, listed.key, "", 0, 0)

    def _is_written(self, row: Any) -> bool:
        """True if a write of this row is under way, or may still arrive."""
        return bool(row[6]) and self._steady() < row[8]

    def _record(self, row: Any) -> RememberedRecord:
        key, state, version, content, epoch, stamp, _writers, _overlap, _until, current = row
        return RememberedRecord(
            key,
            RecordState(state),
            None if version is None else Version(version),
            content,
            is_trusted=epoch == current,
            stamp=stamp,
        )


def doubt_records(connection: sqlite3.Connection, keys: Iterable[str]) -> None:
    """Make rows unknown, in the transaction of the caller. A write of this machine that is under way does not make its
    row known again.
    """
    [epoch] = connection.execute("SELECT epoch FROM meta").fetchone()
    for key in keys:
        stamp = _next_stamp(connection)
        values = (key, RecordState.UNKNOWN.value, None, None, epoch, stamp, "", 0, 0)
        connection.execute(_DOUBT, values)
        _count(connection, key, stamp)


def distrust_records(connection: sqlite3.Connection, ranges: Iterable[tuple[str, str]], keys: Iterable[str]) -> None:
    """Trust none of these rows any more, and none between two keys, in the transaction of the caller. Versions and
    contents stay.
    """
    stamp = _next_stamp(connection)
    for after, before in ranges:
        connection.execute(f"{_DISTRUST} key > ? AND key < ?", (stamp, after, before))
        if after.startswith(_COUNTED):
            connection.execute("INSERT OR REPLACE INTO counters VALUES (?, ?)", (after.rpartition("/")[0], stamp))
    for key in keys:
        connection.execute(f"{_DISTRUST} key = ?", (stamp, key))


def _begin(connection: sqlite3.Connection) -> None:
    # NORMAL syncs only at checkpoints: after a power cut no row is trusted
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA cache_size = -16000")


def memory_connection(
    path: Path,
    boot: str,
    busy_timeout: float,
    begin: Callable[[sqlite3.Connection], None] = lambda connection: None,
) -> SharedConnection:
    """A connection to the file of a memory, which is made if need be. `begin` is called with each connection that was
    opened.
    """

    def both(connection: sqlite3.Connection) -> None:
        _begin(connection)
        begin(connection)

    return SharedConnection(
        CurrentConnection(path, busy_timeout, lambda: _prepare(path, boot, busy_timeout), both),
        path,
        "the memory of the bucket's records",
        lambda: log.warning("memory of records damaged", path=str(path)),
    )


def _prepare(path: Path, boot: str, busy_timeout: float) -> int:
    """Make sure that the file exists, has this schema, and belongs to this boot; returns its inode. Raises `OSError`,
    `sqlite3.Error`.
    """

    def create(connection: sqlite3.Connection) -> None:
        connection.executescript(_CREATE)
        # stamps of another file must not look like those of this one
        connection.execute("INSERT INTO meta VALUES (1, 0, ?, 0, ?, '', '')", (secrets.randbits(48), boot))

    with current_file(path, busy_timeout, SCHEMA, _is_current, create):
        with connect(path, busy_timeout) as connection, transaction(connection):
            if connection.execute("SELECT boot FROM meta").fetchone() != (boot,):
                connection.execute("UPDATE meta SET epoch = epoch + 1, boot = ?", (boot,))
                connection.execute("UPDATE records SET writers = '', overlap = 0 WHERE writers <> ''")
        return present_inode(path)


def _is_current(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("SELECT count(*) FROM meta").fetchone() == (1,))


def _epochs(connection: sqlite3.Connection) -> tuple[int, int]:
    epoch, complete = connection.execute("SELECT epoch, complete FROM meta").fetchone()
    return int(epoch), int(complete)


def _next_stamp(connection: sqlite3.Connection) -> int:
    connection.execute("UPDATE meta SET stamp = stamp + 1")
    return int(connection.execute("SELECT stamp FROM meta").fetchone()[0])


def _count(connection: sqlite3.Connection, key: str, stamp: int) -> None:
    """Count a change of a JSON record."""
    if key.startswith(_COUNTED):
        connection.execute("INSERT OR REPLACE INTO counters VALUES (?, ?)", (key.rpartition("/")[0], stamp))


def _add(
    connection: sqlite3.Connection, key: str, state: RecordState, version: Version | None, content: bytes | None
) -> None:
    """Write a row that no write is under way for."""
    folder = key.rpartition("/")[0]
    if state is RecordState.LIVE and folder.endswith(_LISTED):
        [had] = connection.execute(_WAS_LIVE, (f"{folder}/", f"{folder}0")).fetchone()
        if not had:
            connection.execute("UPDATE meta SET added = added + 1")
    stamp = _next_stamp(connection)
    [epoch] = connection.execute("SELECT epoch FROM meta").fetchone()
    connection.execute(_PUT, (key, state.value, version, content, epoch, stamp, "", 0, 0))
    _count(connection, key, stamp)


def _keys(part: ListedPart) -> list[str]:
    return [each.key for each in part.listed]


def _agrees(row: Any, listed: ListedRecord, epoch: int) -> bool:
    """True if a listing shows what a row says. A listing without versions confirms no content."""
    state = RecordState(row[1])
    if state is RecordState.UNKNOWN:
        return False
    if listed.is_deleted is (state is RecordState.LIVE):
        return False
    if row[2] is None:
        # only listings have said anything of it so far
        return True
    return bool(row[2] == listed.version if listed.version else row[4] == epoch)


def _folders(connection: sqlite3.Connection, after: str, before: str, count: int) -> list[RememberedFolder]:
    found: list[RememberedFolder] = []
    while len(found) < count:
        row = connection.execute(_NEXT, (after, before)).fetchone()
        if row is None:
            break
        key = str(row[0])
        begins = key.find("/_")
        if begins < 0 or (ends := key.find("/", begins + 1)) < 0:
            after = key
            continue
        folder = key[:ends]
        after = f"{folder}0"  # the character after the slash: behind everything in the folder
        is_live, is_unknown = connection.execute(_STATES_BELOW, (f"{folder}/", after)).fetchone()
        found.append(RememberedFolder(folder, bool(is_live), bool(is_unknown)))
    return found

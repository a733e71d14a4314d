"""An `ObjectBook` in one SQLite file, shared by the worker processes of one machine.

    absent ── first call ──> begun, not complete ── end_listing ──> complete
                                  ^                                     │
                                  └── new file: damaged, of another ────┘
                                      schema, or of another bucket

Each row has the number of the listing that saw it last, or that was the latest one when the row was entered. What a
complete listing has not seen, and nobody has entered since it began, goes. Triggers keep the totals.

A power cut may lose the latest changes: the bucket then has objects of which the book does not know, until the next
listing, or the book has objects that are gone, which the next reader finds out.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from mirror.errors import RequestError
from mirror.index.sqlite_file import (
    CurrentConnection,
    SharedConnection,
    current_file,
    present_inode,
)
from mirror.oci.digest import Digest
from mirror.ports import BookedObject, BookedRecord, BookTotals
from mirror.telemetry import log

#: Written to `PRAGMA user_version`. A file of another schema is replaced by a new one.
SCHEMA: Final = 1
#: Seconds until another use of the same blob is written.
_DAY: Final = 86400.0

_CREATE: Final = """
BEGIN IMMEDIATE;
CREATE TABLE state (
    bucket       TEXT NOT NULL,
    listing      INTEGER NOT NULL DEFAULT 0,
    completed_at REAL,
    objects      INTEGER NOT NULL DEFAULT 0,
    bytes        INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE objects (
    digest TEXT PRIMARY KEY, size INTEGER NOT NULL, used REAL NOT NULL, seen INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX objects_by_use ON objects (used, digest);
CREATE TABLE records (
    key TEXT PRIMARY KEY, mark TEXT NOT NULL, written REAL NOT NULL, seen INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TRIGGER object_added AFTER INSERT ON objects BEGIN
    UPDATE state SET objects = objects + 1, bytes = bytes + new.size;
END;
CREATE TRIGGER object_changed AFTER UPDATE OF size ON objects BEGIN
    UPDATE state SET bytes = bytes + new.size - old.size;
END;
CREATE TRIGGER object_gone AFTER DELETE ON objects BEGIN
    UPDATE state SET objects = objects - 1, bytes = bytes - old.size;
END;
"""
_PUT: Final = """
INSERT INTO objects (digest, size, used, seen) VALUES (?, ?, ?, {seen})
ON CONFLICT (digest) DO UPDATE SET size = excluded.size, used = max(used, excluded.used), seen = excluded.seen
"""
_PUT_NOW: Final = _PUT.format(seen="(SELECT listing FROM state)")
_PUT_LISTED: Final = _PUT.format(seen="?")
_PUT_RECORD: Final = """
INSERT INTO records (key, mark, written, seen) VALUES (?, ?, ?, (SELECT listing FROM state))
ON CONFLICT (key) DO UPDATE SET mark = excluded.mark, written = excluded.written, seen = excluded.seen
"""


class CachedBook:
    """See `mirror.ports.ObjectBook`. The first call opens the file. May be used from any thread."""

    def __init__(self, path: Path, bucket: str, *, busy_timeout: float = 5.0) -> None:
        """`bucket` names the bucket: a file that is about another one is begun anew. A call waits up to `busy_timeout`
        seconds for other processes.
        """
        self._path = path
        self._file = SharedConnection(
            CurrentConnection(path, busy_timeout, lambda: _prepare(path, bucket, busy_timeout), _begin),
            path,
            "the book of the bucket's cache",
            lambda: log.warning("book of bucket cache damaged", path=str(path)),
        )

    def __repr__(self) -> str:
        return f"<CachedBook {self._path}>"

    def find(self, digest: Digest) -> int | None:
        row = self._file.run(
            lambda file: file.execute("SELECT size FROM objects WHERE digest = ?", (str(digest),)).fetchone()
        )
        return int(row[0]) if row else None

    def put(self, objects: Sequence[BookedObject]) -> None:
        rows = [(str(each.digest), each.size, each.used_at) for each in objects]
        self._file.write(lambda file: file.executemany(_PUT_NOW, rows))

    def use(self, seen: Mapping[Digest, float]) -> None:
        rows = [(at, str(digest), at - _DAY) for digest, at in seen.items()]
        self._file.write(
            lambda file: file.executemany("UPDATE objects SET used = ? WHERE digest = ? AND used < ?", rows)
        )

    def drop(self, digests: Iterable[Digest]) -> None:
        rows = [(str(digest),) for digest in digests]
        self._file.write(lambda file: file.executemany("DELETE FROM objects WHERE digest = ?", rows))

    def used_since(self, at: float, count: int) -> Sequence[BookedObject]:
        query = "SELECT digest, size, used FROM objects WHERE used > ? ORDER BY used DESC LIMIT ?"
        return self._objects(query, at, count)

    def coldest(self, count: int) -> Sequence[BookedObject]:
        return self._objects("SELECT digest, size, used FROM objects ORDER BY used, digest LIMIT ?", count)

    def _objects(self, query: str, *arguments: float) -> Sequence[BookedObject]:
        rows = self._file.run(lambda file: file.execute(query, arguments).fetchall())
        return [BookedObject(digest, int(size), float(used)) for text, size, used in rows if (digest := _digest(text))]

    def totals(self) -> BookTotals:
        objects, size = self._file.run(lambda file: file.execute("SELECT objects, bytes FROM state").fetchone())
        return BookTotals(int(objects), int(size))

    def record(self, key: str) -> BookedRecord | None:
        query = "SELECT mark, written FROM records WHERE key = ?"
        row = self._file.run(lambda file: file.execute(query, (key,)).fetchone())
        return BookedRecord(str(row[0]), float(row[1])) if row else None

    def put_record(self, key: str, record: BookedRecord) -> None:
        self._file.write(lambda file: file.execute(_PUT_RECORD, (key, record.mark, record.written_at)))

    def drop_records(self, keys: Iterable[str]) -> None:
        rows = [(key,) for key in keys]
        self._file.write(lambda file: file.executemany("DELETE FROM records WHERE key = ?", rows))

    # ------------------------------------------------------------------------------------------------ listings

    def completed_at(self) -> float | None:
        [at] = self._file.run(lambda file: file.execute("SELECT completed_at FROM state").fetchone())
        return None if at is None else float(at)

    def begin_listing(self) -> int:
        def begin(file: sqlite3.Connection) -> int:
            file.execute("UPDATE state SET listing = listing + 1")
            return int(file.execute("SELECT listing FROM state").fetchone()[0])

        return self._file.write(begin)

    def listed(self, number: int, objects: Sequence[BookedObject], records: Sequence[str]) -> None:
        rows = [(str(each.digest), each.size, each.used_at, number) for each in objects]
        keys = [(number, key) for key in records]

        def enter(file: sqlite3.Connection) -> None:
            file.executemany(_PUT_LISTED, rows)
            file.executemany("UPDATE records SET seen = ? WHERE key = ?", keys)

        self._file.write(enter)

    def end_listing(self, number: int, at: float) -> None:
        def end(file: sqlite3.Connection) -> None:
            file.execute("DELETE FROM objects WHERE seen < ?", (number,))
            file.execute("DELETE FROM records WHERE seen < ?", (number,))
            file.execute("UPDATE state SET completed_at = ?", (at,))

        self._file.write(end)

    def close(self) -> None:
        """Close the file for good. Repeatable."""
        self._file.close()


def _begin(connection: sqlite3.Connection) -> None:
    # NORMAL syncs only at checkpoints: a power cut may lose the latest changes, but does not damage the file
    connection.execute("PRAGMA synchronous = NORMAL")


def _prepare(path: Path, bucket: str, busy_timeout: float) -> int:
    """Make sure that the file exists, has this schema and is about this bucket; returns its inode. Raises `OSError`,
    `sqlite3.Error`.
    """

    def create(connection: sqlite3.Connection) -> None:
        connection.executescript(_CREATE)
        connection.execute("INSERT INTO state (bucket) VALUES (?)", (bucket,))

    def is_current(connection: sqlite3.Connection) -> bool:
        return connection.execute("SELECT bucket FROM state").fetchall() == [(bucket,)]

    with current_file(path, busy_timeout, SCHEMA, is_current, create, keep=False):
        return present_inode(path)


def _digest(text: object) -> Digest | None:
    try:
        return Digest.parse(str(text))
    except RequestError:
        return None

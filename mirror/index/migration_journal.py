"""`MigrationJournal`s in one SQLite file, one for each pair of stores.

The file is not derived from anything: without it, a pass cannot tell what an earlier one has written from what somebody
else has, and reports both as conflicts. Each change is on the disk when it returns.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mirror.errors import IndexUnavailable
from mirror.index.sqlite_file import transaction
from mirror.policy.hosted.migration_steps import Written

#: Written to `PRAGMA user_version`.
SCHEMA: Final = 1

_CREATE: Final = """
CREATE TABLE IF NOT EXISTS pairs (id INTEGER PRIMARY KEY, stores TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS written (
    pair INTEGER NOT NULL,
    key TEXT NOT NULL,
    version TEXT,
    next TEXT,
    PRIMARY KEY (pair, key)
) WITHOUT ROWID;
"""
_BEGIN: Final = """
INSERT INTO written (pair, key, next) VALUES (?, ?, ?) ON CONFLICT (pair, key) DO UPDATE SET next = excluded.next
"""
_DONE: Final = """
INSERT INTO written (pair, key, version) VALUES (?, ?, ?)
ON CONFLICT (pair, key) DO UPDATE SET version = excluded.version, next = NULL
"""


class SqliteMigrationJournal:
    """See `mirror.ports.MigrationJournal`. Opens the file; its folder must exist. May be used from any thread."""

    def __init__(self, path: Path, stores: str) -> None:
        """`stores` names the pair. Raises `IndexUnavailable`."""
        self._path = path
        self._lock = threading.Lock()
        with self._errors():
            self._connection = sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._pair = self._prepare(stores)

    def __repr__(self) -> str:
        return f"<SqliteMigrationJournal {self._path}>"

    def written(self, prefix: str) -> Mapping[str, Written]:
        after = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        with self._lock, self._errors():
            rows = self._connection.execute(
                "SELECT key, version, next FROM written WHERE pair = ? AND key >= ? AND key < ?",
                (self._pair, prefix, after),
            ).fetchall()
        return {key: Written(version, following) for key, version, following in rows}

    def begin(self, versions: Mapping[str, str]) -> None:
        self._change(_BEGIN, versions.items())

    def done(self, versions: Mapping[str, str]) -> None:
        self._change(_DONE, versions.items())

    def forget(self, keys: Sequence[str]) -> None:
        self._change("DELETE FROM written WHERE pair = ? AND key = ?", ((key,) for key in keys))

    def close(self) -> None:
        with self._lock, self._errors():
            self._connection.close()

    def _prepare(self, stores: str) -> int:
        """Returns the number of the pair."""
        [version] = self._connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, SCHEMA):
            raise IndexUnavailable(f"{self._path} was written by another version of the mirror")
        self._connection.executescript(_CREATE)
        with transaction(self._connection):
            self._connection.execute(f"PRAGMA user_version = {SCHEMA}")
            self._connection.execute("INSERT OR IGNORE INTO pairs (stores) VALUES (?)", (stores,))
            [pair] = self._connection.execute("SELECT id FROM pairs WHERE stores = ?", (stores,)).fetchone()
        return int(pair)

    def _change(self, statement: str, rows: Iterable[tuple[str, ...]]) -> None:
        with self._lock, self._errors(), transaction(self._connection):
            self._connection.executemany(statement, ((self._pair, *row) for row in rows))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise IndexUnavailable(f"the journal of the migration, {self._path}: {error}") from error

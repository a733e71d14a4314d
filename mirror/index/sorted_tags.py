"""Tag lists of upstreams that do not sort, each in an SQLite file whose table is sorted by tag.

    absent ── gather() ──> <hash>.<random>.part ── publish() ──> <hash>.sqlite ── no room: the oldest ──> absent
                                 │
                                 └── close(), or not written for an hour ──> absent

SQLite bounds the memory, however long the list is: its page cache is 16 MiB while a list grows. Published files are
read-only and shared by all processes of the store; a process that has one open can read it to the end after it was
replaced or deleted. An expired list is not used. Files are not synced, so a power cut may destroy them.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from mirror.errors import StoreError, StoreFull, reason_of
from mirror.ports import TagBatch

_PUBLISHED: Final = ".sqlite"
_GROWING: Final = ".part"
#: Seconds without a write after which a growing file counts as left by a dead process.
_LEFT_AFTER: Final = 3600.0
#: Seconds by which the clock may have been set back.
_SLACK: Final = 60.0
_CREATE: Final = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -16384;
PRAGMA page_size = 8192;
CREATE TABLE list (since REAL NOT NULL, until REAL NOT NULL);
CREATE TABLE tags (tag TEXT PRIMARY KEY) WITHOUT ROWID;
"""


class LocalSortedTags:
    """A `SortedTags` in a folder, which is made when it is first needed. `now` returns epoch seconds."""

    def __init__(self, folder: Path, most_bytes: int, now: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._now = now

    def __repr__(self) -> str:
        return f"<LocalSortedTags {self._folder}>"

    @property
    def most_bytes(self) -> int:
        """See `SortedTags`."""
        return self._most_bytes

    def page(self, key: str, last: str, count: int) -> TagBatch | None:
        """See `SortedTags`. A list that cannot be read counts as absent."""
        try:
            with closing(sqlite3.connect(f"{self._path(key).as_uri()}?mode=ro&immutable=1", uri=True)) as file:
                [(since, until)] = file.execute("SELECT since, until FROM list").fetchall()
                if not since - _SLACK <= self._now() < until:
                    return None
                rows = file.execute("SELECT tag FROM tags WHERE tag > ? ORDER BY tag LIMIT ?", (last, count + 1))
                tags = tuple(tag for (tag,) in rows)
        except (sqlite3.Error, ValueError):
            return None
        return TagBatch(tags[:count], len(tags) > count)

    def gather(self, key: str) -> Gathering:
        """See `SortedTags`."""
        with _errors():
            self._folder.mkdir(parents=True, exist_ok=True)
            return Gathering(self, self._path(key), self._now)

    def make_room(self, growing: Path) -> int:
        """Drop published lists, oldest first, until all files fit into the limit; returns the bytes that are left.

        Also drops growing files of dead processes, but never `growing`. Raises `OSError`.
        """
        files = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for written_at, size, path in sorted(files):
            stale = path.suffix == _GROWING and path != growing and time.time() - written_at > _LEFT_AFTER
            if stale or (total > self._most_bytes and path.suffix == _PUBLISHED):
                path.unlink(missing_ok=True)
                total -= size
        return total

    def _path(self, key: str) -> Path:
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()}{_PUBLISHED}"


class Gathering:
    """A `TagGathering` in a file of its own."""

    def __init__(self, lists: LocalSortedTags, path: Path, now: Callable[[], float]) -> None:
        self._lists = lists
        self._path = path
        self._now = now
        self._part = path.with_suffix(f".{secrets.token_hex(4)}{_GROWING}")
        self._published = False
        # calls may come from any thread, one at a time
        self._file = sqlite3.connect(self._part, isolation_level=None, check_same_thread=False)
        self._file.executescript(_CREATE)
        self._since = now()

    @property
    def count(self) -> int:
        """See `TagGathering`."""
        return self._file.total_changes

    @property
    def size(self) -> int:
        """See `TagGathering`."""
        [(pages,)] = self._file.execute("PRAGMA page_count").fetchall()
        [(size,)] = self._file.execute("PRAGMA page_size").fetchall()
        return int(pages) * int(size)

    def add(self, tags: Sequence[str]) -> None:
        """See `TagGathering`."""
        with _errors():
            self._file.execute("BEGIN")
            # sorted, because insertion in key order is faster
            self._file.executemany("INSERT OR IGNORE INTO tags VALUES (?)", [(tag,) for tag in sorted(set(tags))])
            self._file.execute("COMMIT")
            if self._lists.make_room(self._part) > self._lists.most_bytes >= self.size:
                raise StoreFull("other tag lists that are being sorted take all the space of tag_lists_max_size")

    def publish(self, until: float) -> None:
        """See `TagGathering`."""
        with _errors():
            self._file.execute("INSERT INTO list VALUES (?, ?)", (self._since, until))
            self._file.close()
            os.replace(self._part, self._path)
        self._published = True

    def close(self) -> None:
        """See `TagGathering`."""
        self._file.close()
        if not self._published:
            self._part.unlink(missing_ok=True)


@contextmanager
def _errors() -> Iterator[None]:
    """Turn the errors of SQLite and `OSError` into `StoreFull` or `StoreError`."""
    try:
        yield
    except sqlite3.OperationalError as error:
        full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
        raise (StoreFull if full else StoreError)(f"a tag list cannot be sorted: {error}") from error
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"a tag list cannot be sorted: {reason_of(error)}") from error

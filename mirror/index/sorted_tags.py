"""Tag lists of upstreams that do not sort, each in an SQLite file that is sorted by its key.

    absent ── gather() ──> <hash>.<random>.part ── publish() ──> <hash>.sqlite ── its time is over, no room ──> absent
                                 │
                                 └── close(), or nobody has written to it for an hour ──> absent

SQLite keeps the memory bounded, however long the list is: 16 MiB of its pages while it grows. Published files are only
read, by every process of the store; whoever reads one that is replaced or removed reads it to the end. Nothing here
outlives a power cut, or needs to.
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

from mirror.errors import StoreError, StoreFull
from mirror.ports import TagBatch

__all__ = ["LocalSortedTags"]

_PUBLISHED: Final = ".sqlite"
_GROWING: Final = ".part"
#: Seconds after which a growing file is taken for one whose process has died.
_LEFT_AFTER: Final = 3600.0
#: Seconds by which the clock may have been put back.
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
    """A `SortedTags` in a folder, which is made when it is needed. `now` is epoch seconds."""

    def __init__(self, folder: Path, most_bytes: int, now: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._now = now

    @property
    def most_bytes(self) -> int:
        """See `SortedTags`."""
        return self._most_bytes

    def page(self, key: str, last: str, count: int) -> TagBatch | None:
        """See `SortedTags`. What cannot be read is not here."""
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
        """Drop published lists, the oldest first, until all files are within the limit; returns the bytes that stay."""
        files = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                found = path.stat()
                files.append((found.st_mtime, found.st_size, path))
        held = sum(size for _, size, _ in files)
        for written_at, size, path in sorted(files):
            left = path.suffix == _GROWING and path != growing and time.time() - written_at > _LEFT_AFTER
            if left or (held > self._most_bytes and path.suffix == _PUBLISHED):
                path.unlink(missing_ok=True)
                held -= size
        return held

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
        # calls come from any thread, one at a time
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
            # in order, which is faster in a file that is sorted
            self._file.executemany("INSERT OR IGNORE INTO tags VALUES (?)", [(tag,) for tag in sorted(set(tags))])
            self._file.execute("COMMIT")
            if self._lists.make_room(self._part) > self._lists.most_bytes >= self.size:
                raise StoreFull("other tag lists that are being sorted take all of lists_bytes")

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
    """The border where those of SQLite and of the disk become ours."""
    try:
        yield
    except sqlite3.OperationalError as error:
        full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
        raise (StoreFull if full else StoreError)(f"a tag list cannot be sorted: {error}") from error
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"a tag list cannot be sorted: {error}") from error

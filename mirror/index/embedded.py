"""A `ContentIndex` in one SQLite file, shared by the worker processes of one machine.

The life of the file:

    absent ── first operation ──> current schema ── damaged, foreign or of another schema ──> set aside (`<file>.old`)
                                        ^                                                              │
                                        └──────────────────────── created again, without a marker <────┘

The index can be rebuilt from the disk, so nothing is rescued from a damaged file: the new file has no marker, and the
mirror therefore rebuilds it. `sqlite_file.py` says how workers agree on setting a file aside.

Every operation is a single SQL statement on a batch, which is passed as JSON. So an operation is atomic, makes one trip
to the connection's thread, and leaves no transaction open if its task is cancelled. Reads have their own connection,
because in WAL mode they never wait for a writer. Triggers update the counters, so these are exact with any number of
writers. Needs SQLite 3.33 with JSON functions. An instance belongs to one event loop of one process; create it after a
fork.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sqlite3
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiosqlite

from mirror.aio.batches import batches
from mirror.aio.threads import uninterrupted
from mirror.errors import IndexUnavailable, MirrorError, reason_of
from mirror.index.sqlite_file import (
    WriteAheadLog,
    connect,
    file_lock,
    inode_of,
    is_busy,
    is_damaged,
    renew,
    satisfies,
    set_aside,
)
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo, read_repo
from mirror.policy.records import BlobRole, ContentRecord, ReferencedBlob, References, Usage
from mirror.ports import RebuildState
from mirror.telemetry import INDEX_FAILURES, log

#: Written to `PRAGMA user_version`. A file of another schema is replaced by a new one.
SCHEMA: Final = 2

#: Records per statement: the write lock is held for about 10 ms, so that other workers get their turn.
_BATCH: Final = 250

#: Also made in a file that an older version has created.
_HOLDERS: Final = "CREATE INDEX IF NOT EXISTS holders ON links (digest, repo);"

#: Likewise. A row for each part that is done, with the token of its rebuild; the row of the part '' has the token of
#: the rebuild that runs. A mark ends it.
_REBUILD: Final = """
CREATE TABLE IF NOT EXISTS rebuild (
    part  TEXT PRIMARY KEY,
    token TEXT NOT NULL,
    blobs INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS rebuild_ended AFTER INSERT ON marker BEGIN
    DELETE FROM rebuild;
END;
"""

_CREATE: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE content (
    digest    TEXT PRIMARY KEY,
    size      INTEGER NOT NULL,
    last_used REAL NOT NULL,
    parents   INTEGER NOT NULL DEFAULT 0, -- how many rows of `edges` have it as their child
    manifest  INTEGER NOT NULL DEFAULT 0, -- 1 if it is a manifest whose names are known
    names     TEXT                        -- of a manifest: [[child, 1 if that is a manifest], …]
) WITHOUT ROWID;
-- each has every column that `least_recently_used` reads, so that choosing victims reads one run of pages
CREATE INDEX loose ON content (last_used, digest, size, parents, manifest) WHERE parents = 0 AND manifest = 0;
CREATE INDEX root ON content (last_used, digest, size, parents, manifest) WHERE parents = 0 AND manifest = 1;
-- what the manifests name; `manifest` is 1 if an index names a manifest
CREATE TABLE edges (
    child    TEXT NOT NULL,
    parent   TEXT NOT NULL,
    manifest INTEGER NOT NULL,
    PRIMARY KEY (child, parent)
) WITHOUT ROWID;
CREATE TABLE links (
    repo   TEXT NOT NULL,
    digest TEXT NOT NULL,
    size   INTEGER NOT NULL,
    PRIMARY KEY (repo, digest)
) WITHOUT ROWID;
{_HOLDERS}
CREATE TABLE usage (blobs INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO usage VALUES (0, 0);
CREATE TABLE marker (mark TEXT NOT NULL);
{_REBUILD}
CREATE TRIGGER content_added AFTER INSERT ON content BEGIN
    UPDATE usage SET blobs = blobs + 1, bytes = bytes + new.size;
    UPDATE content SET parents = (SELECT count(*) FROM edges WHERE child = new.digest)
    WHERE digest = new.digest AND EXISTS (SELECT 1 FROM edges WHERE child = new.digest);
END;
CREATE TRIGGER content_dropped AFTER DELETE ON content BEGIN
    UPDATE usage SET blobs = blobs - 1, bytes = bytes - old.size;
    DELETE FROM edges
    WHERE parent = old.digest AND child IN (SELECT json_extract(value, '$[0]') FROM json_each(old.names));
END;
CREATE TRIGGER content_named AFTER UPDATE OF names ON content WHEN old.manifest = 0 BEGIN
    INSERT OR IGNORE INTO edges (child, parent, manifest)
    SELECT json_extract(value, '$[0]'), new.digest, json_extract(value, '$[1]') FROM json_each(new.names);
END;
CREATE TRIGGER edge_added AFTER INSERT ON edges BEGIN
    UPDATE content SET parents = parents + 1 WHERE digest = new.child;
END;
CREATE TRIGGER edge_dropped AFTER DELETE ON edges BEGIN
    UPDATE content SET parents = parents - 1 WHERE digest = old.child;
END;
CREATE TRIGGER content_resized AFTER UPDATE OF size ON content WHEN new.size <> old.size BEGIN
    UPDATE usage SET bytes = bytes + new.size - old.size;
END;
PRAGMA user_version = {SCHEMA};
COMMIT;
"""  # noqa: S608  # the only value inserted is our own number

_PUT: Final = """
INSERT INTO content (digest, size, last_used)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]')
FROM json_each(?) WHERE true
ON CONFLICT (digest) DO UPDATE SET
    size = excluded.size,
    last_used = max(last_used, excluded.last_used)
WHERE size <> excluded.size OR last_used < excluded.last_used
"""
_RECORDS: Final = "SELECT digest, size, last_used FROM content WHERE digest IN (SELECT value FROM json_each(?))"
# Also touches every index above a manifest.
_TOUCH: Final = """
WITH RECURSIVE seen (digest, at) AS (
    SELECT key, value FROM json_each(?)
    UNION
    SELECT edges.parent, seen.at FROM seen JOIN edges ON edges.child = seen.digest AND edges.manifest = 1
)
UPDATE content SET last_used = latest.at FROM (SELECT digest, max(at) AS at FROM seen GROUP BY digest) AS latest
WHERE content.digest = latest.digest AND content.last_used < latest.at
"""
_RECORD_REFERENCES: Final = """
UPDATE content SET names = given.value, manifest = 1 FROM json_each(?) AS given
WHERE content.digest = given.key AND content.manifest = 0
"""
_OLDEST: Final = {
    BlobRole.LOOSE: "SELECT digest, size, last_used FROM content WHERE parents = 0 AND manifest = 0"
    " ORDER BY last_used, digest LIMIT ?",
    BlobRole.ROOT: "SELECT digest, size, last_used FROM content WHERE parents = 0 AND manifest = 1"
    " ORDER BY last_used, digest LIMIT ?",
    # used only by tests, so it has no SQL index
    BlobRole.NAMED: "SELECT digest, size, last_used FROM content WHERE parents > 0 ORDER BY last_used, digest LIMIT ?",
}
_SUCCESSORS: Final = """
SELECT above.digest, child.digest, child.size, child.last_used, child.parents, child.manifest
FROM json_each(?) AS given
JOIN content AS above ON above.digest = given.value AND above.manifest = 1
LEFT JOIN json_each(above.names) AS named
LEFT JOIN content AS child ON child.digest = json_extract(named.value, '$[0]')
"""
# `digest < x''` excludes BLOB values, which a foreign program may have written: they sort after all text, and the
# paging would never end
_DIGESTS: Final = "SELECT digest FROM content WHERE digest > ? AND digest < x'' ORDER BY digest LIMIT ?"
_LINK: Final = """
INSERT INTO links (repo, digest, size) SELECT ?, key, value FROM json_each(?) WHERE true
ON CONFLICT (repo, digest) DO UPDATE SET size = excluded.size WHERE excluded.size >= 0
"""
_IS_CURRENT: Final = "SELECT 1 FROM rebuild WHERE part = '' AND token = ?"
_NOTE_REBUILT: Final = """
INSERT OR REPLACE INTO rebuild (part, token, blobs)
SELECT ?, token, ? FROM rebuild WHERE part = '' AND token = ?
"""
# another rebuild leaves what the one before has noted
_IS_NOTED: Final = """
SELECT 1 FROM rebuild WHERE part = ? AND token = ? AND token = (SELECT token FROM rebuild WHERE part = '')
"""
_SET_MARKER: Final = """
INSERT OR REPLACE INTO marker (rowid, mark)
SELECT 1, ? WHERE ? = '' OR EXISTS (SELECT 1 FROM rebuild WHERE part = '' AND token = ?)
"""
# `x''`: see `_DIGESTS`
_LINKS: Final = """
SELECT repo, digest,
    NOT EXISTS (SELECT 1 FROM content WHERE content.digest = links.digest)
    AND NOT EXISTS (SELECT 1 FROM edges WHERE edges.child = links.digest)
FROM links WHERE (repo, digest) > (?, ?) AND repo < x'' AND digest < x'' ORDER BY repo, digest LIMIT ?
"""
_UNLINK: Final = "DELETE FROM links WHERE repo = ? AND digest IN (SELECT value FROM json_each(?))"

#: Digests are random, so writes are spread over the file: with SQLite's default of 2 MB almost every write would also
#: need a read.
_CACHE: Final = "PRAGMA cache_size = -32000"
#: Manifests per statement: few, because each brings dozens of rows.
_PER_STATEMENT: Final = 20
#: Digests per page of `digests`.
_PAGE: Final = 1000
#: Links per step of `loose_links`, each with two look-ups.
_LINKS_AT_ONCE: Final = 500

#: SQLite's own copying of the log, in pages of 4 KiB: at more than `WriteAheadLog` lets it grow, only if that fails.
_CHECKPOINT: Final = "PRAGMA wal_autocheckpoint = 60000"
#: More rows than this are converted to records in a thread; each takes about 10 µs.
_MANY: Final = 1000


@dataclass(slots=True)
class _Connections:
    """The two connections to one file, and the inode of that file."""

    reading: aiosqlite.Connection
    writing: aiosqlite.Connection
    inode: int


class EmbeddedIndex:
    """See `mirror.ports.ContentIndex`. The first operation opens the file; a missing directory is created."""

    def __init__(self, path: Path, *, busy_timeout: float = 5.0) -> None:
        """A write waits up to `busy_timeout` seconds for other workers' writes, then raises `IndexUnavailable`."""
        self._path = path
        self._busy_timeout = busy_timeout
        self._opening = asyncio.Lock()
        self._connections: _Connections | None = None
        self._closed = False
        self._log = WriteAheadLog(path)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._connections else "not open"
        return f"<EmbeddedIndex {self._path} {state}>"

    async def put(self, records: Sequence[ContentRecord]) -> None:
        """Add or replace records; the later time of last use is kept."""
        for batch in batches(records, _BATCH):
            rows = [(str(record.digest), record.size, record.last_used) for record in batch]
            await self._write(_PUT, json.dumps(rows))

    async def get(self, digest: Digest) -> ContentRecord | None:
        """The record of a blob; None if there is none."""
        rows = await self._read("SELECT digest, size, last_used FROM content WHERE digest = ?", str(digest))
        return next(_records(rows), None)

    async def records(self, digests: Sequence[Digest]) -> dict[Digest, ContentRecord]:
        """The records of those of these blobs that have one."""
        found: dict[Digest, ContentRecord] = {}
        for batch in batches(digests, _BATCH):
            rows = await self._read(_RECORDS, json.dumps([*map(str, batch)]))
            found |= {record.digest: record for record in _records(rows)}
        return found

    async def drop(self, digests: Sequence[Digest]) -> None:
        """Drop records, and the references of those that are manifests. Repeatable."""
        for batch in batches(digests, _BATCH):
            await self._write(
                "DELETE FROM content WHERE digest IN (SELECT value FROM json_each(?))", json.dumps([*map(str, batch)])
            )

    async def touch(self, seen: Mapping[Digest, float]) -> None:
        """Raise times of last use, also of all indexes above a manifest. Skips blobs without a record."""
        for batch in batches(seen.items(), _BATCH):
            await self._write(_TOUCH, json.dumps({str(digest): last_used for digest, last_used in batch}))

    async def record_references(self, manifests: Sequence[References]) -> None:
        """Add the references of manifests. Skips manifests without a record."""
        for batch in batches(manifests, _PER_STATEMENT):
            await self._write(_RECORD_REFERENCES, json.dumps({str(names.digest): _written(names) for names in batch}))

    async def least_recently_used(self, role: BlobRole, limit: int) -> list[ContentRecord]:
        """The least recently used blobs of this role. Reads at most `limit` entries of a sorted SQL index."""
        rows = await self._read(_OLDEST[role], limit)
        if len(rows) > _MANY:
            return await asyncio.to_thread(lambda: list(_records(rows)))
        return list(_records(rows))

    async def successors(self, manifests: Sequence[Digest]) -> dict[Digest, list[ReferencedBlob]]:
        """The recorded blobs that each recorded manifest references. Costs one look-up for each such blob."""
        successors: dict[Digest, list[ReferencedBlob]] = {}
        for batch in batches(manifests, _BATCH):
            rows = await self._read(_SUCCESSORS, json.dumps([*map(str, batch)]))
            successors |= await asyncio.to_thread(_by_parent, rows)
        return successors

    async def digests(self) -> AsyncGenerator[list[Digest]]:
        """The digests of all records, in pages, sorted."""
        last = ""
        while rows := await self._read(_DIGESTS, last, _PAGE):
            last = str(rows[-1][0])
            yield [digest for (text,) in rows if (digest := _digest(text))]

    async def usage(self) -> Usage:
        """The number of blobs and their total size in bytes."""
        connections = await self._open()
        rows = await self._run(connections.reading, connections, "SELECT blobs, bytes FROM usage", ())
        if not rows:
            return Usage(0, 0)
        try:
            return Usage(*map(int, rows[0]))
        except (ValueError, TypeError, OverflowError) as error:
            # the counters are garbage, and only a new file has correct ones
            INDEX_FAILURES.inc()
            await self._reopen_after(connections, damaged=True)
            raise _unavailable(error) from error

    async def link(self, repo: Repo, blobs: Mapping[Digest, int]) -> None:
        """Link blobs to a repository. An unknown size (-1) does not replace a known one."""
        for batch in batches(blobs.items(), _BATCH):
            await self._write(_LINK, str(repo), json.dumps({str(digest): size for digest, size in batch}))

    async def linked(self, repo: Repo, digest: Digest) -> int | None:
        """The size of a linked blob in bytes, -1 if unknown; None if it is not linked."""
        rows = await self._read("SELECT size FROM links WHERE repo = ? AND digest = ?", str(repo), str(digest))
        return rows[0][0] if rows and isinstance(rows[0][0], int) else None

    async def unlink(self, repo: Repo, digests: Sequence[Digest]) -> None:
        """Drop links of a repository. Repeatable."""
        for batch in batches(digests, _BATCH):
            await self._write(_UNLINK, str(repo), json.dumps([*map(str, batch)]))

    async def holders(self, digest: Digest, most: int) -> Sequence[Repo]:
        """Up to `most` repositories that a blob is linked to."""
        rows = await self._read("SELECT repo FROM links WHERE digest = ? LIMIT ?", str(digest), most)
        return [repo for row in rows if (repo := read_repo(row[0])) is not None]

    async def loose_links(self) -> AsyncGenerator[list[tuple[Repo, Digest]]]:
        """Links of blobs that have no record and that no recorded manifest names, in pages, sorted."""
        last = ("", "")
        while rows := await self._read(_LINKS, *last, _LINKS_AT_ONCE):
            last = (str(rows[-1][0]), str(rows[-1][1]))
            pairs = ((read_repo(str(repo)), _digest(digest)) for repo, digest, is_loose in rows if is_loose)
            yield [(repo, digest) for repo, digest in pairs if repo is not None and digest is not None]

    async def marker(self) -> str | None:
        """The mark of the last complete rebuild; None if there is none."""
        rows = await self._read("SELECT max(mark) FROM marker")
        return str(rows[0][0]) if rows and rows[0][0] is not None else None

    async def begin_rebuild(self, rules: str = "") -> str:
        """Leave a token that goes with the file."""
        token = f"{rules}.{secrets.token_hex(8)}"
        await self._write("INSERT OR REPLACE INTO rebuild (part, token, blobs) VALUES ('', ?, 0)", token)
        return token

    async def rebuild_state(self, rules: str) -> RebuildState | None:
        """The rebuild whose token is there, and the parts that were noted with the same token."""
        rows = await self._read("SELECT part, token, blobs FROM rebuild")
        [token] = [str(token) for part, token, _ in rows if part == ""] or [""]
        if not token.startswith(f"{rules}."):
            return None
        parts = ((part, blobs) for part, noted, blobs in rows if part != "" and noted == token)
        return RebuildState(token, {str(part): blobs for part, blobs in parts if isinstance(blobs, int)})

    async def note_rebuilt(self, part: str, blobs: int, token: str) -> None:
        """Note that a part is done, if the token is still there."""
        await self._write(_NOTE_REBUILT, part, blobs, token)
        if not await self._read(_IS_NOTED, part, token):
            raise _lost()

    async def set_marker(self, mark: str, token: str = "") -> None:
        """Set the mark; a rebuild does this as its last step. That ends all rebuilds, in the same transaction."""
        if token and not await self._read(_IS_CURRENT, token):
            raise _lost()
        await self._write(_SET_MARKER, mark, token, token)

    async def clear(self) -> None:
        """Drop everything by starting a new file: deleting a million rows would hold the write lock for a minute."""
        connections = await self._open()
        async with self._opening:
            if self._connections is connections:
                await self._close_connections()
            try:
                await asyncio.to_thread(renew, self._path, connections.inode, keep=False)
            except OSError as error:
                INDEX_FAILURES.inc()
                raise _unavailable(error) from error

    async def aclose(self) -> None:
        """Close the connections, whose threads otherwise keep the process from ending. Repeatable."""
        self._closed = True
        async with self._opening:
            await self._close_connections()

    async def _read(self, statement: str, *parameters: object) -> list[Any]:
        connections = await self._open()
        return await self._run(connections.reading, connections, statement, parameters)

    async def _write(self, statement: str, *parameters: object) -> list[Any]:
        connections = await self._open()
        rows = await self._run(connections.writing, connections, statement, parameters)
        if self._log.is_due():
            await asyncio.to_thread(self._log.shorten)
        return rows

    async def _run(
        self, connection: aiosqlite.Connection, both: _Connections, statement: str, parameters: tuple[object, ...]
    ) -> list[Any]:
        """Run one statement in one trip to the connection's thread. Raises `IndexUnavailable`."""
        try:
            return list(await connection.execute_fetchall(statement, parameters))
        except (sqlite3.Error, ValueError) as error:  # aiosqlite raises ValueError on a closed connection
            INDEX_FAILURES.inc()
            if not is_busy(error):
                await self._reopen_after(both, damaged=is_damaged(error))
            raise _unavailable(error) from error

    async def _open(self) -> _Connections:
        """The connections to the file that currently has the name. Raises `IndexUnavailable`."""
        if self._connections is not None and self._connections.inode == inode_of(self._path):
            return self._connections
        async with self._opening:
            if self._connections is not None and self._connections.inode == inode_of(self._path):
                return self._connections
            await self._close_connections()
            if self._closed:
                raise IndexUnavailable("the index is closed")
            try:
                # a half-made connection would keep its thread and files: it is completed, and kept for the next caller
                self._connections = await uninterrupted(self._connect(), unwanted=self._reuse)
            except (sqlite3.Error, OSError) as error:
                INDEX_FAILURES.inc()
                raise _unavailable(error) from error
            return self._connections

    def _reuse(self, connections: _Connections) -> None:
        self._connections = connections

    async def _connect(self) -> _Connections:
        inode = await asyncio.to_thread(_prepare, self._path, self._busy_timeout)
        reading = await aiosqlite.connect(self._path, isolation_level=None, timeout=self._busy_timeout)
        try:
            writing = await aiosqlite.connect(self._path, isolation_level=None, timeout=self._busy_timeout)
        except BaseException:
            await reading.close()
            raise
        connections = _Connections(reading, writing, inode)
        try:
            # NORMAL syncs only at checkpoints: a power cut may lose the latest records, but does not damage the file
            await writing.execute_fetchall("PRAGMA synchronous = NORMAL")
            await writing.execute_fetchall(_CACHE)
            await writing.execute_fetchall(_CHECKPOINT)
            await reading.execute_fetchall("PRAGMA query_only = ON")
        except BaseException:
            await _close(connections)
            raise
        return connections

    async def _reopen_after(self, failed: _Connections, *, damaged: bool) -> None:
        """Close the connections after a failure, and set a `damaged` file aside. The next operation opens new ones."""
        async with self._opening:
            if self._connections is not failed:
                return
            await self._close_connections()
            if damaged:
                log.warning("index damaged", path=str(self._path))
                with suppress(OSError):
                    await asyncio.to_thread(renew, self._path, failed.inode, keep=True)

    async def _close_connections(self) -> None:
        if self._connections is not None:
            connections, self._connections = self._connections, None
            # a half-closed connection would keep its thread alive, and with it the process
            await uninterrupted(_close(connections))


async def _close(connections: _Connections) -> None:
    for connection in (connections.reading, connections.writing):
        with suppress(sqlite3.Error, ValueError):
            await connection.close()


def _prepare(path: Path, busy_timeout: float) -> int:
    """Blocking: make sure that the file exists and has this schema; returns its inode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path):
        if not satisfies(path, busy_timeout, _is_current):
            if path.exists() and path.stat().st_size:
                log.warning("index recreated", path=str(path))
            set_aside(path)
            with connect(path, busy_timeout) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(_CREATE)
        else:
            with connect(path, busy_timeout) as connection:
                connection.executescript(f"BEGIN IMMEDIATE; {_HOLDERS} {_REBUILD} COMMIT;")
        inode = inode_of(path)
        if inode is None:
            raise FileNotFoundError(path)
        return inode


def _is_current(connection: sqlite3.Connection) -> bool:
    if connection.execute("PRAGMA user_version").fetchone() != (SCHEMA,):
        return False
    counters = connection.execute("SELECT count(*) FROM usage").fetchone()
    connection.execute("SELECT digest FROM content LIMIT 1").fetchone()
    connection.execute("SELECT child FROM edges LIMIT 1").fetchone()
    connection.execute("SELECT digest FROM links LIMIT 1").fetchone()
    connection.execute("SELECT mark FROM marker LIMIT 1").fetchone()
    return bool(counters == (1,))


def _unavailable(error: Exception) -> IndexUnavailable:
    return IndexUnavailable(f"the embedded index failed: {reason_of(error)}")


def _lost() -> IndexUnavailable:
    return IndexUnavailable("the embedded index was replaced, or rebuilt elsewhere, during the rebuild")


def _written(names: References) -> str:
    """The value of the column `names`."""
    children = {str(child): 0 for child in names.blobs} | {str(child): 1 for child in names.manifests}
    return json.dumps([*children.items()])


def _by_parent(rows: Iterable[Any]) -> dict[Digest, list[ReferencedBlob]]:
    """The rows grouped by manifest. Skips rows that do not parse, and the row of NULLs of a manifest without recorded
    children.
    """
    successors: dict[Digest, list[ReferencedBlob]] = {}
    for above, digest, size, last_used, parents, is_manifest in rows:
        parent = _digest(above)
        if parent is None:
            continue
        children = successors.setdefault(parent, [])
        for record in _records([(digest, size, last_used)]):
            children.append(ReferencedBlob(record, parents if isinstance(parents, int) else 1, bool(is_manifest)))
    return successors


def _digest(text: object) -> Digest | None:
    """The value as a digest; None if it does not parse."""
    try:
        return Digest.parse(str(text))
    except MirrorError:
        return None


def _records(rows: Iterable[Any]) -> Iterator[ContentRecord]:
    """The rows as records. Skips rows that do not parse: they count as no record."""
    for digest, size, last_used in rows:
        try:
            yield ContentRecord(Digest.parse(digest), int(size), float(last_used))
        except (MirrorError, ValueError, TypeError, AttributeError, OverflowError):
            continue

"""A `LinkLedger` in one SQLite file, shared by the worker processes of one machine.

    absent ── first call ──> incomplete ── completed() ──> complete
                              ^   ^                            │
                              │   └── a change was missed ─────┤
                              │                                │
                              └── new file: damaged, of another schema, or for other scopes (prepare)

Triggers keep the counts and totals of each scope, so no call sums up. The file says for which scopes it counts, and
every process counts for these, whatever its own configuration says. So workers that still run with an older
configuration do not disturb it; only `prepare`, which the server calls, begins a new file for other scopes.

`state.missed` counts the changes that could not be noted (plus one for those before the file was made), and `completed`
says how many of them the last completion has covered: the ledger is complete while both are the same. A power cut may
lose the latest changes without a trace; therefore the server completes the ledger at each start.

Reads have a connection of their own, because in WAL mode they never wait for a writer. An instance belongs to one
process; its calls may come from any thread.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mirror.errors import IndexUnavailable, RequestError
from mirror.index.sqlite_file import (
    CurrentConnection,
    SharedConnection,
    current_file,
    present_inode,
    transaction,
)
from mirror.index.write_queue import QueuedWrite, WriteQueue
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo, read_repo
from mirror.policy.hosted.quotas import Overrun, ScopePatterns, overrun
from mirror.telemetry import log

#: Written to `PRAGMA user_version`. A file of another schema is replaced by a new one.
SCHEMA: Final = 1

_CREATE: Final = """
BEGIN IMMEDIATE;
CREATE TABLE state (
    missed    INTEGER NOT NULL,
    completed INTEGER NOT NULL,
    scopes    TEXT NOT NULL -- {registry: [pattern, …]}
);
CREATE TABLE repos (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE scopes (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, bytes INTEGER NOT NULL DEFAULT 0);
-- the scopes in which a repository counts
CREATE TABLE members (repo INTEGER NOT NULL, scope INTEGER NOT NULL, PRIMARY KEY (repo, scope)) WITHOUT ROWID;
-- blobs and manifests that at least one repository has
CREATE TABLE content (id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, size INTEGER NOT NULL);
CREATE TABLE links (content INTEGER NOT NULL, repo INTEGER NOT NULL, PRIMARY KEY (content, repo)) WITHOUT ROWID;
CREATE INDEX links_by_repo ON links (repo, content);
-- how many repositories of a scope have the content
CREATE TABLE counts (
    content INTEGER NOT NULL,
    scope   INTEGER NOT NULL,
    links   INTEGER NOT NULL,
    PRIMARY KEY (content, scope)
) WITHOUT ROWID;
CREATE TRIGGER link_added AFTER INSERT ON links BEGIN
    INSERT INTO counts (content, scope, links) SELECT new.content, scope, 1 FROM members WHERE repo = new.repo
    ON CONFLICT (content, scope) DO UPDATE SET links = links + 1;
END;
CREATE TRIGGER link_removed AFTER DELETE ON links BEGIN
    UPDATE counts SET links = links - 1
    WHERE content = old.content AND scope IN (SELECT scope FROM members WHERE repo = old.repo);
    DELETE FROM counts WHERE content = old.content AND links <= 0;
    DELETE FROM content WHERE id = old.content AND NOT EXISTS (SELECT 1 FROM links WHERE content = old.content);
END;
CREATE TRIGGER content_counted AFTER INSERT ON counts BEGIN
    UPDATE scopes SET bytes = bytes + (SELECT size FROM content WHERE id = new.content) WHERE id = new.scope;
END;
CREATE TRIGGER content_gone AFTER DELETE ON counts BEGIN
    UPDATE scopes SET bytes = bytes - (SELECT size FROM content WHERE id = old.content) WHERE id = old.scope;
END;
"""

_COUNTED: Final = """
SELECT scopes.name FROM counts JOIN scopes ON scopes.id = counts.scope
WHERE counts.content = (SELECT id FROM content WHERE digest = ?)
"""
_LINKED: Final = "SELECT 1 FROM links WHERE content = ? AND repo = ?"
_HOLDERS: Final = """
SELECT repos.name FROM links JOIN repos ON repos.id = links.repo
WHERE links.content = (SELECT id FROM content WHERE digest = ?) LIMIT ?
"""
_NOTED: Final = """
SELECT content.digest FROM links JOIN content ON content.id = links.content
WHERE links.repo = (SELECT id FROM repos WHERE name = ?)
"""
_SIZE: Final = """
SELECT coalesce(sum(content.size), 0) FROM links JOIN content ON content.id = links.content
WHERE links.repo = (SELECT id FROM repos WHERE name = ?)
"""
_REPOSITORIES: Final = "SELECT name FROM repos WHERE EXISTS (SELECT 1 FROM links WHERE repo = repos.id)"
_REMOVE: Final = """
DELETE FROM links
WHERE content = (SELECT id FROM content WHERE digest = ?) AND repo = (SELECT id FROM repos WHERE name = ?)
"""
#: Content is spread over the file, because ids come in the order in which it was pushed.
_CACHE: Final = "PRAGMA cache_size = -16000"


class SqliteLedger:
    """See `mirror.ports.LinkLedger`. The first call opens the file; a missing folder is created."""

    def __init__(self, path: Path, scopes: ScopePatterns, *, busy_timeout: float = 5.0) -> None:
        """`scopes` are for a file that is made now. A write waits up to `busy_timeout` seconds for other processes."""
        self._path = path
        self._scopes = scopes
        self._reading = _connection(path, scopes, busy_timeout)
        self._writing = _connection(path, scopes, busy_timeout)
        self._missed = False
        self._queue = WriteQueue(self._carry_out, lambda: IndexUnavailable("the transaction was interrupted"))

    def __repr__(self) -> str:
        return f"<SqliteLedger {self._path}{' missed a change' if self._missed else ''}>"

    def add(self, repo: Repo, digest: Digest, size: int, limits: Mapping[str, int] | None = None) -> Overrun | None:
        return self._queue.write(lambda connection: _add(connection, repo, str(digest), size, limits or {}))

    def remove(self, repo: Repo, digest: Digest) -> None:
        self._queue.write(lambda connection: connection.execute(_REMOVE, (str(digest), str(repo))))

    def correct(self, repo: Repo, content: Mapping[Digest, int | None]) -> None:
        def work(connection: sqlite3.Connection) -> None:
            for digest, size in content.items():
                if size is None:
                    connection.execute(_REMOVE, (str(digest), str(repo)))
                else:
                    _add(connection, repo, str(digest), size, {})

        self._queue.write(work)

    def usage(self, scope: str) -> int:
        return self._reading.run(lambda connection: _used(connection, scope))

    def size(self, repo: Repo) -> int:
        [size] = self._reading.run(lambda connection: connection.execute(_SIZE, (str(repo),)).fetchone())
        return int(size)

    def adds(self, scope: str, digest: Digest) -> bool:
        return scope not in self._reading.run(lambda connection: _counted(connection, str(digest)))

    def holders(self, digest: Digest, most: int) -> Sequence[Repo]:
        rows = self._reading.run(lambda connection: connection.execute(_HOLDERS, (str(digest), most)).fetchall())
        return [repo for (name,) in rows if (repo := read_repo(str(name)))]

    def repositories(self) -> Sequence[Repo]:
        rows = self._reading.run(lambda connection: connection.execute(_REPOSITORIES).fetchall())
        return [repo for (name,) in rows if (repo := read_repo(str(name)))]

    def noted(self, repo: Repo) -> Sequence[Digest]:
        rows = self._reading.run(lambda connection: connection.execute(_NOTED, (str(repo),)).fetchall())
        return [digest for (text,) in rows if (digest := _digest(text))]

    def is_complete(self) -> bool:
        if self._missed:
            self._queue.write(lambda _connection: None)
        missed, completed, _scopes = self._reading.run(_state)
        return bool(missed == completed)

    def prepare(self) -> int:
        if self._reading.run(_patterns).patterns != self._scopes.patterns:
            log.info("ledger begun anew", path=str(self._path))
            self._reading.renew(keep=False)
        return int(self._reading.run(_state)[0])

    def completed(self, missed: int) -> None:
        self._queue.write(lambda connection: connection.execute("UPDATE state SET completed = ?", (missed,)))

    def close(self) -> None:
        self._reading.close()
        self._writing.close()

    def _carry_out(self, changes: Sequence[QueuedWrite[Any]]) -> None:
        """Do the work of all in one transaction. If it fails, each is done alone, so that no change suffers from
        another's. If one fails, the next transaction that succeeds makes the ledger incomplete.
        """
        try:
            results = self._writing.run(lambda connection: self._transaction(connection, changes))
        except IndexUnavailable as error:
            if len(changes) > 1:
                for change in changes:
                    self._carry_out([change])
            else:
                self._missed = True
                changes[0].fail(error)
        except BaseException:
            self._missed = True
            raise
        else:
            for change, result in zip(changes, results, strict=True):
                change.done(result)
            self._writing.shorten_log()

    def _transaction(self, connection: sqlite3.Connection, changes: Sequence[QueuedWrite[Any]]) -> list[Any]:
        with transaction(connection):
            missed = self._missed
            if missed:
                connection.execute("UPDATE state SET missed = missed + 1")
            results = [change.work(connection) for change in changes]
        if missed:
            self._missed = False
        return results


def _begin(connection: sqlite3.Connection) -> None:
    # NORMAL syncs only at checkpoints: a power cut may lose the latest changes, but does not damage the file
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(_CACHE)


def _connection(path: Path, scopes: ScopePatterns, busy_timeout: float) -> SharedConnection:
    return SharedConnection(
        CurrentConnection(path, busy_timeout, lambda: _prepare(path, scopes, busy_timeout), _begin),
        path,
        "the ledger",
        lambda: log.warning("ledger damaged", path=str(path)),
    )


def _prepare(path: Path, scopes: ScopePatterns, busy_timeout: float) -> int:
    """Make sure that the file exists and has this schema; returns its inode. Raises `OSError`, `sqlite3.Error`."""

    def create(connection: sqlite3.Connection) -> None:
        connection.executescript(_CREATE)
        connection.execute("INSERT INTO state VALUES (1, 0, ?)", (json.dumps(dict(scopes.patterns)),))

    with current_file(path, busy_timeout, SCHEMA, _is_current, create):
        return present_inode(path)


def _is_current(connection: sqlite3.Connection) -> bool:
    try:
        return connection.execute("SELECT count(*) FROM state").fetchone() == (1,) and bool(_patterns(connection))
    except (ValueError, TypeError):
        # the patterns are no JSON, or none of ours
        return False


def _add(
    connection: sqlite3.Connection, repo: Repo, digest: str, size: int, limits: Mapping[str, int]
) -> Overrun | None:
    found = connection.execute("SELECT id, size FROM content WHERE digest = ?", (digest,)).fetchone()
    member = _member(connection, repo)
    if found and connection.execute(_LINKED, (found[0], member)).fetchone():
        return None
    if limits:
        counted = _counted(connection, digest)
        counting = {scope: limit for scope, limit in limits.items() if scope not in counted}
        used = {scope: _used(connection, scope) for scope in counting}
        if too_much := overrun(counting, used, found[1] if found else size):
            return too_much
    if found is None:
        cursor = connection.execute("INSERT INTO content (digest, size) VALUES (?, ?)", (digest, size))
        found = cursor.lastrowid, size
    connection.execute("INSERT INTO links (content, repo) VALUES (?, ?)", (found[0], member))
    return None


def _member(connection: sqlite3.Connection, repo: Repo) -> int:
    """The id of a repository, which is entered with its scopes if it is new."""
    row = connection.execute("SELECT id FROM repos WHERE name = ?", (str(repo),)).fetchone()
    if row:
        return int(row[0])
    member = connection.execute("INSERT INTO repos (name) VALUES (?)", (str(repo),)).lastrowid or 0
    for scope in _patterns(connection).of(repo):
        connection.execute("INSERT OR IGNORE INTO scopes (name) VALUES (?)", (scope,))
        connection.execute("INSERT INTO members SELECT ?, id FROM scopes WHERE name = ?", (member, scope))
    return member


def _used(connection: sqlite3.Connection, scope: str) -> int:
    row = connection.execute("SELECT bytes FROM scopes WHERE name = ?", (scope,)).fetchone()
    return int(row[0]) if row else 0


def _counted(connection: sqlite3.Connection, digest: str) -> set[str]:
    """The scopes in which the content counts."""
    return {name for (name,) in connection.execute(_COUNTED, (digest,))}


def _state(connection: sqlite3.Connection) -> Any:
    return connection.execute("SELECT missed, completed, scopes FROM state").fetchone()


def _patterns(connection: sqlite3.Connection) -> ScopePatterns:
    """The scopes for which the file counts. Raises `ValueError`, `TypeError` if they are garbage."""
    listed = json.loads(_state(connection)[2])
    if not isinstance(listed, dict) or not all(
        isinstance(each, str) for patterns in listed.values() for each in patterns
    ):
        raise TypeError("the scopes are not patterns by registry")
    return ScopePatterns({registry: tuple(patterns) for registry, patterns in listed.items()})


def _digest(text: object) -> Digest | None:
    try:
        return Digest.parse(str(text))
    except RequestError:
        return None

"""A `JournalMemory` in the file of the record memory (`record_memory.py`), shared by the processes of one machine.

    (no row) ── learn ──> the state that was seen ── learn, with a larger seq ──> its changes doubted, then that state
                                                 └── learn, of a lost or much older journal ──> everything doubted

Whatever is doubted becomes so in the transaction that notes the new state, and before the counter of the repository is
raised that transaction is not over: nobody sees the new state with what was remembered before it.

The rows of another epoch, or boot, do not count. `unnoted` has the keys that this replica has written and has not named
in a journal yet; it outlives the processes that have written them:

    begin: key ── the record is written ──> end: nothing was written for some seconds ── learn(wrote=…) ──> (no row)
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Final

from mirror.clock import steady_time
from mirror.index.record_memory import distrust_records, doubt_records, memory_connection
from mirror.policy.cluster import journal_names
from mirror.policy.cluster.change_journal import ChangeJournal
from mirror.ports import JournalPosition, OwnChanges, Version

_CREATE: Final = """
CREATE TABLE IF NOT EXISTS journals (
    name      TEXT PRIMARY KEY,
    epoch     INTEGER NOT NULL,
    version   TEXT,
    content   BLOB NOT NULL,
    nonce     TEXT NOT NULL,
    seq       INTEGER NOT NULL,
    looked    REAL NOT NULL,
    others    TEXT NOT NULL, -- {replica: [seq, since], …}
    listed    TEXT NOT NULL, -- folders, separated by blanks
    gaps      INTEGER NOT NULL,
    mine      INTEGER NOT NULL, -- the seq of the entry of this replica, 0 if there is none
    known     INTEGER NOT NULL, -- whether all keys that it stands for are in `unnoted`
    confirmed REAL NOT NULL,
    ending    REAL NOT NULL -- until when it is about to end
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS journals_writing ON journals (name) WHERE mine > 0;
CREATE TABLE IF NOT EXISTS unnoted (
    journal TEXT NOT NULL,
    key     TEXT NOT NULL,
    at      REAL NOT NULL,
    PRIMARY KEY (journal, key)
) WITHOUT ROWID;
"""
_ROW: Final = """
SELECT version, content, nonce, seq, looked, others, listed, gaps, mine, known, confirmed, ending FROM journals
WHERE name = ? AND epoch = (SELECT epoch FROM meta)
"""
_PUT: Final = """
INSERT OR REPLACE INTO journals VALUES (?, (SELECT epoch FROM meta), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
#: A write that did not say how it ended may still arrive.
_ARRIVING: Final = """
SELECT EXISTS (
    SELECT 1 FROM unnoted JOIN records USING (key) WHERE journal = ? AND writers <> '' AND records.until > ?
)
"""
#: Seconds for which an entry is about to end, if the process that ends it says nothing more.
_ENDING: Final = 60.0
_NEVER: Final = float("-inf")


class SqliteJournalMemory:
    """See `mirror.ports.JournalMemory`. The first call opens the file; a missing folder is created."""

    def __init__(
        self,
        path: Path,
        boot: str,
        replica: str,
        *,
        busy_timeout: float = 5.0,
        steady: Callable[[], float] = steady_time,
    ) -> None:
        """`boot` names this boot of the machine, `replica` this replica in journals. `steady` gives seconds since the
        boot, the same in all processes.
        """
        self._replica = replica
        self._steady = steady
        #: For calls that the event loop waits for.
        self._looking = memory_connection(path, boot, busy_timeout, _begin)
        self._writing = memory_connection(path, boot, busy_timeout, _begin)

    def __repr__(self) -> str:
        return f"<SqliteJournalMemory of {self._replica}>"

    def position(self, name: str) -> JournalPosition | None:
        row = self._looking.run(lambda connection: connection.execute(_ROW, (name,)).fetchone())
        if row is None:
            return None
        version, content, _, _, looked, others, listed, gaps, mine, _, confirmed, _ = row
        return JournalPosition(
            None if version is None else Version(version),
            content,
            looked,
            {replica: (seq, since) for replica, (seq, since) in json.loads(others).items()},
            frozenset(listed.split()),
            gaps,
            confirmed if mine else float("-inf"),
        )

    def learn(
        self,
        name: str,
        journal: ChangeJournal | None,
        version: Version | None,
        began_at: float,
        *,
        wrote: Collection[str] | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        nonce, seq = ("", 0) if journal is None else (journal.nonce, journal.seq)
        writing = {} if journal is None else journal.writing
        content = b"" if journal is None else journal.to_json()

        def work(connection: sqlite3.Connection) -> None:
            row = connection.execute(_ROW, (name,)).fetchone()
            if row is not None and not _is_newer(row, nonce, seq, began_at):
                if row[2] == nonce and row[3] == seq:
                    self._confirm(connection, name, began_at, wrote=wrote is not None)
                return
            if row is None:
                keys, seen, listed, gaps = None, {}, "", 0
            else:
                keys = [] if journal is None and not row[2] else None if journal is None else journal.since(*row[2:4])
                seen, listed, gaps = json.loads(row[5]), row[6], row[7]
            if keys is None:
                listed, gaps = "", gaps + 1
                distrust_records(connection, journal_names.ranges(name), filter(None, [journal_names.name_key(name)]))
            else:
                doubt_records(connection, [key for key in keys if wrote is None or key not in wrote])
            if keys is None or keys:
                changed()
            for key in wrote or ():
                connection.execute("DELETE FROM unnoted WHERE journal = ? AND key = ?", (name, key))
            now, mine = self._steady(), writing.get(self._replica, 0)
            others = {
                replica: seen[replica] if replica in seen and seen[replica][0] == number else [number, now]
                for replica, number in writing.items()
                if replica != self._replica
            }
            # an entry that is there at first was written when this memory did not exist
            known = not mine if row is None else bool(row[9] or not row[8])
            confirmed = began_at if wrote is not None else row[10] if row is not None and row[8] == mine else _NEVER
            values = (name, version, content, nonce, seq, began_at, json.dumps(others), listed, gaps)
            connection.execute(_PUT, (*values, mine, known, confirmed, _NEVER))

        self._writing.write(work)

    @staticmethod
    def _confirm(connection: sqlite3.Connection, name: str, began_at: float, *, wrote: bool) -> None:
        """The state that is remembered was seen again, or is known to be written by this process."""
        connection.execute("UPDATE journals SET looked = max(looked, ?) WHERE name = ?", (began_at, name))
        if wrote:
            connection.execute("UPDATE journals SET confirmed = ?, ending = ? WHERE name = ?", (began_at, _NEVER, name))

    def begin(self, name: str, key: str, fresh: float) -> bool:
        def work(connection: sqlite3.Connection) -> bool:
            now, row = self._steady(), connection.execute(_ROW, (name,)).fetchone()
            if row is None or not row[8] or row[11] > now or not 0 <= now - row[10] < fresh:
                return False
            connection.execute("INSERT OR REPLACE INTO unnoted VALUES (?, ?, ?)", (name, key, now))
            return True

        return self._writing.write(work)

    def end(self, name: str, linger: float) -> OwnChanges | None:
        def work(connection: sqlite3.Connection) -> OwnChanges | None:
            now, row = self._steady(), connection.execute(_ROW, (name,)).fetchone()
            keys = connection.execute("SELECT key, at FROM unnoted WHERE journal = ?", (name,)).fetchall()
            if any(0 <= now - at < linger for _, at in keys):
                return None
            if connection.execute(_ARRIVING, (name, now)).fetchone()[0]:
                return None
            if row is None:
                return OwnChanges(frozenset(key for key, _ in keys), 0, is_all=True)
            connection.execute("UPDATE journals SET ending = ? WHERE name = ?", (now + _ENDING, name))
            return OwnChanges(frozenset(key for key, _ in keys), row[8], is_all=bool(row[9] or not row[8]))

        return self._writing.write(work)

    def writing(self) -> Sequence[str]:
        rows = self._looking.run(
            lambda connection: connection.execute(
                "SELECT name FROM journals INDEXED BY journals_writing WHERE mine > 0 UNION SELECT journal FROM unnoted"
            ).fetchall()
        )
        return [str(name) for (name,) in rows]

    def list_folders(self, name: str, folders: Collection[str], gaps: int) -> None:
        def work(connection: sqlite3.Connection) -> None:
            row = connection.execute(_ROW, (name,)).fetchone()
            if row is not None and row[7] == gaps:
                listed = " ".join({*row[6].split(), *folders})
                connection.execute("UPDATE journals SET listed = ? WHERE name = ?", (listed, name))

        self._writing.write(work)

    def doubt(self, names: Collection[str], age: float) -> None:
        def work(connection: sqlite3.Connection) -> None:
            looked = self._steady() - age
            for name in names:
                connection.execute("UPDATE journals SET looked = min(looked, ?) WHERE name = ?", (looked, name))

        self._writing.write(work)

    def close(self) -> None:
        self._looking.close()
        self._writing.close()


def _begin(connection: sqlite3.Connection) -> None:
    connection.executescript(_CREATE)


def _is_newer(row: Any, nonce: str, seq: int, began_at: float) -> bool:
    """True if a state follows the one of a row. Numbers of different journals cannot be compared."""
    return bool(seq > row[3] if row[2] == nonce else began_at >= row[4])

"""The ledger of hosted content: in SQLite, and in dicts."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from mirror.errors import IndexUnavailable
from mirror.index import link_ledger
from mirror.index.link_ledger import SqliteLedger
from mirror.policy.hosted.quotas import ScopePatterns
from mirror.ports import LinkLedger
from tests.support.ledger_suite import APP, CACHE, OTHER, SCOPES, LedgerSuite, blob
from tests.support.memory_ledger import MemoryLedger
from tests.support.process import eventually


class TestMemoryLedger(LedgerSuite):
    """The simplest one passes the suite that it is the model of."""

    @pytest.fixture
    def ledger(self) -> LinkLedger:
        """Empty."""
        return MemoryLedger(SCOPES)

    @pytest.fixture
    def another(self, ledger: LinkLedger) -> LinkLedger:
        """Nobody else can have the same."""
        return ledger


class TestSqliteLedger(LedgerSuite):
    """In one file."""

    @pytest.fixture
    def ledger(self, path: Path) -> Iterator[LinkLedger]:
        """Empty."""
        with closing(SqliteLedger(path, SCOPES)) as ledger:
            yield ledger

    @pytest.fixture
    def another(self, path: Path) -> Iterator[LinkLedger]:
        """On the same file."""
        with closing(SqliteLedger(path, SCOPES)) as ledger:
            yield ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a file that does not exist yet."""
    return tmp_path / "store" / "hosted.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[SqliteLedger]:
    """On that file."""
    with closing(SqliteLedger(path, SCOPES)) as ledger:
        yield ledger


def complete(ledger: SqliteLedger) -> None:
    """Note one blob and say that this is all."""
    ledger.add(APP, blob(1), 100)
    ledger.completed(ledger.prepare())
    assert ledger.is_complete()


def test_a_ledger_that_was_deleted_begins_anew(ledger: SqliteLedger, path: Path) -> None:
    """An open ledger notices it at the next call; the new one is empty and says that it is not complete."""
    complete(ledger)
    for file in path.parent.iterdir():
        file.unlink()
    assert ledger.usage("corp") == 0
    assert not ledger.is_complete()
    ledger.add(APP, blob(2), 5)
    assert ledger.usage("corp") == 5
    complete(ledger)


@pytest.mark.parametrize("damage", ["page", "garbage", "foreign", "schema", "scopes"])
def test_a_ledger_that_cannot_be_used_is_set_aside(path: Path, damage: str) -> None:
    """A damaged or foreign file, or one of another version, is kept under another name; the new one is incomplete."""
    with closing(SqliteLedger(path, SCOPES)) as ledger:
        complete(ledger)
    if damage == "page":
        with path.open("r+b") as file:
            file.seek(100)
            file.write(bytes(path.stat().st_size - 100))
    elif damage == "garbage":
        path.write_bytes(b"not a database" * 1000)
    elif damage == "foreign":
        path.unlink()
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE strange (x)")
    else:
        statement = "PRAGMA user_version = 99" if damage == "schema" else "UPDATE state SET scopes = '[]'"
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute(statement)
    with closing(SqliteLedger(path, SCOPES)) as ledger:
        assert ledger.usage("corp") == 0
        assert not ledger.is_complete()
        complete(ledger)
    assert path.with_name("hosted.sqlite.old").exists()


def test_damage_under_an_open_ledger(path: Path) -> None:
    """The call that meets it fails, the next one has a new file, which is incomplete; the log says so."""
    with closing(SqliteLedger(path, SCOPES)) as ledger:
        for number in range(2000):
            ledger.add(APP, blob(number), 1)
        ledger.completed(ledger.prepare())
    with closing(SqliteLedger(path, SCOPES)) as ledger, capture_logs() as lines:
        assert ledger.usage("corp") == 2000
        with path.open("r+b") as file:
            file.seek(8192)
            file.write(b"\xff" * (path.stat().st_size - 8192))
        with pytest.raises(IndexUnavailable):
            [ledger.holders(blob(number), 1) for number in range(2000)]
        assert ledger.usage("corp") == 0
        assert not ledger.is_complete()
        complete(ledger)
    assert [line["event"] for line in lines] == ["ledger damaged"]


def test_other_scopes_begin_a_new_ledger(path: Path) -> None:
    """When the server prepares it. A process that runs with the older configuration goes on to count as the file says,
    and does not change it back.
    """
    with (
        closing(SqliteLedger(path, SCOPES)) as older,
        closing(SqliteLedger(path, ScopePatterns({"corp": ()}))) as newer,
    ):
        complete(older)
        assert newer.usage("corp") == 100
        newer.prepare()
        assert not newer.is_complete()
        older.add(APP, blob(1), 100)
        older.add(CACHE, blob(2), 10)
        newer.completed(newer.prepare())
        assert older.is_complete()
        assert older.usage("corp") == newer.usage("corp") == 110
        assert older.usage("corp/team-a/**") == 0
    with closing(SqliteLedger(path, ScopePatterns({"corp": ()}))) as again:
        again.prepare()
        assert again.is_complete()


def test_a_change_that_was_missed_makes_it_incomplete(ledger: SqliteLedger, path: Path) -> None:
    """Another process holds the file: the call fails, and everyone learns of it with the next one that succeeds."""
    complete(ledger)
    began = ledger.prepare()
    with closing(SqliteLedger(path, SCOPES, busy_timeout=0.0)) as hurried:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            with pytest.raises(IndexUnavailable, match="locked"):
                hurried.add(OTHER, blob(2), 5)
            assert hurried.usage("corp") == 100
            connection.execute("ROLLBACK")
        assert not hurried.is_complete()
        assert not ledger.is_complete()
        ledger.completed(began)
        assert not ledger.is_complete()
        ledger.completed(ledger.prepare())
        assert hurried.is_complete()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """The error says what is wrong; later it works."""
    (tmp_path / "file").write_text("in the way")
    with closing(SqliteLedger(tmp_path / "file" / "hosted.sqlite", SCOPES)) as ledger:
        with pytest.raises(IndexUnavailable, match="the ledger failed"):
            ledger.usage("corp")
        (tmp_path / "file").unlink()
        complete(ledger)


def test_a_closed_ledger_is_unavailable(ledger: SqliteLedger) -> None:
    """Closing is repeatable."""
    complete(ledger)
    for _ in range(2):
        ledger.close()
    with pytest.raises(IndexUnavailable, match="closed"):
        ledger.usage("corp")


def claim(path: Path, offset: int) -> int:
    """Link 100 blobs of one byte where 120 fit in all; returns how many were linked."""
    with closing(SqliteLedger(path, SCOPES, busy_timeout=60.0)) as ledger:
        return [ledger.add(APP, blob(offset + number), 1, {"corp": 120}) for number in range(100)].count(None)


def test_processes_together_keep_a_limit(path: Path) -> None:
    """However they take turns, exactly as much is linked as fits."""
    code = (
        "import sys; from pathlib import Path; from tests.ports.test_link_ledger import claim;"
        "print(claim(Path(sys.argv[1]), int(sys.argv[2])))"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, path, str(offset)], stdout=subprocess.PIPE)
        for offset in (100, 200)
    ]
    counts = [claim(path, 0)]
    counts += [int(process.communicate()[0]) for process in processes]
    assert sum(counts) == 120
    with closing(SqliteLedger(path, SCOPES)) as ledger:
        assert ledger.usage("corp") == 120


def test_threads_share_one(ledger: SqliteLedger) -> None:
    """Calls from several threads at once, reading and writing."""

    def work(offset: int) -> None:
        for number in range(offset, offset + 50):
            ledger.add(APP, blob(number), 1)
            assert ledger.holders(blob(number), 1)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in (0, 25, 50, 75)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.usage("corp") == 125


@pytest.mark.parametrize("statement", ["_COUNTED", "_HOLDERS", "_LINKED", "_NOTED", "_REMOVE"])
def test_nothing_reads_a_whole_table(ledger: SqliteLedger, path: Path, statement: str) -> None:
    """Each statement finds its rows by an index, however many there are."""
    complete(ledger)
    text = str(getattr(link_ledger, statement))
    with closing(sqlite3.connect(path)) as connection:
        steps = connection.execute(f"EXPLAIN QUERY PLAN {text}", [""] * text.count("?")).fetchall()
    assert steps
    assert not [step for step in steps if step[3].startswith("SCAN")]


@pytest.mark.parametrize(("size", "transactions"), [(100, [1, 4]), (1 << 70, [1, 4, 1, 1, 1, 1])])
def test_threads_share_a_transaction(
    ledger: SqliteLedger, path: Path, monkeypatch: pytest.MonkeyPatch, size: int, transactions: list[int]
) -> None:
    """Those that wait for their turn have one together. If one of them fails, the others do not."""
    ledger.add(APP, blob(0), 100)
    counted: list[int] = []
    transaction = SqliteLedger._transaction

    def counting(self: SqliteLedger, connection: sqlite3.Connection, changes: Sequence[Any]) -> list[Any]:
        counted.append(len(changes))
        return transaction(self, connection, changes)

    def add(number: int, size: int) -> None:
        try:
            ledger.add(APP, blob(number), size)
        except IndexUnavailable:
            refused.append(number)

    monkeypatch.setattr(SqliteLedger, "_transaction", counting)
    refused: list[int] = []
    threads = [threading.Thread(target=add, args=(number, 100)) for number in range(1, 5)]
    threads.append(threading.Thread(target=add, args=(5, size)))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        threads[0].start()
        eventually(lambda: counted == [1], "the first has its turn")
        for thread in threads[1:]:
            thread.start()
        eventually(lambda: len(ledger._queue) == 4, "the others wait")
        other.execute("ROLLBACK")
        for thread in threads:
            thread.join()
    assert counted == transactions
    assert refused == ([5] if size > 100 else [])
    assert set(ledger.noted(APP)) == {blob(number) for number in range(5 if refused else 6)}
    ledger.completed(ledger.prepare())
    assert ledger.is_complete() is not bool(refused)

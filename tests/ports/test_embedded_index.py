"""The index in an SQLite file: the suite, and what happens to files."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from mirror.errors import IndexUnavailable
from mirror.index import embedded, sqlite_file
from mirror.index.embedded import SCHEMA, EmbeddedIndex
from mirror.index.sqlite_file import WriteAheadLog, copy_log
from mirror.policy.records import BlobRole, ContentRecord, Usage
from mirror.ports import ContentIndex
from tests.support.index_suite import IndexSuite, digest, least_recently_used, record

#: Bytes by which a log grows before it is copied.
_STEP = 256 << 10


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """In a directory that is not there yet."""
    return tmp_path / "state" / "index.sqlite3"


@pytest.fixture
async def index(path: Path) -> AsyncIterator[EmbeddedIndex]:
    """On that file."""
    index = EmbeddedIndex(path)
    yield index
    await index.aclose()


@pytest.fixture
async def another(path: Path) -> AsyncIterator[EmbeddedIndex]:
    """On the same file, with connections of its own."""
    index = EmbeddedIndex(path)
    yield index
    await index.aclose()


class TestEmbeddedIndex(IndexSuite):
    """The suite; its fixtures are this module's."""


def overwrite(path: Path, content: bytes) -> None:
    """The same inode where there is one."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


def contents(path: Path) -> bytes:
    """All of a file."""
    return path.read_bytes()


async def _reopened(path: Path) -> tuple[str | None, Usage]:
    """Marker and usage, as one that opens the file now sees them."""
    index = EmbeddedIndex(path)
    try:
        return await index.marker(), await index.usage()
    finally:
        await index.aclose()


async def test_it_survives_closing(index: EmbeddedIndex, path: Path) -> None:
    """What was put is there for whoever opens the file next."""
    await index.put([record(1)])
    await index.set_marker("whole")
    await index.aclose()
    assert await _reopened(path) == ("whole", Usage(1, 10))


async def test_closed_is_unavailable(index: EmbeddedIndex) -> None:
    """After `aclose` it says so in its own words."""
    await index.aclose()
    with pytest.raises(IndexUnavailable, match="closed"):
        await index.usage()


@pytest.mark.parametrize(
    "content",
    [b"this is no database, however long it is" * 1000, b"SQLite format 3\0" + b"\xff" * 8000, b""],
    ids=["text", "header and nonsense", "empty"],
)
async def test_a_damaged_file_is_begun_anew(path: Path, content: bytes) -> None:
    """A file that is no database is set aside; the new one works, and has no marker so that it is rebuilt."""
    overwrite(path, content)
    assert await _reopened(path) == (None, Usage(0, 0))
    assert contents(path.with_name(path.name + ".old")) == content


@pytest.mark.parametrize("version", [0, SCHEMA + 1])
async def test_another_schema_is_begun_anew(index: EmbeddedIndex, path: Path, version: int) -> None:
    """A file of an older or newer schema is set aside, not read."""
    await index.put([record(1)])
    await index.set_marker("whole")
    await index.aclose()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    assert await _reopened(path) == (None, Usage(0, 0))


async def test_a_missing_table_is_begun_anew(index: EmbeddedIndex, path: Path) -> None:
    """A file of the right version that is not whole is set aside."""
    await index.put([record(1)])
    await index.aclose()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE links")
    assert await _reopened(path) == (None, Usage(0, 0))


async def test_damage_that_shows_while_running(index: EmbeddedIndex, another: EmbeddedIndex, path: Path) -> None:
    """Pages overwritten beneath two open ones: each fails in its own words, then both go on with one fresh file."""
    await index.put([record(number) for number in range(3000)])
    await index.set_marker("whole")
    await another.usage()
    # closing the last writer but one does not empty the log, so do it, or the log would hide the damage
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    whole = contents(path)
    overwrite(path, whole[:4096] + os.urandom(len(whole) - 4096))
    seen = set()
    for _ in range(3):
        for each in (index, another):
            try:
                await each.put([record(number) for number in range(3000, 3100)])
                assert len(await least_recently_used(each, 5000)) in (0, 100)
            except IndexUnavailable:
                seen.add(each)
    assert seen, "the damage showed to nobody"
    assert await index.marker() is None
    assert await another.usage() == await index.usage() == Usage(100, 1000)


async def test_a_file_that_is_deleted_is_begun_anew(index: EmbeddedIndex, another: EmbeddedIndex, path: Path) -> None:
    """Nobody goes on writing to a file without a name."""
    await index.put([record(1)])
    await index.set_marker("whole")
    assert await another.marker() == "whole"
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink()
    assert await another.marker() is None
    await another.put([record(2)])
    assert await index.usage() == Usage(1, 10)
    assert await index.get(digest(2)) == record(2)


async def test_a_lock_that_is_held_is_waited_for(index: EmbeddedIndex, path: Path) -> None:
    """A write waits until another's transaction ends; reads do not wait at all."""
    await index.put([record(1)])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        writing = asyncio.ensure_future(index.put([record(2)]))
        assert await index.get(digest(1)) == record(1)
        assert await index.usage() == Usage(1, 10)
        assert not writing.done()
        other.execute("COMMIT")
        await writing
    assert await index.usage() == Usage(2, 20)


async def test_a_lock_that_is_held_too_long_is_unavailable(index: EmbeddedIndex, path: Path) -> None:
    """A write gives up after its time-out, and works again later."""
    await index.usage()
    impatient = EmbeddedIndex(path, busy_timeout=0.01)
    try:
        await impatient.usage()
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(IndexUnavailable):
                await impatient.put([record(1)])
            assert await impatient.usage() == Usage(0, 0)
            other.execute("COMMIT")
        await impatient.put([record(1)])
        assert await index.usage() == Usage(1, 10)
    finally:
        await impatient.aclose()


async def test_a_place_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    """A path that cannot be opened is an `IndexUnavailable`, each time."""
    (tmp_path / "file").write_bytes(b"")
    index = EmbeddedIndex(tmp_path / "file" / "index.sqlite3")
    for _ in range(2):
        with pytest.raises(IndexUnavailable):
            await index.usage()
    await index.aclose()


async def test_rows_that_make_no_sense_are_a_miss(index: EmbeddedIndex, path: Path) -> None:
    """Junk in the file is passed over."""
    await index.put([record(1)])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "INSERT INTO content VALUES ('nonsense', 1, 1, 0, 0, NULL), (?, 'x', 1, 0, 0, NULL)", [str(digest(2))]
        )
        connection.execute("UPDATE content SET manifest = 1, names = '[[\"x\", 0]]' WHERE digest = 'nonsense'")
        connection.execute("INSERT INTO links VALUES ('r', ?, 'x')", [str(digest(2))])
        connection.commit()
    assert await least_recently_used(index, 10) == [record(1)]
    assert await index.get(digest(2)) is None


@pytest.mark.parametrize("standing", [BlobRole.LOOSE, BlobRole.ROOT])
async def test_the_order_of_use_reads_an_index_in_order(index: EmbeddedIndex, path: Path, standing: BlobRole) -> None:
    """The least recently used are read from an ordered index alone: no scan of all blobs, no sorting."""
    await index.put([record(1)])
    with closing(sqlite3.connect(path)) as connection:
        steps = connection.execute(f"EXPLAIN QUERY PLAN {embedded._OLDEST[standing]}", [10]).fetchall()
    assert [step[3] for step in steps] == [f"SCAN content USING COVERING INDEX {standing.value}"]


@pytest.mark.parametrize(
    "statement", [embedded._SUCCESSORS, embedded._RECORD_REFERENCES, embedded._TOUCH, embedded._DIGESTS]
)
async def test_nothing_scans_all_blobs(index: EmbeddedIndex, path: Path, statement: str) -> None:
    """What is asked about some blobs looks up these and no others."""
    await index.put([record(1)])
    with closing(sqlite3.connect(path)) as connection:
        parameters: list[Any] = ["", 1] if statement is embedded._DIGESTS else ["{}"]
        steps = [step[3] for step in connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    assert not [step for step in steps if re.match(r"SCAN (content|above|child|edges)\b", step)], steps


async def test_the_log_stays_short(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While somebody reads in it, it grows, and only now and then a write tries to shorten it; then it is emptied."""
    monkeypatch.setattr(sqlite_file, "_HELD_UP", 0.0)
    copied = 0
    copy = WriteAheadLog._copy

    def counted(log: WriteAheadLog) -> None:
        nonlocal copied
        copied += 1
        copy(log)

    monkeypatch.setattr(WriteAheadLog, "_copy", counted)
    writers = EmbeddedIndex(path), EmbeddedIndex(path)
    for writer in writers:
        writer._log = WriteAheadLog(path, _STEP)
        await writer.put([record(0)])
    log = writers[0]._log
    with closing(sqlite3.connect(path, isolation_level=None)) as reading:
        reading.execute("BEGIN")
        reading.execute("SELECT * FROM usage").fetchall()
        for number in range(100):
            await writers[number % 2].put([record(5 * number + each) for each in range(5)])
        grown = log.size()
    assert grown > 4 * _STEP
    assert 2 <= copied <= 2 * grown // _STEP
    for number in range(100, 200):
        await writers[number % 2].put([record(5 * number + each) for each in range(5)])
    assert log.size() < 2 * _STEP
    assert await writers[0].usage() == await writers[1].usage()
    for writer in writers:
        await writer.aclose()


def test_the_log_stays_bounded_while_two_write_all_the_time(path: Path) -> None:
    """Two that do not wait for each other never leave it unused, and yet it is emptied again and again."""
    rounds, rows = 60, 300
    longest = [0, 0]

    async def write(worker: int) -> None:
        index = EmbeddedIndex(path, busy_timeout=60)
        index._log = log = WriteAheadLog(path, _STEP)
        for turn in range(rounds):
            first = (2 * turn + worker) * rows
            await index.put([record(number) for number in range(first, first + rows)])
            longest[worker] = max(longest[worker], log.size())
        await index.aclose()

    with ThreadPoolExecutor(2) as workers:
        for each in [workers.submit(asyncio.run, write(worker)) for worker in (0, 1)]:
            each.result()
    written = path.stat().st_size
    assert written > 20 * _STEP
    assert max(longest) < written / 4


class _SlowDisk:
    """A log whose copies take time, in which a writer writes on; with a reader who holds up copies, if there is one."""

    def __init__(self, pages: int, writes_per_copied: float, *, held: bool = False) -> None:
        """`writes_per_copied` are pages that the writer writes in the time of copying one."""
        self.pages = pages
        self.copied = 0
        self.held = held
        #: The pages that writers had to wait for at TRUNCATE; None if there was none.
        self.waited: int | None = None
        self._speed = writes_per_copied

    def checkpoint(self, mode: str) -> tuple[int, int, int]:
        """As SQLite does it."""
        pages, left = self.pages, self.pages - self.copied
        if mode == "TRUNCATE":
            self.waited = left
            self.pages = self.copied = 0
            return 0, 0, 0
        if self.held:
            return 0, pages, self.copied
        self.copied = pages
        self.pages += int(left * self._speed)
        return 0, pages, self.copied


@pytest.mark.parametrize(
    ("disk", "waited"),
    [
        (_SlowDisk(10_000, 0.0), 0),
        (_SlowDisk(10_000, 0.6), 100),
        # a writer as fast as the disk is held up only once the log is long
        (_SlowDisk(10_000, 1.0), None),
        (_SlowDisk(20_001, 1.0), 21_000),
        # as a reader who does not end
        (_SlowDisk(10_000, 0.0, held=True), None),
        (_SlowDisk(20_001, 0.0, held=True), 20_001),
    ],
)
def test_writers_are_held_up_for_little(disk: _SlowDisk, waited: int | None) -> None:
    """However slow the disk: as long as copies bring the rest down, writers do not wait for them."""
    copy_log(disk.checkpoint, 100, 20_000, lambda _: pytest.fail("no other process copies"))
    if waited is None:
        assert disk.waited is None
    else:
        assert disk.waited is not None
        assert disk.waited <= waited


def test_the_copy_of_another_process_is_waited_for() -> None:
    """While another process copies the log, this one cannot; it looks again, but not for ever."""
    disk, looks = _SlowDisk(1000, 0.0), list[float]()

    def busy_for(count: int) -> Callable[[str], tuple[int, int, int]]:
        looks.clear()
        return lambda mode: (1, -1, -1) if len(looks) < count else disk.checkpoint(mode)

    copy_log(busy_for(3), 10, 10_000, looks.append)
    assert len(looks) == 3
    assert disk.waited == 0
    copy_log(busy_for(10_000), 10, 10_000, looks.append)
    assert len(looks) == sqlite_file._LOOKS


def test_no_file_is_made_where_there_is_none(path: Path) -> None:
    """To copy the log of a file that was just set aside makes no empty one in its place."""
    path.parent.mkdir()
    WriteAheadLog(path).shorten()
    assert not path.exists()


_WRITER = """
import asyncio, sys
from pathlib import Path
from mirror.index.embedded import EmbeddedIndex
from tests.support.index_suite import digest, names, record

async def main():
    path, first, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    index = EmbeddedIndex(path, busy_timeout=60)
    for turn in range(rounds):
        await index.put([record(n, size=n) for n in range(first, first + 400)])
        await index.record_references([names(n, n + 1, 700) for n in range(first, first + 400, 4)])
        await index.touch({digest(n): 200.0 + turn for n in range(first, first + 400)})
        await index.drop([digest(n) for n in range(first, first + 100)])
        print(turn, flush=True)
    await index.aclose()

asyncio.run(main())
"""


async def everything(index: EmbeddedIndex) -> list[ContentRecord]:
    """Of every standing."""
    return [found for standing in BlobRole for found in await index.least_recently_used(standing, 10_000)]


async def counted_right(path: Path) -> None:
    """Each blob knows how many manifests name it, and no edge has lost its manifest."""
    with closing(sqlite3.connect(path)) as connection:
        wrong = "SELECT * FROM content WHERE parents <> (SELECT count(*) FROM edges WHERE child = content.digest)"
        assert connection.execute(wrong).fetchall() == []
        lost = "SELECT * FROM edges WHERE parent NOT IN (SELECT digest FROM content WHERE manifest = 1)"
        assert connection.execute(lost).fetchall() == []


async def _writer(path: Path, first: int, rounds: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WRITER, str(path), str(first), str(rounds), stdout=asyncio.subprocess.PIPE
    )


async def test_processes_write_at_once(index: EmbeddedIndex, path: Path) -> None:
    """Four processes that begin on an absent file and write overlapping records leave exact counters."""
    writers = [await _writer(path, first, 5) for first in (0, 200, 400, 600)]
    for writer in writers:
        await writer.communicate()
        assert writer.returncode == 0
    found = await everything(index)
    assert await index.usage() == Usage(len(found), sum(each.size for each in found))
    # the last of the four ranges but its first hundred is dropped by nobody
    assert {digest(number) for number in range(700, 1000)} <= {each.digest for each in found}


async def test_a_writer_that_is_killed(index: EmbeddedIndex, path: Path) -> None:
    """`kill -9` in the middle of writing leaves a whole file with exact counters, and no lock."""
    for attempt in range(5):
        writer = await _writer(path, attempt * 100, 10_000)
        assert writer.stdout is not None
        await writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        await writer.communicate()
        await index.put([record(5000 + attempt)])
        found = await everything(index)
        assert await index.usage() == Usage(len(found), sum(each.size for each in found))
        await counted_right(path)


def test_it_is_a_content_index(path: Path) -> None:
    """It has every method of the port (checked by the type checker as well)."""
    index: ContentIndex = EmbeddedIndex(path)
    assert isinstance(index, EmbeddedIndex)


async def test_a_call_cancelled_while_opening_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever leaves while the file is being opened leaves no connection behind that nobody would close."""
    connect = aiosqlite.connect
    for which in (1, 2):
        begun = asyncio.Event()
        calls = 0

        def counted(*arguments: Any, which: int = which, begun: asyncio.Event = begun, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == which:
                begun.set()
            return connect(*arguments, **named)

        monkeypatch.setattr(aiosqlite, "connect", counted)
        index = EmbeddedIndex(tmp_path / f"{which}.sqlite")
        asking = asyncio.create_task(index.usage())
        await begun.wait()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await index.aclose()
    assert _open_below(tmp_path) == []


def _open_below(folder: Path) -> list[str]:
    # no other files: an exception that another test still refers to keeps what its frames opened
    links = [os.readlink(one) for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]
    return [link for link in links if link.startswith(f"{folder}/")]

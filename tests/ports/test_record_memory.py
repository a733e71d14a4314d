"""What a machine remembers of the records of a bucket: never something wrong, whoever writes, reads, dies or lists."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from mirror.errors import IndexUnavailable
from mirror.index.record_memory import SqliteRecordMemory
from mirror.ports import ListedPart, ListedRecord, RecordState, RememberedFolder, RememberedRecord, Version

KEY = "repositories/corp/app/_tags/1.0"
OTHER = "repositories/corp/app/_tags/2.0"
V1, V2, V3 = Version("v1"), Version("v2"), Version("v3")


class Machine:
    """One file, opened by as many processes as a test wants."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "bucket.sqlite"
        self.now = 1000.0
        self.memory = self.open()

    def open(self, boot: str = "boot") -> SqliteRecordMemory:
        """The memory in another process."""
        return SqliteRecordMemory(self.path, boot, settle=300.0, steady=lambda: self.now)

    def recall(self, key: str = KEY) -> RememberedRecord:
        """What is remembered of a record."""
        found = self.memory.recall(key)
        assert found is not None
        return found

    def known(self, key: str = KEY) -> tuple[RecordState, Version | None, bytes | None]:
        """Its state, version and content."""
        found = self.recall(key)
        return found.state, found.version, found.content

    def written(self, content: bytes | None = b"{1}", version: Version = V1, key: str = KEY) -> None:
        """A write that nothing disturbs."""
        self.memory.end(key, self.memory.begin(key), version, content)

    def list(self, *listed: ListedRecord, folder: str = "repositories/corp/app/_tags") -> int:
        """A listing of one folder, after which the memory is complete."""
        start = self.memory.begin_listing()
        changed = self.memory.compare(start, [ListedPart(f"{folder}/", f"{folder}/\U0010ffff", listed)])
        assert self.memory.completed(start)
        return changed


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Nothing is remembered yet."""
    return Machine(tmp_path)


def test_a_write_is_remembered_by_all_processes(machine: Machine) -> None:
    """While it is under way, nothing is known; then the new content is; a deletion is known as one."""
    token = machine.memory.begin(KEY)
    assert machine.known()[0] is RecordState.UNKNOWN
    machine.memory.end(KEY, token, V1, b"{1}")
    again = machine.open().recall(KEY)
    assert again is not None
    assert (again.state, again.version, again.content, again.is_trusted) == (RecordState.LIVE, V1, b"{1}", True)
    machine.written(None, V2)
    assert machine.known() == (RecordState.DELETED, V2, None)


def test_a_write_that_dies_leaves_the_record_unknown(machine: Machine) -> None:
    """No read makes it known while the write may still arrive; one that begins later does."""
    machine.written()
    machine.memory.begin(KEY)
    seen = machine.recall()
    machine.memory.note(KEY, seen, V1, b"{1}")
    assert machine.known()[0] is RecordState.UNKNOWN
    machine.now += 301
    machine.memory.note(KEY, seen, V2, b"{2}")
    assert machine.known() == (RecordState.LIVE, V2, b"{2}")


def test_a_write_that_changed_nothing_can_be_read_over(machine: Machine) -> None:
    """A refused write leaves the record unknown until the next read."""
    machine.written()
    machine.memory.fail(KEY, machine.memory.begin(KEY))
    assert machine.known()[0] is RecordState.UNKNOWN
    machine.memory.note(KEY, machine.recall(), V2, b"{2}")
    assert machine.known() == (RecordState.LIVE, V2, b"{2}")


@pytest.mark.parametrize("first", [0, 1])
def test_writes_that_overlap_leave_the_record_unknown(machine: Machine, first: int) -> None:
    """Nobody knows which of them came last, in whatever order they end; the next read says it."""
    tokens = [machine.memory.begin(KEY), machine.memory.begin(KEY)]
    versions = [V1, V2]
    for index in (first, 1 - first):
        machine.memory.end(KEY, tokens[index], versions[index], b"{%d}" % index)
        assert machine.known()[0] is RecordState.UNKNOWN
    machine.memory.note(KEY, machine.recall(), V2, b"{2}")
    assert machine.known() == (RecordState.LIVE, V2, b"{2}")


def test_a_write_that_ends_after_a_third_began_knows_nothing(machine: Machine) -> None:
    """A chain of overlaps ends with a write that nothing overlaps."""
    one = machine.memory.begin(KEY)
    two = machine.memory.begin(KEY)
    machine.memory.end(KEY, one, V1, b"{1}")
    three = machine.memory.begin(KEY)
    machine.memory.end(KEY, two, V2, b"{2}")
    machine.memory.end(KEY, three, V3, b"{3}")
    assert machine.known()[0] is RecordState.UNKNOWN
    machine.written(b"{4}", V3)
    assert machine.known() == (RecordState.LIVE, V3, b"{4}")


def test_a_write_that_ends_after_its_time_knows_nothing(machine: Machine) -> None:
    """Others may have read and written since it stopped counting."""
    late = machine.memory.begin(KEY)
    machine.now += 301
    machine.written(b"{2}", V2)
    machine.memory.end(KEY, late, V3, b"{3}")
    assert machine.known()[0] is RecordState.UNKNOWN


def test_a_slow_read_hides_no_later_write(machine: Machine) -> None:
    """What a read has found counts only if nothing changed since it began, also if there was nothing."""
    machine.written()
    seen = machine.recall()
    machine.written(b"{2}", V2)
    machine.memory.note(KEY, seen, V1, b"{1}")
    assert machine.known() == (RecordState.LIVE, V2, b"{2}")
    nothing = machine.memory.recall(OTHER)
    assert nothing is None
    machine.written(b"{3}", V3, OTHER)
    machine.memory.note(OTHER, nothing, None, None)
    assert machine.known(OTHER) == (RecordState.LIVE, V3, b"{3}")
    machine.memory.note(OTHER, machine.recall(OTHER), None, None)
    assert machine.memory.recall(OTHER) is None


def test_an_earlier_boot_is_not_trusted(machine: Machine) -> None:
    """A power cut may have lost the latest changes of the file; writes of that boot are over."""
    machine.written()
    machine.memory.begin(OTHER)
    machine.list(ListedRecord(KEY, V1, is_deleted=False))
    assert machine.memory.is_complete()
    machine.memory.close()
    machine.memory = machine.open("another boot")
    assert machine.known() == (RecordState.LIVE, V1, b"{1}")
    assert not machine.recall().is_trusted
    assert not machine.memory.is_complete()
    assert machine.memory.was_complete()
    machine.memory.note(OTHER, machine.recall(OTHER), V2, b"{2}")
    assert machine.recall(OTHER).is_trusted
    machine.list(ListedRecord(KEY, V1, is_deleted=False), ListedRecord(OTHER, V2, is_deleted=False))
    assert machine.recall().is_trusted
    assert machine.memory.is_complete()


def test_a_listing_adds_names_and_raises_doubts(machine: Machine) -> None:
    """What it shows as the memory has it stays known; what differs is asked for; nothing becomes absent."""
    folder = "repositories/corp/app/_tags"
    for name, version, content in (("same", V1, b"{1}"), ("moved", V1, b"{1}"), ("gone", V1, b"{1}")):
        machine.written(content, version, f"{folder}/{name}")
    for name in ("dropped", "back"):
        machine.written(None, V1, f"{folder}/{name}")
    changed = machine.list(
        ListedRecord(f"{folder}/back", V2, is_deleted=False),
        ListedRecord(f"{folder}/dropped", V1, is_deleted=True),
        ListedRecord(f"{folder}/moved", V2, is_deleted=False),
        ListedRecord(f"{folder}/new", V2, is_deleted=False),
        ListedRecord(f"{folder}/old", V2, is_deleted=True),
        ListedRecord(f"{folder}/same", V1, is_deleted=False),
    )
    assert changed == 5
    assert {row.key.rpartition("/")[2]: (row.state, row.content) for row in machine.memory.scan(folder, "s", 100)} == {
        "back": (RecordState.UNKNOWN, None),
        "dropped": (RecordState.DELETED, None),
        "gone": (RecordState.UNKNOWN, b"{1}"),
        "moved": (RecordState.LIVE, None),
        "new": (RecordState.LIVE, None),
        "old": (RecordState.PERHAPS_DELETED, None),
        "same": (RecordState.LIVE, b"{1}"),
    }


def test_a_listing_without_versions_confirms_no_content(machine: Machine) -> None:
    """What was written since the start is believed; what is older is known to exist."""
    machine.written()
    machine.list(ListedRecord(KEY, Version(""), is_deleted=False))
    assert machine.known() == (RecordState.LIVE, V1, b"{1}")
    machine.memory.close()
    machine.memory = machine.open("another boot")
    machine.list(ListedRecord(KEY, Version(""), is_deleted=False))
    assert machine.known() == (RecordState.LIVE, None, None)


@pytest.mark.parametrize("is_over", [True, False])
def test_a_listing_never_hides_what_was_written_since_it_began(machine: Machine, is_over: bool) -> None:
    """An old page does not make a new record unknown, nor end the doubt about a write that is under way."""
    machine.written()
    start = machine.memory.begin_listing()
    token = machine.memory.begin(KEY)
    if is_over:
        machine.memory.end(KEY, token, V2, None)
    folder = KEY.rpartition("/")[0]
    page = [ListedRecord(KEY, V1, is_deleted=False)]
    assert machine.memory.compare(start, [ListedPart(f"{folder}/", f"{folder}/z", page)]) == 0
    assert machine.known()[0] is (RecordState.DELETED if is_over else RecordState.UNKNOWN)
    assert machine.memory.compare(start, [ListedPart(f"{folder}/", f"{folder}/z", ())]) == 0


def test_another_mirror_makes_everything_doubtful(machine: Machine) -> None:
    """Also the listing that is under way; another bucket makes the memory forget."""
    machine.memory.adopt("bucket", "nonce")
    assert machine.memory.owner() == ("bucket", "nonce")
    machine.written()
    machine.list(ListedRecord(KEY, V1, is_deleted=False))
    machine.memory.adopt("bucket", "nonce")
    assert machine.memory.is_complete()
    start = machine.memory.begin_listing()
    machine.memory.adopt("bucket", "another")
    assert not machine.recall().is_trusted
    assert not machine.memory.completed(start)
    assert not machine.memory.is_complete()
    assert machine.memory.changes("state/pins") is None
    machine.memory.adopt("another bucket", "another")
    assert machine.memory.recall(KEY) is None
    assert not machine.memory.was_complete()


def test_changes_of_json_records_are_counted(machine: Machine) -> None:
    """By folder, once the memory is complete; before that nobody knows."""
    assert machine.memory.changes("state/robots") is None
    machine.list()
    assert machine.memory.changes("state/robots") == 0
    seen = {0}
    steps: list[Callable[[], object]] = [
        lambda: machine.written(key="state/robots/a.json"),
        lambda: machine.memory.begin("state/robots/b.json"),
        lambda: machine.list(ListedRecord("state/robots/c.json", V1, is_deleted=False), folder="state/robots"),
    ]
    for step in steps:
        step()
        assert machine.open().changes("state/robots") not in seen
        seen.add(machine.open().changes("state/robots") or 0)
    assert machine.memory.changes("state/pins") == 0


def test_folders_are_found_without_their_records(machine: Machine) -> None:
    """Of repositories, with what is in them; and those that have records directly in them, in pages."""
    keys = ["corp/a/_blobs/1", "corp/a/_tags/1", "corp/a/_tags/2", "corp/a-b/_tags/1", "corp/a/b/_referrers/s/1"]
    for key in keys:
        machine.written(key=f"repositories/{key}")
    machine.written(None, key="repositories/corp/a/_blobs/1")
    machine.memory.begin("repositories/corp/c/_tags/1")
    found: list[RememberedFolder] = []
    after = "repositories/"
    while page := machine.memory.folders(after, "repositories0", 2):
        found += page
        after = f"{page[-1].folder}0"
    assert [(one.folder.removeprefix("repositories/corp/"), one.has_live, one.has_unknown) for one in found] == [
        ("a-b/_tags", True, False),
        ("a/_blobs", False, False),
        ("a/_tags", True, False),
        ("a/b/_referrers", True, False),
        ("c/_tags", False, True),
    ]
    assert list(machine.memory.listed_folders("repositories/corp/a/", "repositories/corp/a0", 10)) == [
        "repositories/corp/a/_blobs",
        "repositories/corp/a/_tags",
        "repositories/corp/a/b/_referrers/s",
    ]


def test_a_file_that_is_lost_or_damaged_is_begun_anew(machine: Machine) -> None:
    """The memory is then not complete, and a write that had begun before ends in doubt."""
    machine.written()
    machine.list(ListedRecord(KEY, V1, is_deleted=False))
    token = machine.memory.begin(OTHER)
    for suffix in ("", "-wal", "-shm"):
        machine.path.with_name(machine.path.name + suffix).unlink(missing_ok=True)
    assert machine.memory.recall(KEY) is None
    assert not machine.memory.is_complete()
    machine.memory.end(OTHER, token, V2, b"{2}")
    assert machine.known(OTHER)[0] is RecordState.UNKNOWN
    machine.memory.close()
    machine.path.write_bytes(b"no database" * 1000)
    machine.memory = machine.open()
    assert machine.memory.recall(OTHER) is None
    assert machine.path.with_name("bucket.sqlite.old").exists()


def test_a_memory_of_another_version_is_begun_anew(machine: Machine) -> None:
    """Its tables may mean something else."""
    machine.written()
    machine.memory.close()
    with sqlite3.connect(machine.path) as connection:
        connection.execute("PRAGMA user_version = 99")
    machine.memory = machine.open()
    assert machine.memory.recall(KEY) is None


def test_a_closed_memory_says_so(machine: Machine) -> None:
    """A process that ends does not open the file again."""
    machine.memory.close()
    with pytest.raises(IndexUnavailable, match="closed"):
        machine.memory.recall(KEY)


def test_large_contents_are_not_remembered(machine: Machine) -> None:
    """They are known to exist, in a version."""
    machine.written(b"{" + b" " * (1 << 20) + b"}")
    assert machine.known() == (RecordState.LIVE, V1, None)


def test_the_first_record_of_a_repository_is_counted(machine: Machine) -> None:
    """For every process: a list of repositories that is older is out of date."""
    before = machine.memory.added()
    machine.written()
    assert machine.open().added() == before + 1
    machine.written(b"{2}", V2)
    machine.written(b"{2}", V2, OTHER)
    machine.written(b"{2}", V2, "repositories/corp/app/_blobs/x")
    assert machine.memory.added() == before + 1
    machine.list(ListedRecord("repositories/corp/b/_tags/1", V1, is_deleted=False), folder="repositories/corp/b/_tags")
    assert machine.memory.added() == before + 2


class _Counted:
    """How much work SQLite does for one writer, in hundreds of its own steps, and its transactions."""

    def __init__(self, memory: SqliteRecordMemory) -> None:
        self.steps = 0
        self.begun = 0
        memory._writing.run(self._watch)

    def _watch(self, connection: sqlite3.Connection) -> None:
        connection.set_progress_handler(self._step, 100)
        connection.set_trace_callback(self._trace)

    def _step(self) -> int:
        self.steps += 1
        return 0

    def _trace(self, statement: str) -> None:
        self.begun += statement.startswith("BEGIN")


_TAGS = "repositories/corp/app/_tags"


def _tags(name: str, count: int, *, deleted: bool = False) -> list[ListedRecord]:
    return [ListedRecord(f"{_TAGS}/{name}-{at:06}", Version(f"v{at}"), deleted) for at in range(count)]


def _steps_of_writes(folder: Path, deleted: int) -> tuple[int, int]:
    """The work for ten tags, and for a page of a listing, behind so many deleted tags."""
    folder.mkdir()
    machine = Machine(folder)
    machine.list(*_tags("build", deleted, deleted=True))
    counted = _Counted(machine.memory)
    for at in range(10):
        machine.written(key=f"{_TAGS}/release-{at}")
    writes, counted.steps = counted.steps, 0
    start = machine.memory.begin_listing()
    page = _tags("x", 1000)
    machine.memory.compare(start, [ListedPart(f"{_TAGS}/s", page[-1].key, page)])
    return writes, counted.steps


def test_deleted_tags_do_not_slow_writes_and_listings(tmp_path: Path) -> None:
    """A tenant that deletes many tags makes nobody's writes to the memory dearer."""
    alone, among = (_steps_of_writes(tmp_path / str(count), count) for count in (0, 20_000))
    assert among[0] <= alone[0] + 10
    assert among[1] <= alone[1] * 1.5 + 100
    machine = Machine(tmp_path / "20000")
    assert machine.memory.folders("repositories/", "repositories0", 9) == [RememberedFolder(_TAGS, True, False)]


def test_a_listing_lets_others_write(tmp_path: Path) -> None:
    """Between short transactions: also if all that is remembered of a large folder is no longer listed."""
    pauses: list[float] = []
    machine = Machine(tmp_path)
    machine.memory = SqliteRecordMemory(machine.path, "boot", steady=lambda: machine.now, pause=pauses.append)
    assert machine.list(*_tags("a", 1300), *_tags("b", 1200)) == 2500
    counted = _Counted(machine.memory)
    pauses.clear()
    assert machine.list(*_tags("b", 1200)) == 1300
    assert len(pauses) == 4
    assert counted.begun == len(pauses) + 2
    assert machine.known(f"{_TAGS}/a-000000")[0] is RecordState.UNKNOWN
    assert machine.known(f"{_TAGS}/a-001299")[0] is RecordState.UNKNOWN
    assert machine.known(f"{_TAGS}/b-000000")[0] is RecordState.LIVE
    assert machine.list(*_tags("b", 1200)) == 0

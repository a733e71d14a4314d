"""A tree of records in a bucket: what it does on any day, and what it says when the bucket, a process, the memory or a
listing fails. Rows 121 and 123 of the table of faults at the level of records.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import cast

import pytest

from mirror.errors import BucketDenied, BucketUnavailable, RecordChanged, StoreError
from mirror.oci.reference import Repo
from mirror.ports import ABSENT, RecordMemory, RecordTree, RememberedFolder, Version
from mirror.store.local.blobs import LocalStore
from mirror.store.local.file_tree import FileTree
from mirror.store.local.layout import Layout
from mirror.store.objects.record_tree import DELETED_SIZE, BucketTree, Reads
from mirror.store.records.routed_tree import RoutedTree
from tests.support.bucket_records import Machine
from tests.support.hooked import Hooked
from tests.support.memory_bucket import MemoryBucket
from tests.support.record_tree_suite import APP, KEY, ONE, THREE, TWO, RecordTreeSuite, content_of, version_of

TAGS = "repositories/corp/team/app/_tags"
NAME = "names/corp/team!app"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Its bucket is empty, and its memory has seen that."""
    machine = Machine(tmp_path)
    machine.list_all()
    return machine


class TestFileTree(RecordTreeSuite):
    """On a disk."""

    @pytest.fixture
    def tree(self, tmp_path: Path) -> RecordTree:
        """Empty."""
        return FileTree(LocalStore(Layout(tmp_path)).layout)

    @pytest.fixture
    def another(self, tree: RecordTree, tmp_path: Path) -> RecordTree:
        """Another process's view."""
        return FileTree(Layout(tmp_path))


@pytest.mark.parametrize("reads", Reads)
class TestBucketTree(RecordTreeSuite):
    """In a bucket, whatever is believed of the memory."""

    @pytest.fixture
    def tree(self, machine: Machine, reads: Reads) -> RecordTree:
        """Empty."""
        return machine.tree(reads, machine.another_memory())

    @pytest.fixture
    def another(self, machine: Machine, reads: Reads) -> RecordTree:
        """Another process's view."""
        return machine.tree(reads, machine.another_memory())


class TestRoutedTree(RecordTreeSuite):
    """Hosted registries in a bucket, others on disk."""

    @pytest.fixture
    def tree(self, machine: Machine) -> RecordTree:
        """Empty."""
        return _routed(machine)

    @pytest.fixture
    def another(self, tree: RecordTree, machine: Machine) -> RecordTree:
        """Another process's view."""
        return _routed(machine)


def _routed(machine: Machine) -> RoutedTree:
    layout = LocalStore(Layout(machine.root / "disk")).layout
    return RoutedTree(lambda registry: registry == "corp", hosted=machine.tree(), cached=FileTree(layout))


def test_records_go_where_their_registry_is(machine: Machine, tmp_path: Path) -> None:
    """What the disk still has of a hosted registry is not seen."""
    routed = _routed(machine)
    FileTree(Layout(tmp_path / "disk")).write("repositories/corp/old/_tags/1", ONE)
    routed.write(KEY, ONE)
    routed.write("repositories/docker.io/library/app/_tags/1", TWO)
    assert list(routed.repositories(("_tags",))) == [APP, Repo("docker.io", "library/app")]
    assert KEY in machine.bucket.content()
    assert not [key for key in machine.bucket.content() if "docker.io" in key]


def _many(tree: RecordTree) -> list[Repo]:
    """Three hundred repositories in thirty folders, in order."""
    repos = [Repo("corp", f"team-{team:02}/app-{number}") for team in range(30) for number in range(10)]
    for repo in repos:
        tree.write(f"repositories/{repo}/_tags/1", ONE)
    return repos


def test_a_list_on_the_disk_looks_no_further_than_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the root, the registry, one team, and each repository and its tags; wherever it begins, what may be below that
    place.
    """
    looked: list[str] = []
    scandir = os.scandir

    def counted(path: str) -> AbstractContextManager[Iterator[os.DirEntry[str]]]:
        looked.append(path)
        return scandir(path)

    tree = FileTree(LocalStore(Layout(tmp_path)).layout)
    repos = _many(tree)
    monkeypatch.setattr(os, "scandir", counted)
    for number in (0, 145):
        looked.clear()
        after = str(repos[number - 1]) if number else ""
        assert list(islice(tree.repositories(("_tags",), after=after), 5)) == repos[number : number + 5]
        assert len(looked) <= 3 + 2 * 5 + 1
    looked.clear()
    assert list(tree.repositories(("_tags",), "corp", after="corp/team-30")) == []
    assert len(looked) <= 2


@pytest.mark.parametrize("target", ["nothing", "a file/x", "_tags"])
def test_a_link_that_leads_nowhere_hides_no_repository(tmp_path: Path, target: str) -> None:
    """Also if the kernel gives another error for it than that there is no such file."""
    tree = FileTree(LocalStore(Layout(tmp_path)).layout)
    repos = [Repo("corp", "team"), *(Repo("corp", f"team/app-{number:02}") for number in range(40))]
    for repo in repos:
        tree.write(f"repositories/{repo}/_manifests/1", ONE)
    (tmp_path / "repositories/corp/team/a file").touch()
    (tmp_path / "repositories/corp/team/_tags").symlink_to(target)
    assert list(tree.repositories(("_tags", "_manifests"))) == repos


def test_a_list_from_the_memory_looks_no_further_than_it_is_read(machine: Machine) -> None:
    """A few folders more than are given, and each name once that could come before them; wherever it begins."""
    looked: list[str] = []

    class Counted:
        """Notes the folders that are found."""

        def __getattr__(self, name: str) -> object:
            return getattr(machine.memory, name)

        def folders(self, after: str, before: str, count: int) -> Sequence[RememberedFolder]:
            """As `RecordMemory`."""
            found = machine.memory.folders(after, before, count)
            looked.extend(each.folder for each in found)
            return found

    repos = _many(machine.tree())
    tree = machine.tree(memory=cast(RecordMemory, Counted()))
    for number in (0, 145):
        looked.clear()
        after = str(repos[number - 1]) if number else ""
        assert list(islice(tree.repositories(("_tags",), after=after), 5)) == repos[number : number + 5]
        assert len(looked) <= 16
    looked.clear()
    assert list(tree.repositories(("_tags",), after="corp/team-30")) == []
    assert not looked


def test_a_name_that_comes_early_is_looked_up_once(machine: Machine) -> None:
    """However many begin with it; it is not given again when its own key comes."""
    tree = machine.tree()
    names = ["corp/team", *(f"corp/team-{number}" for number in range(10)), *(f"corp/team/{n}" for n in range(10))]
    for name in names:
        tree.write(f"repositories/{name}/_tags/1", ONE)
    assert [str(repo) for repo in tree.repositories(("_tags",))] == names


# ------------------------------------------------------------------------------------------------ single records


def test_an_unchanged_record_is_not_sent_again(machine: Machine) -> None:
    """The memory has its content; the bucket says that it is still that one."""
    tree = machine.tree()
    tree.write(KEY, ONE)
    machine.bucket.damage(KEY, b'{"n": 9}')
    assert content_of(tree) == ONE
    assert machine.bucket.calls["read"] >= 1


def test_a_deleted_record_is_an_object_like_no_other(machine: Machine) -> None:
    """17 bytes that begin with a zero byte, never the same twice; no record that is written looks like it."""
    tree, seen = machine.tree(), set()
    for _ in range(3):
        tree.write(KEY, ONE)
        tree.drop(KEY)
        deleted = machine.bucket.content()[KEY]
        assert len(deleted) == DELETED_SIZE
        assert deleted[0] == 0
        seen.add(deleted)
    assert len(seen) == 3
    for refused in (b"", b"\0{}"):
        with pytest.raises(ValueError, match="zero byte"):
            tree.write(KEY, refused)
    tree.write(KEY, b'{"seventeen": 17}')
    assert len(machine.bucket.content()[KEY]) != DELETED_SIZE
    assert (content_of(tree) or b"").strip() == b'{"seventeen": 17}'


def test_a_torn_object_is_damaged_and_not_absent(machine: Machine) -> None:
    """Nobody may take 0 bytes for a deletion."""
    tree = machine.tree()
    machine.bucket.write(KEY, b"")
    assert content_of(tree) == b""
    with pytest.raises(RecordChanged):
        tree.write(KEY, ONE, expect=ABSENT)
    tree.write(KEY, ONE, expect=version_of(tree))
    assert content_of(tree) == ONE


def test_121_a_change_that_another_machine_was_quicker_with(machine: Machine, tmp_path: Path) -> None:
    """The loser learns it, and its memory holds what the winner wrote; a writer that expects nothing comes after."""
    mine = machine.tree()
    first = mine.write(KEY, ONE)
    other = Machine(tmp_path / "other", machine.bucket)
    other.list_all()
    machine.bucket.before("write", lambda: cast(None, other.tree().write(KEY, TWO)))
    with pytest.raises(RecordChanged):
        mine.write(KEY, THREE, expect=first)
    assert content_of(mine) == content_of(machine.tree(Reads.REMEMBERED)) == TWO
    machine.bucket.before("write", lambda: other.tree().drop(KEY))
    mine.write(KEY, THREE)
    assert content_of(mine) == content_of(other.tree()) == THREE
    machine.bucket.before("write", lambda: cast(None, other.tree().write(KEY, ONE)))
    mine.drop(KEY)
    assert other.tree().read(KEY) is None


def test_a_write_never_goes_without_a_version(machine: Machine) -> None:
    """One that arrives late must not undo what came after it."""
    expected: list[object] = []
    bucket = Hooked(machine.bucket)
    tree = BucketTree(cast(MemoryBucket, bucket), machine.memory)
    write = machine.bucket.write

    def note(key: str, content: bytes, *, expect: object = None) -> Version:
        expected.append(expect)
        return write(key, content, expect=expect)  # type: ignore[arg-type]

    machine.bucket.write = note  # type: ignore[method-assign]
    tree.write(KEY, ONE)
    tree.write(KEY, TWO)
    tree.drop(KEY)
    tree.write(KEY, THREE)
    tree.write("state/pins/a.json", ONE)
    assert len(expected) >= 5
    assert None not in expected


@pytest.mark.parametrize("done", [True, False])
def test_after_a_write_without_an_answer_the_bucket_is_asked(machine: Machine, done: bool) -> None:
    """The memory says neither the old nor the new, until somebody has read it."""
    tree = machine.tree()
    tree.write(KEY, ONE)
    machine.bucket.fail("write", done=done)
    with pytest.raises(BucketUnavailable):
        tree.write(KEY, TWO)
    expected = TWO if done else ONE
    for reads in Reads:
        assert content_of(machine.tree(reads)) == expected
        assert list(machine.tree(reads).names(TAGS)) == ["1.0"]
    machine.bucket.down = True
    for reads in Reads:
        with pytest.raises(BucketUnavailable):
            machine.tree(reads).read(KEY)


@pytest.mark.parametrize("step", ["begin", "write", "end"])
@pytest.mark.parametrize("change", ["write", "drop"])
def test_a_process_that_dies_within_a_change_leaves_no_wrong_memory(machine: Machine, step: str, change: str) -> None:
    """Killed before or after each step: whoever comes later is told what the bucket has."""

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    tree = machine.tree()
    tree.write(KEY, ONE)
    memory: RecordMemory = machine.memory
    bucket = machine.bucket
    if step == "write":
        bucket.before("write", kill)
    else:
        hooked = Hooked(machine.memory)
        hooked.before(step, kill)
        memory = cast(RecordMemory, hooked)
    dying = BucketTree(bucket, memory)
    with pytest.raises(Killed):
        dying.write(KEY, TWO) if change == "write" else dying.drop(KEY)
    happened = step == "end"
    expected = (TWO if change == "write" else None) if happened else ONE
    for reads in Reads:
        assert content_of(machine.tree(reads, machine.another_memory())) == expected
        assert list(machine.tree(reads).names(TAGS)) == (
            [] if expected is None and reads is not Reads.REMEMBERED else ["1.0"]
        )
    machine.steady += 301
    assert content_of(machine.tree()) == expected
    assert content_of(machine.tree(Reads.REMEMBERED)) == expected
    assert list(machine.tree(Reads.REMEMBERED).names(TAGS)) == ([] if expected is None else ["1.0"])
    machine.tree().write(KEY, THREE)
    assert content_of(machine.tree(Reads.REMEMBERED)) == THREE


def test_a_memory_that_fails_stops_writes_and_not_reads(machine: Machine) -> None:
    """A write that the memory does not know of would make it wrong for the others."""
    machine.tree().write(KEY, ONE)
    machine.memory.close()
    broken = BucketTree(machine.bucket, machine.memory)
    assert content_of(broken) == ONE
    with pytest.raises(StoreError, match="cannot be changed now"):
        broken.write(KEY, TWO)
    assert machine.bucket.content()[KEY] == ONE
    assert broken.repositories_added() == -1
    with pytest.raises(StoreError):
        list(broken.repositories(("_tags",)))


# ----------------------------------------------------------------------------------------------------- outages


def test_pulls_go_on_while_the_bucket_is_down(machine: Machine) -> None:
    """With what was compared since the start; whatever changes something does not."""
    machine.tree().write(KEY, ONE)
    machine.tree().write(f"{TAGS}/2.0", ONE)
    machine.tree().drop(f"{TAGS}/2.0")
    machine.bucket.down = True
    pulls = machine.tree(Reads.LENIENT)
    assert content_of(pulls) == ONE
    assert pulls.read(f"{TAGS}/2.0") is None
    assert pulls.read(f"{TAGS}/never") is None
    assert list(pulls.names(TAGS)) == ["1.0"]
    assert list(pulls.repositories(("_tags",))) == [APP]
    strict = machine.tree()
    calls: list[Callable[[], object]] = [
        lambda: strict.read(KEY),
        lambda: strict.write(KEY, TWO),
        lambda: strict.drop(KEY),
        lambda: pulls.write(KEY, TWO),
    ]
    for call in calls:
        with pytest.raises(BucketUnavailable):
            call()


def test_pulls_use_the_memory_for_no_other_reason(machine: Machine) -> None:
    """A bucket that answers something else is believed, and a refusal of the credentials is an outage."""
    machine.tree().write(KEY, ONE)
    pulls = machine.tree(Reads.LENIENT)
    machine.bucket.fail("read", error=BucketDenied("no permission to read"))
    assert content_of(pulls) == ONE
    machine.bucket.fail("read", error=StoreError("a record is too large"))
    with pytest.raises(StoreError, match="too large"):
        pulls.read(KEY)


def test_an_earlier_boot_answers_no_pull(machine: Machine) -> None:
    """A deletion that was acknowledged just before a power cut may be missing in the file. Display goes on."""
    machine.tree().write(KEY, ONE)
    machine.restart("boot 2")
    machine.bucket.down = True
    with pytest.raises(BucketUnavailable):
        machine.tree(Reads.LENIENT).read(KEY)
    with pytest.raises(BucketUnavailable):
        machine.tree(Reads.LENIENT).names(TAGS)
    shown = machine.tree(Reads.REMEMBERED)
    assert content_of(shown) == ONE
    assert shown.names(TAGS) == ["1.0"]
    assert shown.read(f"{TAGS}/never") is None
    machine.bucket.down = False
    assert content_of(machine.tree(Reads.LENIENT)) == ONE
    machine.bucket.down = True
    assert content_of(machine.tree(Reads.LENIENT)) == ONE
    with pytest.raises(BucketUnavailable):
        machine.tree(Reads.LENIENT).read(f"{TAGS}/never")


def test_a_disk_without_memory_asks_the_bucket(machine: Machine, tmp_path: Path) -> None:
    """One folder is listed; a catalog waits for the listing; names that are taken are known by one read."""
    machine.tree().write(KEY, ONE)
    machine.tree().write(f"{TAGS}/2.0", ONE)
    machine.tree().drop(f"{TAGS}/2.0")
    fresh = Machine(tmp_path / "fresh", machine.bucket)
    for reads in Reads:
        tree = fresh.tree(reads)
        assert content_of(tree) == ONE
        assert tree.names(TAGS) == ["1.0"]
        with pytest.raises(BucketUnavailable, match="still being listed"):
            list(tree.repositories(("_tags",)))
        with pytest.raises(BucketUnavailable, match="still being listed"):
            tree.registries()
        assert list(tree.had(APP, ("_manifests",))) == ["_manifests"]
        assert list(tree.had(Repo("corp", "free"), ("_manifests",))) == []
        assert tree.name_taken(Repo("corp", "free")) is False
    assert fresh.list_all().is_complete
    assert list(fresh.tree().repositories(("_tags",))) == [APP]
    assert list(fresh.tree().repositories((), had=True)) == [APP]
    assert fresh.tree().registries() == ["corp"]
    assert fresh.tree().names(TAGS) == ["1.0"]


def test_a_memory_that_is_older_than_the_bucket_is_set_right(machine: Machine, tmp_path: Path) -> None:
    """Another machine has changed everything since: the listing shows what differs, and reads do the rest."""
    old = machine.tree()
    for name in ("same", "moved", "dropped", "torn"):
        old.write(f"{TAGS}/{name}", ONE)
    other = Machine(tmp_path / "other", machine.bucket)
    other.list_all()
    other.tree().write(f"{TAGS}/moved", TWO)
    other.tree().drop(f"{TAGS}/dropped")
    other.tree().write(f"{TAGS}/new", ONE)
    machine.bucket.lose(f"{TAGS}/torn")
    listing = machine.list_all()
    assert (listing.listed, listing.changed) == (5, 4)
    for reads in Reads:
        tree = machine.tree(reads)
        names = {"same", "moved", "new"} | ({"dropped", "torn"} if reads is Reads.REMEMBERED else set())
        if reads is Reads.STRICT:
            assert set(tree.names(TAGS)) == {"same", "moved", "new"}
        else:
            assert set(tree.names(TAGS)) <= names
        assert content_of(tree, f"{TAGS}/moved") == TWO
        assert tree.read(f"{TAGS}/dropped") is None
        assert tree.read(f"{TAGS}/torn") is None


def test_a_bucket_that_was_restored_to_an_earlier_day(machine: Machine) -> None:
    """Records that are back, and records that have gone, are as the bucket has them."""
    tree = machine.tree()
    before = dict(machine.bucket.content())
    tree.write(f"{TAGS}/old", ONE)
    saved = dict(machine.bucket.content())
    tree.drop(f"{TAGS}/old")
    tree.write(f"{TAGS}/new", TWO)
    _restore(machine.bucket, saved)
    machine.list_all()
    assert tree.names(TAGS) == ["old"]
    assert content_of(machine.tree(Reads.REMEMBERED), f"{TAGS}/old") == ONE
    assert machine.tree(Reads.REMEMBERED).read(f"{TAGS}/new") is None
    assert before == {}


def _restore(bucket: MemoryBucket, saved: Mapping[str, bytes]) -> None:
    for key in bucket.content().keys() - saved.keys():
        bucket.lose(key)
    for key, content in saved.items():
        bucket.write(key, content)


# ----------------------------------------------------------------------------------------------------- listings


def test_123_a_stale_listing_hides_nothing(machine: Machine) -> None:
    """It shows the bucket of an hour ago: what was written since stays listed, what was dropped stays absent."""
    tree = machine.tree()
    tree.write(f"{TAGS}/dropped", ONE)
    tree.write(f"{TAGS}/moved", ONE)
    machine.bucket.freeze_listings()
    tree.drop(f"{TAGS}/dropped")
    tree.write(f"{TAGS}/moved", TWO)
    tree.write(f"{TAGS}/new", ONE)
    tree.write("repositories/corp/other/_tags/1", ONE)
    assert machine.list_all().is_complete
    for reads in (Reads.STRICT, Reads.LENIENT, Reads.REMEMBERED):
        again = machine.tree(reads)
        assert sorted(again.names(TAGS)) == ["moved", "new"]
        assert content_of(again, f"{TAGS}/moved") == TWO
        assert sorted(again.repositories(("_tags",))) == [Repo("corp", "other"), APP]


def test_123_folders_in_another_order(machine: Machine, tmp_path: Path) -> None:
    """Some stores sort folder by folder, and not by whole keys."""
    names = ["a/_tags/1", "a-b/_tags/1", "a/b/_tags/1", "a.b/_tags/1"]
    for name in names:
        machine.tree().write(f"repositories/corp/{name}", ONE)
    bucket = machine.bucket

    class ByFolder(MemoryBucket):
        def list(self, prefix: str, *, after: str = "") -> Iterator[object]:  # type: ignore[override]
            return iter(sorted(bucket.list(prefix), key=lambda info: info.key.split("/")))

    fresh = Machine(tmp_path / "fresh", cast(MemoryBucket, ByFolder()))
    fresh.bucket.read = bucket.read  # type: ignore[method-assign]
    assert fresh.list_all().is_complete
    again = fresh.list_all()
    assert again.changed == 0
    assert len(list(fresh.tree().repositories(("_tags",)))) == 4


def test_a_listing_that_breaks_off_leaves_the_memory_as_it_was(machine: Machine, tmp_path: Path) -> None:
    """Complete before, complete after; incomplete before, incomplete after."""
    machine.tree().write(KEY, ONE)
    fresh = Machine(tmp_path / "fresh", machine.bucket)
    for each in (machine, fresh):
        machine.bucket.fail("list")
        with pytest.raises(BucketUnavailable):
            each.list_all()
    assert machine.memory.is_complete()
    assert not fresh.memory.is_complete()


def test_too_many_unknown_records_are_not_read_for_a_list(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request is answered with 503 rather than by a thousand calls."""
    monkeypatch.setattr("mirror.store.objects.record_tree._MOST_READS", 2)
    for name in ("1", "2", "3"):
        machine.memory.begin(f"{TAGS}/{name}")
    with pytest.raises(BucketUnavailable, match="3 records of one folder"):
        machine.tree().names(TAGS)


# ----------------------------------------------------------------------------------------------- names that are taken


def test_a_name_is_taken_before_the_first_record_is_there(machine: Machine) -> None:
    """A push that dies in between leaves a name that is taken, which an operator can release."""
    tree = machine.tree()
    seen: list[bool | None] = []
    bucket = machine.bucket
    write = bucket.write

    def look(key: str, content: bytes, *, expect: object = None) -> Version:
        if key == KEY:
            seen.append(machine.tree(memory=machine.another_memory()).name_taken(APP))
        return write(key, content, expect=expect)  # type: ignore[arg-type]

    bucket.write = look  # type: ignore[method-assign]
    tree.write(KEY, ONE)
    assert seen == [True]


def test_a_push_and_a_release_at_once_leave_the_name_taken(machine: Machine) -> None:
    """Whichever comes first, the other one sees it: the release finds the record, or the push takes the name again."""
    folders = ("_manifests", "_tags", "_blobs")
    tree = machine.tree()
    tree.take(APP)
    # the push comes after the release has looked for records, and before it lets the name go
    machine.bucket.before("write", lambda: cast(None, machine.tree().write(KEY, ONE)))
    assert not machine.tree().forget(APP, folders)
    assert tree.name_taken(APP)
    tree.drop(KEY)
    # the release comes after the push has looked at the name, and before it writes the record
    machine.bucket.before("write", lambda: cast(None, machine.tree().forget(APP, folders)))
    tree.write(KEY, TWO)
    assert tree.name_taken(APP)


def test_a_damaged_record_of_a_name_takes_it(machine: Machine) -> None:
    """It must not begin to mean another image."""
    machine.bucket.write(NAME, b"{")
    machine.list_all()
    assert list(machine.tree().had(APP, ("_manifests",))) == ["_manifests"]
    assert list(machine.tree().repositories((), "corp", had=True)) == [APP]


def test_a_name_is_not_known_while_the_memory_is_in_doubt(machine: Machine) -> None:
    """Another mirror may have taken it: the bucket is asked, and if it is down nobody can say."""
    machine.memory.adopt("bucket", "one")
    machine.list_all()
    assert machine.tree().name_taken(APP) is False
    machine.memory.adopt("bucket", "two")
    assert machine.tree().name_taken(APP) is None
    tree = machine.tree()
    assert list(tree.had(APP, ("_manifests",))) == []
    assert tree.name_taken(APP) is False
    machine.memory.adopt("bucket", "three")
    assert tree.name_taken(APP) is None
    machine.bucket.down = True
    with pytest.raises(BucketUnavailable):
        list(tree.had(APP, ("_manifests",)))


def test_an_unconfirmed_bucket_makes_the_memory_useless(machine: Machine) -> None:
    """Until it is certain that it is the right one, nothing is answered from the memory."""
    machine.tree().write(KEY, ONE)
    tree = BucketTree(machine.bucket, machine.memory, Reads.LENIENT, is_confirmed=lambda: False)
    machine.bucket.down = True
    with pytest.raises(BucketUnavailable):
        tree.read(KEY)
    with pytest.raises(BucketUnavailable):
        tree.names(TAGS)
    assert tree.name_taken(APP) is None

"""What every `RecordTree` does. A test class inherits `RecordTreeSuite` and supplies the fixtures.

`tree` is empty; `another` is the same tree in another process.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import ClassVar

import pytest

from mirror.errors import RecordChanged, StaleRequest
from mirror.oci.reference import Repo
from mirror.ports import ABSENT, InTime, RecordTree, Version
from tests.support.ordered_names import must_be_ordered, names

APP = Repo("corp", "team/app")
KEY = "repositories/corp/team/app/_tags/1.0"
ONE, TWO, THREE = b'{"n": 1}', b'{"n": 2}', b'{"n": 3}'


def content_of(tree: RecordTree, key: str = KEY) -> bytes | None:
    """The content of a record."""
    found = tree.read(key)
    return found.record if found else None


def version_of(tree: RecordTree, key: str = KEY) -> Version:
    """The version of a record that is there."""
    found = tree.read(key)
    assert found
    return found.version


def count_up(tree: RecordTree, times: int) -> None:
    """Raise the number in a record by one, so many times, however many others do the same."""
    done = 0
    while done < times:
        with suppress(RecordChanged):
            found = tree.read(KEY)
            number = int(found.record[1:-1]) + 1 if found else 1
            tree.write(KEY, b"[%d]" % number, expect=found.version if found else ABSENT)
            done += 1


def _read(tree: RecordTree, folders: Sequence[str], registry: str, after: str) -> Iterable[Repo]:
    return tree.repositories(folders, registry, after=after)


class RecordTreeSuite:
    """Fixtures to supply: `tree`, `another`."""

    #: After how many places lists are begun; None: after every one.
    places: ClassVar[int | None] = None

    def test_the_life_of_a_record(self, tree: RecordTree, another: RecordTree) -> None:
        """Absent, written, replaced, dropped, and written again; dropping is repeatable."""
        assert tree.read(KEY) is None
        tree.drop(KEY)
        for content in (ONE, TWO, ONE):
            version = tree.write(KEY, content)
            assert content_of(another) == content
            assert version_of(another) == version
        another.drop(KEY)
        another.drop(KEY)
        assert tree.read(KEY) is None
        tree.write(KEY, THREE)
        assert content_of(another) == THREE
        tree.flush()

    def test_a_record_changes_only_from_the_expected_version(self, tree: RecordTree, another: RecordTree) -> None:
        """A refused change or deletion changes nothing; one that was dropped is absent, and no earlier version."""
        first = tree.write(KEY, ONE, expect=ABSENT)
        with pytest.raises(RecordChanged):
            another.write(KEY, TWO, expect=ABSENT)
        with pytest.raises(RecordChanged):
            another.drop(KEY, expect=ABSENT)
        second = another.write(KEY, TWO, expect=first)
        for refused in (first, Version("none")):
            with pytest.raises(RecordChanged):
                tree.write(KEY, THREE, expect=refused)
            with pytest.raises(RecordChanged):
                tree.drop(KEY, expect=refused)
        assert content_of(tree) == TWO
        tree.drop(KEY, expect=second)
        for refused in (first, second):
            with pytest.raises(RecordChanged):
                another.write(KEY, THREE, expect=refused)
        another.drop(KEY, expect=ABSENT)
        another.write(KEY, THREE, expect=ABSENT)
        assert content_of(tree) == THREE

    def test_a_change_that_comes_too_late_is_none(self, tree: RecordTree, another: RecordTree) -> None:
        """Whatever is expected: the moment is judged after the version that the change depends on was read, also when
        that is read within the call.
        """
        asked = []

        def check() -> None:
            asked.append(content_of(another))
            raise StaleRequest("too late")

        for expected in (None, ABSENT):
            with pytest.raises(StaleRequest):
                tree.write(KEY, ONE, expect=InTime(expected, check))
        assert content_of(another) is None
        first = tree.write(KEY, ONE, expect=InTime(ABSENT, lambda: None))
        for known in (None, first):
            with pytest.raises(StaleRequest):
                tree.write(KEY, TWO, expect=InTime(known, check))
            with pytest.raises(StaleRequest):
                tree.drop(KEY, expect=InTime(known, check))
        assert asked == [None, None, ONE, ONE, ONE, ONE]
        with pytest.raises(RecordChanged):
            tree.write(KEY, TWO, expect=InTime(Version("none"), lambda: None))
        assert version_of(another) == first
        tree.drop(KEY, expect=InTime(first, lambda: None))
        assert content_of(another) is None

    def test_no_change_is_lost(self, tree: RecordTree, another: RecordTree) -> None:
        """Of writers that expect the same version one succeeds; the others read again."""
        threads = [threading.Thread(target=count_up, args=(each, 10)) for each in (tree, another) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert content_of(tree) == b"[40]"

    def test_names_are_those_of_one_folder(self, tree: RecordTree, another: RecordTree) -> None:
        """Of records that are there; folders whose names begin alike are others."""
        for name in ("1.0", "2.0", "v1.", "v1"):
            tree.write(f"repositories/corp/team/app/_tags/{name}", ONE)
        tree.write("repositories/corp/team/app-2/_tags/3.0", ONE)
        tree.write("repositories/corp/team/_tags/4.0", ONE)
        another.drop(KEY)
        assert sorted(another.names("repositories/corp/team/app/_tags")) == ["2.0", "v1", "v1."]
        assert sorted(tree.names("repositories/corp/team/_tags")) == ["4.0"]
        assert list(tree.names("repositories/corp/team/app/_manifests")) == []

    def test_folders_of_a_folder(self, tree: RecordTree, another: RecordTree) -> None:
        """Those that have a record, or had one."""
        referrers = "repositories/corp/team/app/_referrers"
        for subject in ("sha256-a", "sha256-b"):
            tree.write(f"{referrers}/{subject}/sha256-c", ONE)
        another.drop(f"{referrers}/sha256-b/sha256-c")
        assert sorted(another.folders(referrers)) == ["sha256-a", "sha256-b"]
        assert sorted(another.names(f"{referrers}/sha256-a")) == ["sha256-c"]
        assert list(another.folders("repositories/corp/team/app/_tags")) == []

    def test_repositories_have_a_record_in_a_folder(self, tree: RecordTree, another: RecordTree) -> None:
        """In one of those that are asked for; of all registries, or of one; those that only had one, if asked."""
        keys = {
            Repo("corp", "team/app"): "_tags",
            Repo("corp", "team"): "_manifests",
            Repo("corp", "team/app/x"): "_blobs",
            Repo("corp", "team/app-2"): "_tags",
            Repo("corp.example", "a"): "_tags",
        }
        for repo, folder in keys.items():
            tree.write(f"repositories/{repo.registry}/{repo.name}/{folder}/sha256-a", ONE)
        wanted = ("_tags", "_manifests")
        listed = [repo for repo, folder in keys.items() if folder in wanted]
        assert sorted(another.repositories(wanted)) == sorted(listed)
        assert sorted(another.repositories(wanted, "corp")) == sorted(listed[:-1])
        assert sorted(another.repositories(("_blobs",), "corp")) == [Repo("corp", "team/app/x")]
        assert sorted(another.registries()) == ["corp", "corp.example"]
        tree.drop("repositories/corp/team/app/_tags/sha256-a")
        assert sorted(another.repositories(wanted, "corp")) == sorted(listed[1:-1])
        assert sorted(another.repositories(wanted, "corp", had=True)) == sorted(listed[:-1])

    @pytest.mark.parametrize("seed", range(3))
    def test_repositories_are_in_the_order_of_text(self, tree: RecordTree, another: RecordTree, seed: int) -> None:
        """After whichever text they begin, of all registries or one; those that lost their records are left out, or
        come in their place if asked.
        """
        listed, others, lost = names(seed, 60), names(seed + 100, 10), names(seed + 200, 10)
        for number, repo in enumerate(listed):
            tree.write(f"repositories/{repo}/{('_tags', '_manifests')[number % 2]}/sha256-a", ONE)
        for repo in others:
            tree.write(f"repositories/{repo}/_blobs/sha256-a", ONE)
        gone = {*lost} - {*listed, *others}
        for repo in gone:
            tree.write(f"repositories/{repo}/_manifests/sha256-a", ONE)
            tree.drop(f"repositories/{repo}/_manifests/sha256-a")
        wanted = ("_tags", "_manifests")
        must_be_ordered(lambda after: another.repositories(wanted, after=after), listed, self.places, seed)
        for registry in ("corp", "corp-x"):
            there = [repo for repo in listed if repo.registry == registry]
            read = partial(_read, another, wanted, registry)
            must_be_ordered(read, there, self.places, seed)
            had = [*there, *(repo for repo in gone if repo.registry == registry)]
            found = list(another.repositories(wanted, registry, had=True, after=str(had[0])))
            assert found == sorted((repo for repo in had if str(repo) > str(had[0])), key=str)

    def test_a_repository_had_records_until_that_is_forgotten(self, tree: RecordTree, another: RecordTree) -> None:
        """It is forgotten only if there are none."""
        folders = ("_manifests", "_tags", "_blobs")
        assert list(tree.had(APP, folders)) == []
        assert tree.forget(APP, folders)
        tree.write(KEY, ONE)
        assert list(another.had(APP, folders))
        assert not another.forget(APP, folders)
        another.drop(KEY)
        assert list(tree.had(APP, folders))
        assert tree.forget(APP, folders)
        assert list(another.had(APP, folders)) == []
        assert tree.forget(APP, folders)
        another.write(KEY, TWO)
        assert list(tree.had(APP, folders))

    def test_a_first_record_is_counted(self, tree: RecordTree, another: RecordTree) -> None:
        """A tag or manifest of a repository that had none."""
        before = another.repositories_added()
        tree.write("repositories/corp/team/app/_blobs/sha256-a", ONE)
        assert another.repositories_added() == before
        tree.write(KEY, ONE)
        assert another.repositories_added() > before
        before = another.repositories_added()
        tree.write(KEY, TWO)
        assert another.repositories_added() == before

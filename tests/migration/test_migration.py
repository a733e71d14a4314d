"""A migration between a disk and a bucket: everything comes over, whatever happens, and what others have stays."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mirror.errors import BucketDenied, BucketUnavailable, StoreError, StoreFull
from mirror.migration.migration import Migration, MigrationOptions
from mirror.migration.progress import MigrationProgress
from mirror.migration.record_folders import MigrationSide
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.oci.reference import Repo
from mirror.policy.hosted_records import BlobLink, LinkState
from mirror.policy.records import TagRecord
from tests.support.bucket_records import Machine
from tests.support.migrating import APP, KINDS, OTHER, Move, Site, bucket_site, disk_site


class Killed(BaseException):
    """The process died."""


@pytest.fixture(params=["to the bucket", "to the disk"])
def move(request: pytest.FixtureRequest, tmp_path: Path) -> Move:
    """A migration, in both directions."""
    disk, (bucket, _) = disk_site(tmp_path / "disk"), bucket_site(tmp_path / "bucket")
    return Move(disk, bucket, tmp_path) if request.param == "to the bucket" else Move(bucket, disk, tmp_path)


@pytest.fixture
def to_bucket(tmp_path: Path) -> tuple[Move, Machine]:
    """One to a bucket, and the machine with the bucket."""
    bucket, machine = bucket_site(tmp_path / "bucket")
    return Move(disk_site(tmp_path / "disk"), bucket, tmp_path), machine


def fill(site: Site) -> None:
    """Something of everything."""
    image = site.push("v1")
    site.push("signature", b"a signature", subject=image)
    site.push("old")
    site.delete("old")
    site.push("untagged")
    site.untag("untagged")
    site.push("v1", b"elsewhere", OTHER)
    gone = Repo("corp", "gone")
    site.push("v1", b"gone", gone)
    site.empty(gone)
    site.json("pins", "a", b'{"key": "a"}')
    site.json("robots", "b", b'{"key": "robot"}')


class CountedCalls:
    """Stands for a port. Something happens before call number `at`, counted over all instances of one `counter`."""

    def __init__(self, inner: Any, counter: list[int], at: int, act: Callable[[], None]) -> None:
        self._inner, self._counter, self._at, self._act = inner, counter, at, act
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **more: Any) -> Any:
            with self._lock:
                self._counter[0] += 1
                hit = self._counter[0] == self._at
            if hit:
                self._act()
            return found(*arguments, **more)

        return call


def _kill() -> None:
    raise Killed


# ------------------------------------------------------------------------------------------------- what comes over


def test_everything_comes_over_and_a_second_pass_finds_nothing_to_do(move: Move) -> None:
    fill(move.source)
    report = move.run()
    assert report.is_complete, report
    assert (report.repositories, report.records_deleted) == (3, 0)
    move.expect_same()
    fetched = move.source.bytes.fetched
    again = move.run()
    assert (again.changes, again.is_complete) == (0, True), again
    assert again.records_same == report.records_written
    assert move.source.bytes.fetched == fetched


def test_what_changed_between_two_passes_is_carried_over(move: Move) -> None:
    """Pushes, moved tags, deletions and their undoing, names, and the records of the site."""
    source = move.source
    fill(source)
    move.run()
    source.push("v2")
    source.push("v1", b"moved")
    source.delete("signature")
    source.records.drop_deleted_tag(APP, "untagged")
    source.json("pins", "a", None)
    source.json("robots", "b", b'{"key": "changed"}')
    source.records.release(Repo("corp", "gone"))
    source.push("v1", b"new", Repo("corp", "new"))
    assert move.source.taken() != move.target.taken()
    report = move.run()
    assert report.is_complete, report
    assert report.records_deleted > 0
    move.expect_same()


def test_the_way_back_carries_what_changed_over_there(tmp_path: Path) -> None:
    """The disk still has what it had before: nobody has changed that, so it becomes as the bucket is."""
    disk, (bucket, _) = disk_site(tmp_path / "disk"), bucket_site(tmp_path / "bucket")
    fill(disk)
    Move(disk, bucket, tmp_path).run()
    bucket.push("v2")
    bucket.push("v1", b"moved")
    bucket.delete("signature")
    back = Move(bucket, disk, tmp_path)
    report = back.run()
    assert report.is_complete, report
    back.expect_same()


def test_only_what_is_hosted_comes_over(move: Move) -> None:
    """Not what is cached; a registry that is no longer configured, but hosts images, does."""
    source = move.source
    source.push("v1", b"old", Repo("retired", "app"))
    source.push("v1", b"was hosted", Repo("docker.io", "library/app"))
    cached = TagRecord("v1", Digest.of(b"cached"), OCI_MANIFEST, 6, 1.0)
    source.catalog.put_tag(Repo("ghcr.io", "app"), cached)
    report = move.run(MigrationOptions(["corp"], ["docker.io", "ghcr.io"], KINDS))
    assert report.is_complete
    assert set(move.target.tree.registries()) == {"retired"}


def test_a_reservation_needs_no_bytes(move: Move) -> None:
    digest = Digest.of(b"nowhere")
    move.source.records.put_link(APP, BlobLink(digest, 7, LinkState.RESERVED, 1.0, by="alice"))
    assert move.run().is_complete
    found = move.target.records.link(APP, digest)
    assert found is not None
    assert found.record.by == "alice"


def test_a_dry_run_changes_nothing(move: Move) -> None:
    fill(move.source)
    report = move.run(MigrationOptions(["corp"], (), KINDS, dry_run=True))
    assert move.target.all_records() == {}
    assert move.target.bytes.contents == {}
    assert move.target.taken() == set()
    done = move.run()
    assert (report.records_written, report.blobs_copied, report.bytes_copied) == (
        done.records_written,
        done.blobs_copied,
        done.bytes_copied,
    )


# ------------------------------------------------------------------------------------------------- of others


def test_what_others_changed_in_the_target_is_left_alone(move: Move) -> None:
    """A tag that moved, one that was deleted and one that came; only with `overwrite` the source wins."""
    fill(move.source)
    move.run()
    theirs = move.target.push("v1", b"theirs")
    move.target.untag("signature")
    move.target.push("theirs", b"more of theirs")
    move.source.push("v1", b"ours")
    report = move.run()
    assert set(report.conflicts.values()) == {
        "has another content in the target",
        "was deleted in the target",
        "is only in the target",
    }
    record = move.target.catalog.get_tag(APP, "v1")
    assert record is not None
    assert record.digest == theirs
    assert move.target.catalog.get_tag(APP, "theirs")
    report = move.run(MigrationOptions(["corp"], (), KINDS, overwrite=True))
    assert report.is_complete, report
    move.expect_same()


def test_a_target_that_has_images_of_its_own_keeps_them(move: Move) -> None:
    """No pass has written anything yet."""
    move.target.push("v1", b"theirs")
    move.source.push("v1", b"ours")
    before = move.target.all_records()
    report = move.run()
    assert not report.is_complete
    assert before.items() <= move.target.all_records().items()


# --------------------------------------------------------------------------------------------- it is interrupted


def test_134_a_pass_that_is_killed_at_any_call_goes_on(tmp_path: Path) -> None:
    """At each moment, what is tagged in the target is whole there; and the next pass finds nobody else."""
    for at in range(1, 2000):
        folder = tmp_path / str(at)
        disk, (bucket, _) = disk_site(folder / "disk"), bucket_site(folder / "bucket")
        move, counter = Move(disk, bucket, folder), [0]
        fill(disk)
        if at % 2:
            move.run()
        disk.push("v2")
        disk.push("v1", b"moved")
        disk.delete("signature")
        target = bucket.side()
        broken = replace(
            target,
            tree=CountedCalls(target.tree, counter, at, _kill),
            bytes=CountedCalls(target.bytes, counter, at, _kill),
        )
        before = disk.all_records()
        try:
            move.run(target=broken)
        except Killed:
            killed = True
        else:
            killed = False
        assert disk.all_records() == before
        expect_whole(bucket)
        # what was perhaps written is the migration's own, also if the source has something else by now
        disk.push("v2", b"pushed before the next pass")
        disk.delete("v1")
        report = move.run()
        assert report.is_complete, (at, report)
        move.expect_same()
        if not killed:
            break
    assert at > 50


def expect_whole(site: Site) -> None:
    """What is tagged has its manifest, and what has a manifest its bytes."""
    for repo in site.tree.repositories(["_tags", "_manifests"], "corp"):
        for tag in site.catalog.tags(repo):
            record = site.catalog.get_tag(repo, tag)
            assert record is None or site.catalog.get_manifest(repo, record.digest), (repo, tag)
        for digest in site.catalog.manifest_digests(repo):
            assert digest in site.bytes.contents


def test_134_a_source_that_changes_at_any_call_is_the_same_after_the_last_pass(tmp_path: Path) -> None:
    """Pushes, deletions and collected bytes while the pass reads; the target is whole all the time."""
    for at in range(1, 2000):
        folder = tmp_path / str(at)
        disk, (bucket, _) = disk_site(folder / "disk"), bucket_site(folder / "bucket")
        move, counter = Move(disk, bucket, folder), [0]
        happened: list[int] = []
        fill(disk)

        def change(disk: Site = disk, happened: list[int] = happened) -> None:
            happened.append(1)
            disk.push("v1", b"pushed meanwhile")
            disk.push("new", b"new", Repo("corp", "newer"))
            disk.untag("signature")
            for digest in list(disk.catalog.manifest_digests(OTHER)):
                disk.catalog.drop_tag(OTHER, "v1")
                disk.catalog.drop_manifest(OTHER, digest)
                disk.records.drop_link(OTHER, Digest.of(b"elsewhere"))
                del disk.bytes.contents[digest], disk.bytes.contents[Digest.of(b"elsewhere")]

        source = disk.side()
        changing = replace(
            source,
            tree=CountedCalls(source.tree, counter, at, change),
            bytes=CountedCalls(source.bytes, counter, at, change),
        )
        report = move.run(source=changing)
        assert report.is_complete, (at, report)
        report = move.run()
        assert report.is_complete, (at, report)
        move.expect_same()
        if not happened:
            break
    assert at > 50


def test_a_bucket_that_does_not_answer_for_a_while_is_waited_for(to_bucket: tuple[Move, Machine]) -> None:
    move, machine = to_bucket
    fill(move.source)
    machine.bucket.fail("write", 3)
    assert move.run().is_complete
    assert len(move.waits) == 3
    move.expect_same()


def test_a_change_whose_answer_was_lost_is_no_conflict(to_bucket: tuple[Move, Machine]) -> None:
    """Written, or deleted, it finds its own work when it is tried again."""
    move, machine = to_bucket
    fill(move.source)
    machine.bucket.fail("write", 7, done=True)
    report = move.run()
    assert report.is_complete, report
    move.source.delete("v1")
    machine.bucket.fail("write", 3, done=True)
    report = move.run()
    assert report.is_complete, report
    assert report.records_deleted > 0
    move.expect_same()


@pytest.mark.parametrize("kind", [BucketUnavailable, BucketDenied])
def test_a_bucket_that_stays_away_ends_the_pass_and_the_next_goes_on(
    to_bucket: tuple[Move, Machine], kind: type[BucketUnavailable]
) -> None:
    """At once if it refuses: that does not change by waiting."""
    move, machine = to_bucket
    fill(move.source)
    machine.bucket.fail("write", 1000, error=kind("not now"))
    with pytest.raises(kind):
        move.run()
    assert bool(move.waits) is not issubclass(kind, BucketDenied)
    machine.bucket.calls.clear()
    while machine.bucket.pending:
        with pytest.raises(kind):
            machine.bucket.write("probe/1", b"1")
    assert move.run().is_complete
    move.expect_same()


def test_a_full_target_ends_the_pass_and_the_next_goes_on(move: Move) -> None:
    fill(move.source)

    def full() -> None:
        raise StoreFull("no space left")

    target = move.target.side()
    with pytest.raises(StoreFull):
        move.run(target=replace(target, bytes=CountedCalls(target.bytes, [0], 5, full)))
    expect_whole(move.target)
    assert move.run().is_complete
    move.expect_same()


def test_a_pass_can_be_stopped(move: Move) -> None:
    fill(move.source)
    source, target = move.source.side(), move.target.side()
    running: list[Migration] = []
    stopping = replace(source, bytes=CountedCalls(source.bytes, [0], 3, lambda: running[0].stop()))
    journal = _Journal()
    migration = Migration(stopping, target, journal, MigrationOptions(["corp"]), MigrationProgress())
    running.append(migration)
    with pytest.raises(StoreError, match="stopped"):
        migration.run()


class _Journal:
    def written(self, prefix: str) -> dict[str, Any]:
        return {}

    def begin(self, versions: Any) -> None: ...

    def done(self, versions: Any) -> None: ...

    def forget(self, keys: Any) -> None: ...

    def close(self) -> None: ...


# ------------------------------------------------------------------------------------------------------- damage


def test_wrong_bytes_do_not_come_over_and_are_named(move: Move) -> None:
    fill(move.source)
    layer = Digest.of(b"layer of v1")
    move.source.bytes.contents[layer] = b"wrong bytes"
    report = move.run()
    assert list(report.problems) == [str(layer)]
    assert "corp/team/app needs it" in report.problems[str(layer)]
    assert layer not in move.target.bytes.contents
    assert move.source.all_records() == move.target.all_records()
    move.source.bytes.put(b"layer of v1")
    assert move.run().is_complete
    move.expect_same()


def test_bytes_that_are_missing_are_named(move: Move) -> None:
    fill(move.source)
    layer = Digest.of(b"layer of v1")
    del move.source.bytes.contents[layer]
    assert move.run().problems[str(layer)].startswith("has no bytes in the source")


def test_a_record_that_cannot_be_read_is_not_deleted_in_the_target(move: Move) -> None:
    """It is there, so it is not absent."""
    fill(move.source)
    move.run()
    source = move.source.side()

    class Unreadable(CountedCalls):
        def read(self, key: str) -> Any:
            if key.endswith("_tags/v1"):
                raise StoreError("reading the record: Input/output error")
            return self._inner.read(key)

    report = move.run(source=replace(source, tree=Unreadable(source.tree, [0], 0, _kill)))
    assert set(report.problems) == {"repositories/corp/team/app/_tags/v1", "repositories/corp/other/_tags/v1"}
    assert move.target.catalog.get_tag(APP, "v1")


def test_a_repository_that_cannot_be_listed_is_not_deleted_in_the_target(move: Move) -> None:
    fill(move.source)
    move.run()
    before = move.target.all_records()
    source = move.source.side()

    class Unlistable(CountedCalls):
        def names(self, folder: str) -> Any:
            if folder.endswith("team/app/_manifests"):
                raise StoreError("listing records: Input/output error")
            return self._inner.names(folder)

    report = move.run(source=replace(source, tree=Unlistable(source.tree, [0], 0, _kill)))
    assert list(report.problems) == ["corp/team/app"]
    assert move.target.all_records() == before


# --------------------------------------------------------------------------------------------------------- pace


def test_the_rate_is_limited_and_the_plan_known(move: Move) -> None:
    fill(move.source)
    taken: list[int] = []

    def take(count: int) -> float:
        taken.append(count)
        return 0.5

    progress = MigrationProgress()
    planned = Migration(
        move.source.side(), move.target.side(), _Journal(), MigrationOptions(["corp"], (), KINDS), progress
    )
    planned.plan()
    report = move.run(take=take)
    assert sum(taken) == report.bytes_copied
    assert report.bytes_copied < progress.all_bytes
    assert set(move.waits) == {0.5}
    assert progress.all_records == report.records_written - len(KINDS)


def test_a_side_is_shown_by_its_name(move: Move) -> None:
    side: MigrationSide = move.source.side()
    assert "from the" in repr(Migration(side, side, _Journal(), MigrationOptions(), MigrationProgress()))

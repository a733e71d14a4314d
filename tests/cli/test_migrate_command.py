"""`mirror migrate`, as operators run it: which side counts at each moment, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mirror.app.stored_records import BUCKET_KINDS, StoredRecords, open_records
from mirror.config import load
from mirror.errors import BucketUnavailable, StoreError
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo, parse_reference
from mirror.policy.hosted_records import QueuedBlob
from mirror.policy.records import Pin
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from mirror.store.local.local_records import local_pins
from mirror.store.local.locks import FileLocks
from tests.support.command import Done, mirror
from tests.support.here import Here
from tests.support.hosted_here import CORP, HostedHere
from tests.support.memory_bucket import MemoryBucket

BUCKET = "s3://images/mirror"
LAYER = b"a layer of some bytes"


@dataclass
class Migrating:
    """A disk with one hosted image and a pin, an empty bucket, and the configurations before and after."""

    folder: Path
    bucket: MemoryBucket

    @property
    def root(self) -> Path:
        """Of the store."""
        return self.folder / "store"

    @property
    def before(self) -> Path:
        """The configuration without a bucket."""
        return self._config("before", "", "")

    @property
    def after(self) -> Path:
        """That with the bucket."""
        return self._config("after", f'bucket = "{BUCKET}"', '[bucket]\nregion = "eu-west-1"\n')

    @property
    def caching(self) -> Path:
        """That with the bucket, which keeps what is cached, too."""
        store = f'bucket = "{BUCKET}"\ncache_in_bucket = true'
        return self._config("caching", store, '[bucket]\nregion = "eu-west-1"\n')

    def _config(self, name: str, store: str, more: str) -> Path:
        file = self.folder / f"{name}.toml"
        file.write_text(
            f'[store]\nroot = "{self.root}"\n{store}\n[[hosted]]\nname = "corp"\n{more}'
            f'[access]\naudit_log = "{self.folder}/audit.log"\n'
        )
        return file

    def run(self, *words: str | Path) -> Done:
        """`mirror migrate` with the configuration that has the bucket."""
        return mirror("migrate", *words, "--config", self.after)

    def here(self) -> HostedHere:
        """The disk, to push to."""
        return HostedHere(self.root)

    def opened(self, config: Path, root: Path | None = None) -> StoredRecords:
        """The records as a mirror that starts finds them. Raises `StoreError` if it must not start."""
        loaded = load(config, {"store": {"root": root}})
        store = LocalStore(Layout(loaded.store.root))
        bucket = self.bucket if loaded.store.bucket else None
        records = open_records(loaded, store.layout, store.id, bucket)
        if records.use is not None:
            try:
                records.use.owner.confirm()
            except StoreError:
                records.use.close()
                raise
        return records

    def tags(self, config: Path, root: Path | None = None) -> list[str]:
        """The tags of the repository, by a mirror that starts."""
        records = self.opened(config, root)
        with ExitStack() as stack:
            if records.use is not None:
                stack.enter_context(closing(records.use))
            return records.strict.catalog.tags(CORP)

    def expect_refused(self, config: Path, why: str) -> None:
        """A mirror with this configuration must not start."""
        with pytest.raises(StoreError, match=why):
            self.opened(config)


@pytest.fixture
def migrating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Migrating]:
    """Nothing was migrated yet."""
    bucket = MemoryBucket()
    monkeypatch.setattr(
        "mirror.app.object_storage.migrating.open_bucket", lambda config: bucket if config.store.bucket else None
    )
    site = Migrating(tmp_path, bucket)
    site.here().image([LAYER], tag="v1")
    pinned = Repo("docker.io", "library/alpine")
    local_pins(Layout(site.root)).put(Pin(pinned, parse_reference("3"), "kept", 1.0))
    yield site
    assert bucket.pending == []


def test_there_and_back(migrating: Migrating) -> None:
    """At each moment, one side counts, and a mirror does not start with the other."""
    first = migrating.run("--to-bucket")
    assert first.status == 0, first
    assert first.out.splitlines() == [
        "to the bucket: 1 repository; copied: 3 blobs (472 B), 0 were there",
        "records: 5 written, 0 deleted, 0 the same",
        "once hosted registries are read-only, run it again with --final",
    ]
    assert migrating.tags(migrating.before) == ["v1"]
    migrating.expect_refused(migrating.after, "a migration to or from this bucket is not finished|is not in the bucket")
    migrating.here().image([b"pushed meanwhile"], tag="v2")
    last = migrating.run("--to-bucket", "--final")
    assert (last.status, last.out.splitlines()[-1]) == (
        0,
        "finished: the bucket counts now; restart the mirror with [store] bucket and without read_only",
    ), last
    assert migrating.tags(migrating.after) == ["v1", "v2"]
    migrating.expect_refused(migrating.before, "hosted content of this disk is in the bucket")
    records = migrating.opened(migrating.after)
    assert records.use is not None
    with closing(records.use):
        assert [pin.reason for pin in records.strict.pins.all()] == ["kept"]
        records.strict.catalog.drop_tag(CORP, "v1")
    back = migrating.run("--to-disk")
    assert back.status == 0, back
    assert migrating.tags(migrating.after) == ["v2"]
    migrating.expect_refused(migrating.before, "hosted content of this disk is in the bucket")
    last = migrating.run("--to-disk", "--final")
    assert last.status == 0, last
    assert migrating.tags(migrating.before) == ["v2"]
    migrating.expect_refused(migrating.after, "is not finished|is not in the bucket")
    assert migrating.run("--to-bucket").status == 0


def test_json_and_the_audit_log_say_what_was_done(migrating: Migrating) -> None:
    done = migrating.run("--to-bucket", "--json", "--rate", "100MB")
    assert done.status == 0, done
    assert done.json["complete"] is True
    assert (done.json["finished"], done.json["blobs_copied"], done.json["records_written"]) == (False, 3, 5)
    lines = [json.loads(line) for line in (migrating.folder / "audit.log").read_text().splitlines()]
    assert (lines[-1]["action"], lines[-1]["way"], lines[-1]["changes"]) == ("migrate", "to the bucket", 8)


def test_a_dry_run_copies_nothing(migrating: Migrating) -> None:
    done = migrating.run("--to-bucket", "--dry-run", "--final")
    assert done.status == 0, done
    assert "would be copied: 3 blobs" in done.out
    assert set(migrating.bucket.content()) == {"mirror.json", "last-used.json"}
    assert not (migrating.folder / "audit.log").exists()


def test_a_copy_of_the_bucket_on_another_disk_is_a_backup(migrating: Migrating) -> None:
    """A mirror starts from it, and it is brought up to date by what is new; it has no final pass."""
    migrating.run("--to-bucket", "--final")
    copy = migrating.folder / "copy"
    done = migrating.run("--to-disk", "--root", copy)
    assert done.status == 0, done
    assert migrating.tags(migrating.before, copy) == ["v1"]
    assert migrating.tags(migrating.after) == ["v1"]
    again = migrating.run("--to-disk", "--root", copy, "--json")
    assert (again.status, again.json["records_written"], again.json["blobs_copied"]) == (0, 0, 0)
    final = migrating.run("--to-disk", "--root", copy, "--final")
    assert (final.status, "without --final, it is a copy" in final.err) == (1, True), final


def test_a_backup_goes_into_a_new_bucket(migrating: Migrating, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bucket is lost; the copy on the disk is not."""
    migrating.run("--to-bucket", "--final")
    copy, new = migrating.folder / "copy", MemoryBucket()
    migrating.run("--to-disk", "--root", copy)
    monkeypatch.setattr("mirror.app.object_storage.migrating.open_bucket", lambda config: new)
    done = migrating.run("--to-bucket", "--root", copy, "--final")
    assert done.status == 0, done
    migrating.bucket = new
    assert migrating.tags(migrating.after, copy) == ["v1"]


@pytest.mark.parametrize("moved", [False, True])
def test_what_is_cached_comes_into_the_bucket_by_itself(migrating: Migrating, moved: bool) -> None:
    """Before or after the hosted content has moved."""
    cached = Repo("docker.io", "library/alpine")
    Here.at(migrating.root).image([b"a cached layer"], repo=cached, tag="3")
    if moved:
        migrating.run("--to-bucket", "--final")
    else:
        migrating.run("--to-bucket")
    config = migrating.caching
    done = mirror("migrate", "--to-bucket", "--cached", "-c", config)
    assert (done.status, done.out) == (
        0,
        "what is cached of 1 repository is in the bucket: 3 blobs, 3 records\n",
    ), done
    there = migrating.bucket.content()
    assert b"a cached layer" in there.values()
    assert "cached/docker.io/library/alpine/_tags/3" in there
    assert not [key for key in there if key.startswith("cached/corp/")]
    again = mirror("migrate", "--to-bucket", "--cached", "-c", config, "--json")
    assert (again.status, again.json["blobs"]) == (0, 3), again


def test_a_mirror_that_only_caches_can_fill_a_new_bucket(migrating: Migrating) -> None:
    """And then start with it."""
    shutil.rmtree(migrating.root)
    Here.at(migrating.root).image([b"a cached layer"], repo=Repo("docker.io", "library/alpine"), tag="3")
    assert mirror("migrate", "--to-bucket", "--cached", "-c", migrating.caching).status == 0
    assert migrating.tags(migrating.caching) == []


# ----------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give either --to-bucket or --to-disk"),
        (["--to-bucket", "--to-disk"], "give either --to-bucket or --to-disk"),
        (["--to-bucket", "--rate", "fast"], "--rate: not a size"),
        (["--to-disk", "--cached"], "--cached goes with --to-bucket and --rate alone"),
        (["--to-bucket", "--cached"], "--cached needs [store] cache_in_bucket = true"),
    ],
)
def test_wrong_words(migrating: Migrating, words: list[str], said: str) -> None:
    done = migrating.run(*words)
    assert (done.status, said in done.err) == (2, True), done


def test_it_needs_the_configuration_with_the_bucket(migrating: Migrating) -> None:
    done = mirror("migrate", "--to-bucket", "-c", migrating.before)
    assert (done.status, "[store] bucket is not set" in done.err) == (2, True), done


def test_a_store_that_is_not_there_is_not_made(migrating: Migrating, tmp_path: Path) -> None:
    done = migrating.run("--to-bucket", "--root", tmp_path / "mistyped")
    assert (done.status, "there is no store at" in done.err) == (2, True), done
    assert not (tmp_path / "mistyped").exists()


def test_a_bucket_that_has_other_things_is_refused(migrating: Migrating) -> None:
    migrating.bucket.write("holiday/photo.jpg", b"...")
    done = migrating.run("--to-bucket")
    assert (done.status, "the prefix must be empty" in done.err) == (1, True), done


def test_a_bucket_that_a_mirror_uses_is_refused(migrating: Migrating) -> None:
    """Whether it is served or being migrated to: it is the mirror of another disk."""
    other = Migrating(migrating.folder / "other", migrating.bucket)
    other.folder.mkdir()
    other.here().image([b"theirs"], tag="theirs")
    assert other.run("--to-bucket").status == 0
    done = migrating.run("--to-bucket")
    assert (done.status, "used by the mirror of another disk" in done.err) == (1, True), done
    assert other.run("--to-bucket", "--final").status == 0
    done = migrating.run("--to-bucket")
    assert (done.status, "used by a mirror already" in done.err) == (1, True), done


def test_the_wrong_way_is_refused(migrating: Migrating) -> None:
    done = migrating.run("--to-disk")
    assert (done.status, "nothing in this bucket" in done.err) == (1, True), done
    migrating.run("--to-bucket")
    done = migrating.run("--to-disk")
    assert (done.status, "not the one that counts" in done.err) == (1, True), done
    migrating.run("--to-bucket", "--final")
    done = migrating.run("--to-bucket")
    assert (done.status, "the way back is --to-disk" in done.err) == (1, True), done


# ------------------------------------------------------------------------------------------------- the final pass


def test_a_mirror_that_takes_pushes_has_no_final_pass(migrating: Migrating, monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[str, Any] = {"hosted": [{"name": "corp", "read_only": False}, {"name": "old", "read_only": True}]}
    monkeypatch.setattr("mirror.cli.hosting.migrate_command.ask_if_running", lambda *_: said)
    done = migrating.run("--to-bucket", "--final")
    assert (done.status, "takes pushes to corp: set read_only = true" in done.err) == (1, True), done
    assert migrating.run("--to-bucket").status == 0
    said["hosted"][0]["read_only"] = True
    assert migrating.run("--to-bucket", "--final").status == 0


@pytest.mark.parametrize(("lock", "what"), [("collect", "garbage collection runs"), ("retention", "retention runs")])
def test_nothing_else_deletes_during_the_final_pass(migrating: Migrating, lock: str, what: str) -> None:
    locks = FileLocks(Layout(migrating.root))
    lease = locks.try_hold_now(lock)
    assert lease is not None
    with lease:
        done = migrating.run("--to-bucket", "--final")
        assert (done.status, what in done.err) == (1, True), done
        assert migrating.run("--to-bucket").status == 0
    taken: list[object] = []
    migrating.here().image([b"new"], tag="v2")
    migrating.bucket.before("upload", lambda: taken.append(locks.try_hold_now(lock)))
    assert migrating.run("--to-bucket", "--final").status == 0
    assert taken == [None]


def test_a_source_that_changes_during_the_final_pass_does_not_finish_it(migrating: Migrating) -> None:
    migrating.run("--to-bucket")
    migrating.here().image([b"new"], tag="v2")

    def push() -> None:
        # after the tags of the only repository were read
        migrating.here().image([b"pushed by somebody"], tag="v3")

    migrating.bucket.before("upload", push)
    done = migrating.run("--to-bucket", "--final")
    assert (done.status, "of the source changed during the last pass" in done.err) == (1, True), done
    assert migrating.tags(migrating.before) == ["v1", "v2", "v3"]
    assert migrating.run("--to-bucket", "--final").status == 0
    assert migrating.tags(migrating.after) == ["v1", "v2", "v3"]


def test_damage_keeps_it_from_finishing_unless_that_is_allowed(migrating: Migrating) -> None:
    digest = Digest.of(LAYER)
    names = migrating.here().names
    names.collect(digest, names.queue(QueuedBlob(digest, 1.0)))
    done = migrating.run("--to-bucket", "--final")
    assert done.status == 1
    assert done.err.splitlines() == [
        f"not copied: {digest}: has no bytes in the source; corp/team/app needs it",
        "not finished: the source still counts",
    ]
    assert migrating.tags(migrating.before) == ["v1"]
    done = migrating.run("--to-bucket", "--final", "--allow-damaged")
    assert (done.status, "finished: the bucket counts now" in done.out) == (0, True), done


@pytest.mark.parametrize("way", ["--to-bucket", "--to-disk"])
def test_134_a_final_pass_that_dies_at_its_end_is_run_again(
    migrating: Migrating, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Between its last steps, neither side is served by a mirror that starts."""
    if way == "--to-disk":
        migrating.run("--to-bucket", "--final")

    def die(*_: object) -> None:
        raise BucketUnavailable("killed")

    with monkeypatch.context() as patched:
        if way == "--to-bucket":
            patched.setattr("mirror.store.objects.bucket_owner.BucketOwner.set_migrating", die)
        else:
            patched.setattr("mirror.store.local.bucket_note.BucketNote.drop", die)
        assert migrating.run(way, "--final").status == 1
    migrating.expect_refused(migrating.before, "in the bucket")
    migrating.expect_refused(migrating.after, "is not finished")
    assert migrating.run(way, "--final").status == 0
    assert migrating.tags(migrating.after if way == "--to-bucket" else migrating.before) == ["v1"]


@pytest.mark.parametrize("kind", sorted(BUCKET_KINDS))
@pytest.mark.parametrize("hosted", ["", '[[hosted]]\nname = "corp"\n'])
def test_decisions_are_never_left_behind(tmp_path: Path, kind: str, hosted: str) -> None:
    """Neither on the disk nor in the bucket, whether anything is hosted or not: a robot that was revoked would be
    back, and a frozen tag would move. A disk without decisions simply starts.
    """

    def opened(bucket: MemoryBucket | None) -> StoredRecords:
        records = open_records(config, layout, LocalStore(layout).id, bucket)
        if records.use is not None:
            with closing(records.use):
                # as a command does that writes
                records.use.owner.must_own()
        return records

    file = tmp_path / "mirror.toml"
    file.write_text(f'[store]\nroot = "{tmp_path}/store"\n[[upstream]]\nname = "docker.io"\nurl = "http://x"\n{hosted}')
    config, bucket = load(file), MemoryBucket()
    layout = Layout(config.store.root)
    opened(None).json(kind).put("key", {"decided": True})
    with pytest.raises(StoreError, match=rf"\({kind}\) are not in the bucket yet: run mirror migrate --to-bucket"):
        opened(bucket)
    assert bucket.content() == {}
    opened(None).json(kind).drop("key")
    opened(bucket)
    with pytest.raises(StoreError, match=r"is in the bucket with the id .* run mirror migrate --to-disk"):
        opened(None)

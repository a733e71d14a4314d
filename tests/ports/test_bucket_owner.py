"""A bucket is used only if it is the right one, and written to by one mirror at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from mirror.errors import BucketUnavailable, BucketUnfit, StoreError
from mirror.index.record_memory import SqliteRecordMemory
from mirror.store.local.blobs import LocalStore
from mirror.store.local.bucket_note import BucketNote
from mirror.store.local.layout import Layout
from mirror.store.local.locks import RunLock, locked
from mirror.store.objects.bucket_owner import IDENTITY, LAST_USED, BucketOwner, OwnedBucket
from mirror.store.objects.record_listing import RecordListing
from mirror.store.objects.record_tree import BucketTree, Reads
from tests.support.memory_bucket import MemoryBucket
from tests.support.record_tree_suite import APP, KEY, ONE, TWO, content_of


class Process:
    """A process of a server on a disk, or a command there."""

    def __init__(
        self,
        root: Path,
        bucket: MemoryBucket,
        *,
        serves: bool = True,
        migrates: bool = False,
        upstreams: Collection[str] = (),
    ) -> None:
        self.layout = Layout(root)
        self.disk = LocalStore(self.layout).id
        self.memory = SqliteRecordMemory(self.layout.record_memory, "boot")
        self.run = RunLock(self.layout, "bucket-run") if serves else None
        self.owner = BucketOwner(
            bucket,
            self.memory,
            BucketNote(self.layout),
            self.disk,
            lambda: locked(self.layout, "bucket-owner"),
            upstreams,
            serves=serves,
            is_first=self.run is None or self.run.is_first,
            migrates=migrates,
        )
        self.bucket = OwnedBucket(bucket, self.owner)

    def tree(self, reads: Reads = Reads.STRICT) -> BucketTree:
        """The records as this process sees them."""
        return BucketTree(self.bucket, self.memory, reads, is_confirmed=lambda: self.owner.is_confirmed)

    def list_all(self) -> None:
        """Complete the memory."""
        for _ in RecordListing(self.bucket, self.memory).steps():
            pass

    def start(self) -> None:
        """What a server does first."""
        self.owner.confirm()
        self.list_all()

    def end(self) -> None:
        """The process ends."""
        self.memory.close()
        if self.run is not None:
            self.run.close()


@pytest.fixture
def bucket() -> MemoryBucket:
    """Nobody has used it."""
    return MemoryBucket()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of a store."""
    return tmp_path / "store"


def test_the_first_mirror_gives_the_bucket_its_id(root: Path, bucket: MemoryBucket) -> None:
    """It is noted on the disk; the next start finds the same; another disk takes it, too."""
    one = Process(root, bucket)
    assert not one.owner.is_confirmed
    one.tree().write(KEY, ONE)
    said = json.loads(bucket.content()[IDENTITY])
    assert said == {"layout": 1, "id": one.owner.id}
    assert BucketNote(one.layout).read() == one.owner.id
    one.end()
    again = Process(root, bucket)
    assert content_of(again.tree()) == ONE
    assert again.owner.id == one.owner.id
    assert json.loads(bucket.content()[LAST_USED])["disk"] == again.disk


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda bucket: bucket.write(IDENTITY, b'{"layout": 1, "id": "other"}'), "has the id other"),
        (lambda bucket: bucket.lose(IDENTITY), f"has no {IDENTITY}"),
        (lambda bucket: bucket.write(IDENTITY, b'{"layout": 2, "id": "x"}'), "layout 2"),
        (lambda bucket: bucket.write(IDENTITY, b"{"), "is damaged"),
        (lambda bucket: bucket.write(IDENTITY, b""), "is damaged"),
    ],
)
def test_another_bucket_is_never_used(
    root: Path, bucket: MemoryBucket, spoil: Callable[[MemoryBucket], object], why: str
) -> None:
    """Every record would seem absent, and every name free. Nothing is read, nothing is written."""
    one = Process(root, bucket)
    one.tree().write(KEY, ONE)
    one.end()
    spoil(bucket)
    before = bucket.content()
    again = Process(root, bucket)
    for call in (again.tree().read, again.tree().drop, lambda key: again.tree().write(key, TWO)):
        with pytest.raises(BucketUnfit, match=why):
            call(KEY)
    assert again.tree().name_taken(APP) is None
    with pytest.raises(BucketUnfit, match=why):
        list(again.tree().had(APP, ("_tags",)))
    assert bucket.content() == before


def test_a_prefix_with_other_objects_is_refused(root: Path, bucket: MemoryBucket) -> None:
    """Something else uses it, or its mark was lost; what probes leave does not count."""
    bucket.write("probe/x", b"x")
    bucket.write("zoo/monkey", b"x")
    one = Process(root, bucket)
    with pytest.raises(BucketUnfit, match="zoo/monkey"):
        one.owner.confirm()
    bucket.lose("zoo/monkey")
    one.owner.confirm()
    assert one.owner.is_confirmed


def test_a_bucket_that_does_not_answer_is_asked_again(root: Path, bucket: MemoryBucket) -> None:
    """Until then nothing is known, and nothing is made up."""
    bucket.down = True
    one = Process(root, bucket)
    for _ in range(2):
        with pytest.raises(BucketUnavailable):
            one.tree().read(KEY)
    assert not one.owner.is_confirmed
    bucket.down = False
    assert one.tree().read(KEY) is None
    assert one.owner.is_confirmed


@pytest.mark.parametrize("verb", ["read", "write", "list"])
def test_a_start_that_breaks_off_is_repeated(root: Path, bucket: MemoryBucket, verb: str) -> None:
    """At whatever call, before or after it took effect."""
    for done in (False, True):
        bucket.fail(verb, done=done)
        one = Process(root, bucket)
        with pytest.raises(BucketUnavailable):
            one.start()
        one.end()
    last = Process(root, bucket)
    last.tree().write(KEY, ONE)
    assert last.owner.watch()


def test_the_processes_of_a_server_use_it_together(root: Path, bucket: MemoryBucket) -> None:
    """Also one that starts later, and a command on the same disk."""
    processes = [Process(root, bucket) for _ in range(3)]
    for each in processes:
        each.tree().write(KEY, ONE)
    processes[0].end()
    later, command = Process(root, bucket), Process(root, bucket, serves=False)
    command.tree().write(KEY, TWO)
    for each in (*processes[1:], later):
        assert each.owner.watch()
        assert content_of(each.tree()) == TWO
    assert json.loads(bucket.content()[LAST_USED])["nonce"] == later.memory.owner()[1]


def test_a_restart_keeps_what_is_remembered(root: Path, bucket: MemoryBucket) -> None:
    """Nobody else was there meanwhile."""
    one = Process(root, bucket)
    one.tree().write(KEY, ONE)
    one.list_all()
    one.end()
    again = Process(root, bucket)
    assert again.tree().name_taken(APP) is None
    again.owner.confirm()
    assert again.memory.is_complete()
    assert again.tree().name_taken(APP) is True
    bucket.down = True
    assert content_of(again.tree(Reads.LENIENT)) == ONE


def test_a_mirror_that_is_overtaken_stops_writing(root: Path, tmp_path: Path, bucket: MemoryBucket) -> None:
    """All its processes do, also one that starts later; what it remembers counts no more, also after its return."""
    old, beside = Process(root, bucket), Process(root, bucket)
    old.tree().write(KEY, ONE)
    old.list_all()
    beside.owner.confirm()
    new = Process(tmp_path / "new", bucket)
    new.tree().write(KEY, TWO)
    assert not old.owner.watch()
    later = Process(root, bucket)
    for each in (old, beside, later):
        with pytest.raises(BucketUnavailable, match="another mirror"):
            each.tree().write(KEY, ONE)
        with pytest.raises(BucketUnavailable, match="another mirror"):
            each.owner.check()
        assert content_of(each.tree()) == TWO
        assert not each.memory.is_complete()
        assert each.tree().name_taken(APP) is not False
    assert new.owner.watch()
    for each in (old, beside, later):
        each.end()
    back = Process(root, bucket)
    back.tree().write(KEY, ONE)
    assert not back.memory.is_complete()
    assert not new.owner.watch()


def test_a_command_writes_only_where_the_server_does(root: Path, tmp_path: Path, bucket: MemoryBucket) -> None:
    """The server elsewhere would not know of it. Reading is allowed, and rests on nothing old."""
    first = Process(root, bucket, serves=False)
    first.tree().write(KEY, ONE)
    first.end()
    server = Process(tmp_path / "server", bucket)
    server.tree().write(KEY, TWO)
    for _ in range(2):
        command = Process(root, bucket, serves=False)
        with pytest.raises(BucketUnavailable, match="run the command there"):
            command.tree().write(KEY, ONE)
        assert content_of(command.tree()) == TWO
        assert not command.memory.is_complete()
        command.list_all()
        assert command.memory.is_complete()
        command.end()
    assert server.owner.watch()


def test_a_round_sees_that_the_bucket_was_exchanged(root: Path, bucket: MemoryBucket) -> None:
    """What it would delete rests on records that are not those of this bucket."""
    one = Process(root, bucket)
    one.owner.check()
    bucket.write(IDENTITY, b'{"layout": 1, "id": "other"}')
    with pytest.raises(BucketUnfit, match="no longer"):
        one.owner.check()
    bucket.lose(IDENTITY)
    with pytest.raises(BucketUnfit, match="no longer"):
        one.owner.check()


def test_a_bucket_under_migration_is_for_the_migration_alone(root: Path, bucket: MemoryBucket) -> None:
    """Until it is done, whoever else starts is refused."""
    migrating = Process(root, bucket, migrates=True)
    migrating.tree().write(KEY, ONE)
    assert migrating.owner.identity()
    migrating.owner.set_migrating(True)
    migrating.owner.set_migrating(True)
    server = Process(root, bucket)
    with pytest.raises(BucketUnfit, match="not finished"):
        server.owner.confirm()
    migrating.owner.set_migrating(False)
    server.owner.confirm()
    found = server.owner.identity()
    assert found is not None
    assert not found.is_migrating


def test_an_upstream_must_have_no_hosted_names(root: Path, bucket: MemoryBucket) -> None:
    """Its images would mean something else from one configuration to the next; released names do not count."""
    one = Process(root, bucket)
    one.tree().write(KEY, ONE)
    one.end()
    refused = Process(root, bucket, upstreams=["docker.io", "corp"])
    with pytest.raises(BucketUnfit, match="corp is an upstream, and the bucket has hosted images"):
        refused.owner.confirm()
    refused.end()
    other = Process(root, bucket, upstreams=["docker.io"])
    other.tree().drop(KEY)
    assert other.tree().forget(APP, ("_tags",))
    other.end()
    Process(root, bucket, upstreams=["corp"]).owner.confirm()


def test_a_damaged_note_is_no_missing_one(root: Path, bucket: MemoryBucket) -> None:
    """The disk may belong to another bucket."""
    one = Process(root, bucket)
    one.layout.bucket_note.write_bytes(b"{")
    with pytest.raises(StoreError, match="is damaged"):
        one.owner.confirm()
    assert bucket.content() == {}
    BucketNote(one.layout).drop()
    BucketNote(one.layout).drop()
    one.owner.confirm()


def test_a_memory_that_is_lost_while_the_mirror_runs(root: Path, bucket: MemoryBucket) -> None:
    """The mirror goes on writing, as do its other processes and commands; nothing old is believed."""
    one, beside = Process(root, bucket), Process(root, bucket)
    one.tree().write(KEY, ONE)
    one.list_all()
    beside.owner.confirm()
    for suffix in ("", "-wal", "-shm"):
        one.layout.record_memory.with_name(f"bucket.sqlite{suffix}").unlink(missing_ok=True)
    command = Process(root, bucket, serves=False)
    command.tree().write(KEY, TWO)
    for each in (one, beside):
        each.tree().write(KEY, ONE)
        assert each.owner.watch()
    assert not one.memory.is_complete()
    assert content_of(one.tree()) == ONE


def test_a_mark_of_use_that_is_lost_is_made_anew(root: Path, tmp_path: Path, bucket: MemoryBucket) -> None:
    """It is no sign of another mirror; a mirror that was overtaken does not make it."""
    one = Process(root, bucket)
    one.tree().write(KEY, ONE)
    before = bucket.content()[LAST_USED]
    for spoil in (lambda: bucket.lose(LAST_USED), lambda: bucket.write(LAST_USED, b"{")):
        spoil()
        assert one.owner.watch()
        assert bucket.content()[LAST_USED] == before
    new = Process(tmp_path / "new", bucket)
    new.owner.confirm()
    assert not one.owner.watch()
    bucket.lose(LAST_USED)
    assert not one.owner.watch()
    assert LAST_USED not in bucket.content()
    assert new.owner.watch()
    assert json.loads(bucket.content()[LAST_USED])["disk"] == new.disk

"""A bucket is used only if it is the right one, and written to by one mirror at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, cast

import pytest

from mirror.errors import BucketUnavailable, BucketUnfit, StoreError
from mirror.index.record_memory import SqliteRecordMemory
from mirror.oci.reference import Repo
from mirror.ports import Bucket
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
        bucket: Bucket,
        *,
        serves: bool = True,
        migrates: bool = False,
        upstreams: Collection[str] = (),
    ) -> None:
        self.layout = Layout(root)
        #: Its clock, in seconds.
        self.now = 1000.0
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
            run=self.run.run if self.run is not None else "",
            migrates=migrates,
            now=lambda: self.now,
        )
        self.bucket = OwnedBucket(bucket, self.owner)

    def tree(self, reads: Reads = Reads.STRICT) -> BucketTree:
        """The records as this process sees them."""
        return BucketTree(
            self.bucket,
            self.memory,
            reads,
            is_confirmed=lambda: self.owner.is_confirmed,
            see=self.owner.seen_again,
        )

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


def test_a_command_that_only_reads_leaves_the_disk_as_it_is(root: Path, bucket: MemoryBucket) -> None:
    """`mirror check` of a configuration to come: the mirror that runs without the bucket goes on. A command that writes
    into the bucket notes it on the disk before.
    """
    command = Process(root, bucket, serves=False)
    assert command.tree().read(KEY) is None
    assert BucketNote(command.layout).read() is None
    command.tree().write(KEY, ONE)
    assert BucketNote(command.layout).read() == command.owner.id != ""


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


class Address:
    """An address behind which another bucket may appear."""

    def __init__(self, bucket: MemoryBucket) -> None:
        self.bucket = bucket

    def __getattr__(self, verb: str) -> Any:
        return lambda *words, **more: getattr(self.bucket, verb)(*words, **more)


@pytest.fixture(params=["empty", "foreign"])
def other(request: pytest.FixtureRequest, tmp_path: Path) -> MemoryBucket:
    """A bucket that is not the right one: empty, or that of another mirror."""
    bucket = MemoryBucket()
    if request.param == "foreign":
        Process(tmp_path / "foreign", bucket).start()
    return bucket


_NEW, _FREE = Repo("corp", "new"), Repo("corp", "free")
_CALLS: dict[str, Callable[[BucketTree], object]] = {
    "replace": lambda tree: tree.write(KEY, TWO),
    "create": lambda tree: tree.write("repositories/corp/new/_tags/v1", TWO),
    "drop": lambda tree: tree.drop(KEY),
    "take": lambda tree: tree.take(_FREE),
    "had": lambda tree: list(tree.had(_FREE, ("_tags",))),
    "learn": lambda tree: tree.learn_name(_FREE),
    "names": lambda tree: list(tree.names("repositories/corp/new/_tags")),
}


@pytest.mark.parametrize("knows", [True, False])
@pytest.mark.parametrize("name", _CALLS)
def test_an_absence_in_another_bucket_is_not_believed(
    root: Path, bucket: MemoryBucket, other: MemoryBucket, name: str, knows: bool
) -> None:
    """A push would be lost, a deletion would not last, and upstream would be asked for a name that seems free: whether
    the memory knows the records or not, from the first call on, though the bucket was the right one a moment ago.
    """
    address = Address(bucket)
    one = Process(root, cast(Bucket, address))
    one.tree().write(KEY, ONE)
    one.tree().take(_NEW)
    if not knows:
        for suffix in ("", "-wal", "-shm"):
            one.layout.record_memory.with_name(f"bucket.sqlite{suffix}").unlink(missing_ok=True)
    assert one.owner.watch()
    address.bucket = other
    with pytest.raises(StoreError):
        _CALLS[name](one.tree())
    for _ in range(2):
        one.now += 60
        with pytest.raises(BucketUnfit):
            one.tree(Reads.LENIENT).read(KEY)
    assert one.tree().name_taken(_NEW) is None
    for call in (one.owner.watch, one.owner.check, one.list_all):
        with pytest.raises(BucketUnfit):
            call()
    address.bucket = bucket
    one.now += 60
    assert content_of(one.tree()) == ONE
    assert list(one.tree().had(_NEW, ("_tags",))) == ["_tags"]
    assert list(one.tree().had(_FREE, ("_tags",))) == []
    assert one.owner.watch()


def test_a_pull_of_what_was_there_is_no_absence(root: Path, bucket: MemoryBucket, other: MemoryBucket) -> None:
    """It is answered by an error from the first call on, and the memory keeps what it knows."""
    address = Address(bucket)
    one = Process(root, cast(Bucket, address))
    one.tree().write(KEY, ONE)
    assert one.owner.watch()
    address.bucket = other
    before = one.memory.recall(KEY)
    with pytest.raises(BucketUnfit, match="no longer"):
        one.tree(Reads.LENIENT).read(KEY)
    assert one.memory.recall(KEY) == before
    assert LAST_USED not in other.content() or other.content()[LAST_USED] != bucket.content()[LAST_USED]


def test_the_identity_is_looked_at_every_few_seconds(root: Path, bucket: MemoryBucket) -> None:
    """Reads cost no second request, and a version that is still there proves enough."""
    one = Process(root, bucket)
    one.owner.confirm()
    one.tree().write(KEY, ONE)
    bucket.log.clear()
    for _ in range(5):
        assert one.bucket.read("absent", 10) is None
    assert [keys for verb, keys in bucket.log if IDENTITY in keys] == []
    one.now += 60
    for _ in range(5):
        assert one.bucket.head("absent") is None
    assert [keys for verb, keys in bucket.log if IDENTITY in keys] == [(IDENTITY,)]
    one.now += 60
    for _ in range(5):
        assert content_of(one.tree()) == ONE
        assert one.bucket.read("absent", 10) is None
    assert [keys for verb, keys in bucket.log if IDENTITY in keys] == [(IDENTITY,)]


def test_a_memory_from_a_backup_is_not_trusted(root: Path, bucket: MemoryBucket) -> None:
    """It is of this disk and this boot, and lacks what was revoked and taken since; commands change nothing."""
    one, robot = Process(root, bucket), "state/robots/x.json"
    one.tree().write(robot, ONE)
    one.list_all()
    one.end()
    backup = root / "backup"
    shutil.copy(one.layout.record_memory, backup)
    command = Process(root, bucket, serves=False)
    used = bucket.content()[LAST_USED]
    command.tree().write(KEY, ONE)
    assert command.memory.is_complete()
    command.end()
    assert bucket.content()[LAST_USED] == used
    later = Process(root, bucket)
    later.owner.confirm()
    assert later.memory.is_complete()
    assert bucket.content()[LAST_USED] != used
    later.tree().drop(robot)
    later.end()
    for serves in (False, True):
        for suffix in ("-wal", "-shm"):
            one.layout.record_memory.with_name(f"bucket.sqlite{suffix}").unlink(missing_ok=True)
        shutil.copy(backup, one.layout.record_memory)
        again = Process(root, bucket, serves=serves)
        again.owner.confirm()
        assert not again.memory.is_complete()
        assert again.tree().name_taken(APP) is None
        assert again.tree(Reads.OWN).read(robot) is None
        again.end()


def test_what_the_disk_remembers_of_an_upstream(root: Path, bucket: MemoryBucket) -> None:
    """While the bucket is down, hosted names refuse the upstream that has taken the name of their registry; the other
    upstreams do not matter, and a name that was released does not.
    """
    one = Process(root, bucket)
    one.tree().write(KEY, ONE)
    one.end()
    bucket.down = True
    refused = Process(root, bucket, upstreams=["docker.io", "corp"])
    with pytest.raises(BucketUnfit, match="corp is an upstream, and the bucket has hosted images"):
        refused.owner.refuse_remembered()
    assert refused.owner.refused == {"corp"}
    refused.end()
    Process(root, bucket, upstreams=["docker.io"]).owner.refuse_remembered()
    bucket.down = False
    other = Process(root, bucket)
    other.tree().drop(KEY)
    assert other.tree().forget(APP, ("_tags",))
    other.end()
    bucket.down = True
    Process(root, bucket, upstreams=["corp"]).owner.refuse_remembered()


class Replica(Process):
    """A process of a replica of a cluster."""

    def __init__(self, root: Path, bucket: Bucket, *, cluster: str = "mirror", serves: bool = True) -> None:
        super().__init__(root, bucket, serves=serves)
        self.owner = BucketOwner(
            bucket,
            self.memory,
            BucketNote(self.layout),
            self.disk,
            lambda: locked(self.layout, "bucket-owner"),
            run=self.run.run if self.run is not None else "",
            cluster=cluster,
            now=lambda: self.now,
        )
        self.bucket = OwnedBucket(bucket, self.owner)


def test_the_replicas_of_a_cluster_do_not_overtake_each_other(tmp_path: Path, bucket: MemoryBucket) -> None:
    """They have one nonce, also after a restart, which leaves what is remembered of use; a command writes as well."""
    one, two = Replica(tmp_path / "one", bucket), Replica(tmp_path / "two", bucket)
    for each in (one, two, one):
        each.start()
        each.tree().write(KEY, ONE)
        assert each.owner.watch()
    said = json.loads(bucket.content()[LAST_USED])
    assert said == {"cluster": "mirror", "nonce": one.memory.owner()[1]}
    one.end()
    again = Replica(tmp_path / "one", bucket)
    again.owner.confirm()
    assert again.memory.is_complete()
    command = Replica(tmp_path / "two", bucket, serves=False)
    command.tree().write(KEY, TWO)
    for each in (again, two, command):
        assert each.owner.watch()
        assert not each.owner.is_overtaken


@pytest.mark.parametrize("other", ["mirror", "another cluster"])
def test_a_cluster_and_another_mirror_overtake_each_other(tmp_path: Path, bucket: MemoryBucket, other: str) -> None:
    """As two mirrors do: the one that is overtaken only reads, and believes nothing that it remembers."""
    one, two = Replica(tmp_path / "one", bucket), Replica(tmp_path / "two", bucket)
    for each in (one, two):
        each.start()
        each.tree().write(KEY, ONE)
    single: Process = (
        Process(tmp_path / "3", bucket) if other == "mirror" else Replica(tmp_path / "3", bucket, cluster="test")
    )
    single.start()
    single.tree().write(KEY, TWO)
    for each in (one, two):
        assert not each.owner.watch()
        assert each.owner.is_overtaken
        with pytest.raises(BucketUnavailable, match="another mirror"):
            each.tree().write(KEY, ONE)
        assert not each.memory.is_complete()
        each.end()
    back = Replica(tmp_path / "one", bucket)
    back.start()
    back.tree().write(KEY, ONE)
    assert not single.owner.watch()
    assert json.loads(bucket.content()[LAST_USED])["cluster"] == "mirror"


def test_a_replica_takes_part_again_when_its_cluster_has_the_bucket_back(tmp_path: Path, bucket: MemoryBucket) -> None:
    """By itself, also in processes that began meanwhile; it believes nothing that it remembers until it has listed."""
    one, two = Replica(tmp_path / "one", bucket), Replica(tmp_path / "two", bucket)
    for each in (one, two):
        each.start()
    two.tree().write(KEY, ONE)
    single = Process(tmp_path / "3", bucket)
    single.start()
    single.tree().write(KEY, TWO)
    for each in (one, two):
        assert not each.owner.watch()
    one.end()
    # while the other mirror uses the bucket, a reload changes nothing
    late = Replica(tmp_path / "two", bucket)
    late.owner.confirm()
    assert not late.owner.watch()
    assert not two.owner.watch()
    back = Replica(tmp_path / "one", bucket)
    back.start()
    with pytest.raises(BucketUnavailable, match="another mirror"):
        late.tree().write(KEY, ONE)
    assert two.owner.watch()
    for each in (two, late, Replica(tmp_path / "two", bucket)):
        each.owner.confirm()
        assert not each.owner.is_overtaken
        assert not each.memory.is_complete()
        assert content_of(each.tree(Reads.OWN)) == TWO
    two.list_all()
    for number, each in enumerate((two, late)):
        each.tree().write(KEY, b"by %d" % number)
        assert each.owner.watch()
    assert content_of(back.tree()) == b"by 1"
    assert not single.owner.watch()
    again = Process(tmp_path / "4", bucket)
    again.start()
    for each in (late, two):
        assert not each.owner.watch()
        assert each.owner.is_overtaken


def test_a_command_without_a_cluster_does_not_write_into_the_bucket_of_one(
    tmp_path: Path, bucket: MemoryBucket
) -> None:
    """It would not say in journals what it changes."""
    one = Replica(tmp_path / "one", bucket)
    one.start()
    one.end()
    command = Process(tmp_path / "one", bucket, serves=False)
    with pytest.raises(BucketUnavailable, match="or by a cluster"):
        command.tree().write(KEY, ONE)


def test_replicas_agree_when_the_note_of_who_uses_the_bucket_is_lost(tmp_path: Path, bucket: MemoryBucket) -> None:
    """Whichever looks first makes it anew."""
    one, two = Replica(tmp_path / "one", bucket), Replica(tmp_path / "two", bucket)
    for each in (one, two):
        each.start()
    bucket.lose(LAST_USED)
    late = Replica(tmp_path / "three", bucket)
    late.start()
    for each in (one, two, late):
        assert each.owner.watch()
        each.tree().write(KEY, ONE)

"""Contents in a bucket and on the disk: read from wherever they are, verified, and never "absent" by mistake."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

import pytest

from mirror.errors import BlobDamaged, BlobUnknown, BucketUnavailable, MirrorError, StoreError, StoreFull
from mirror.graph.manifests import certain_manifest
from mirror.graph.tiered_contents import TieredContents
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.ports import BlobInfo, BlobObject
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from tests.support.memory_bucket import MemoryBucket
from tests.support.one_object import KEY, OneObject

CONTENT = b"0123456789" * 1000
DIGEST = Digest.of(CONTENT)
SIZE = len(CONTENT)
WRONG = CONTENT[:-1] + b"x"
OTHER = Digest.of(b"another")


class Tiers:
    """A cache on a disk, and a bucket with one blob."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cache = LocalStore(Layout(root))
        self.bucket = MemoryBucket()
        self.bucket.write(KEY, CONTENT)
        self.objects = OneObject(DIGEST, SIZE)
        self.stored: list[BlobInfo] = []
        self.contents = TieredContents(self.cache, self.bucket, self.objects, stored=self.stored.append)

    def read_all(self) -> bytes:
        """What `open` gives."""
        info, reader = self.contents.open(DIGEST)
        try:
            return reader.pread(info.size, 0)
        finally:
            reader.close()

    def put_back(self) -> None:
        """Let the object be there."""
        self.bucket.write(KEY, CONTENT)

    def damage(self) -> None:
        """Give the copy on the disk other bytes."""
        path = Path(self.cache.layout.blob(DIGEST))
        path.chmod(0o600)
        path.write_bytes(WRONG)


@pytest.fixture
def tiers(tmp_path: Path) -> Tiers:
    """Nothing is on the disk."""
    return Tiers(tmp_path)


def test_what_is_on_the_disk_is_read_there(tiers: Tiers) -> None:
    """Without a call of the bucket."""
    tiers.cache.put(DIGEST, CONTENT)
    tiers.objects.trouble = BucketUnavailable("down")
    tiers.bucket.down = True
    assert tiers.contents.stat(DIGEST).size == SIZE
    assert tiers.contents.read(DIGEST, SIZE) == tiers.read_all() == CONTENT
    assert [info.digest for info in tiers.contents.walk()] == [DIGEST]
    assert not tiers.bucket.calls["open"]


def test_what_the_bucket_has_is_read_from_there_once(tiers: Tiers) -> None:
    """And then it is on the disk, where eviction knows of it."""
    assert tiers.contents.stat(DIGEST).size == SIZE
    assert tiers.contents.read(DIGEST, SIZE) == CONTENT
    assert tiers.contents.read(DIGEST, SIZE) == CONTENT
    assert tiers.bucket.calls["open"] == 1
    assert tiers.stored == [BlobInfo(DIGEST, SIZE)]


def test_opening_fetches_the_whole_blob(tiers: Tiers) -> None:
    """It is a file on the disk then; a body that breaks off goes on."""
    tiers.bucket.break_bodies(after=SIZE // 2)
    assert tiers.read_all() == CONTENT
    assert tiers.bucket.calls["open"] == 2
    assert tiers.stored == [BlobInfo(DIGEST, SIZE)]
    assert tiers.cache.read(DIGEST, SIZE) == CONTENT
    assert tiers.cache.growing() == {}


def test_many_threads_fetch_a_blob_once(tiers: Tiers) -> None:
    """The others wait for it."""
    bodies: list[bytes] = []
    threads = [threading.Thread(target=lambda: bodies.append(tiers.read_all())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bodies == [CONTENT] * 8
    assert tiers.bucket.calls["open"] == 1


def test_who_reads_much_leaves_nothing_on_the_disk(tiers: Tiers) -> None:
    """As the walk of garbage collection."""
    assert tiers.contents.passing().read(DIGEST, SIZE) == CONTENT
    assert list(tiers.cache.walk()) == []


def test_a_full_disk_does_not_keep_content_from_being_read(tiers: Tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is returned, and not put there."""

    def refuse(_digest: Digest, _content: bytes) -> None:
        raise StoreFull("no room")

    monkeypatch.setattr(tiers.cache, "put", refuse)
    assert tiers.contents.read(DIGEST, SIZE) == CONTENT
    assert tiers.stored == []


def test_absent_is_what_the_bucket_certainly_does_not_have(tiers: Tiers) -> None:
    """Each call says the same."""
    for call in (tiers.contents.stat, tiers.contents.open, lambda digest: tiers.contents.read(digest, 10)):
        with pytest.raises(BlobUnknown):
            call(OTHER)


@pytest.mark.parametrize("trouble", ["states", "objects"])
def test_113_a_bucket_that_is_down_has_no_absent_content(tiers: Tiers, trouble: str) -> None:
    """Nobody may take silence for an answer."""
    if trouble == "states":
        tiers.objects.trouble = BucketUnavailable("down")
        with pytest.raises(BucketUnavailable):
            tiers.contents.stat(DIGEST)
    tiers.bucket.down = True
    for call in (tiers.read_all, lambda: tiers.contents.read(DIGEST, SIZE)):
        with pytest.raises(BucketUnavailable):
            call()


def test_120_content_that_is_gone_is_damaged_and_then_absent(tiers: Tiers) -> None:
    """Not "no manifest", which would name nothing: a collector must not take what it names."""
    tiers.bucket.lose(KEY)
    repo = Repo("corp", "app")
    with pytest.raises(BlobDamaged, match="gone"):
        certain_manifest(tiers.contents, repo, DIGEST)
    assert tiers.objects.reasons == [f"its object {KEY} is gone"]
    with pytest.raises(StoreError, match="missing"):
        certain_manifest(tiers.contents, repo, DIGEST)


def test_120_gone_for_a_moment_is_not_lost(tiers: Tiers) -> None:
    """It is looked at twice."""
    tiers.bucket.lose(KEY)
    tiers.bucket.before("open", lambda: None)
    tiers.bucket.before("open", tiers.put_back)
    assert tiers.contents.read(DIGEST, SIZE) == CONTENT


@pytest.mark.parametrize("way", ["read", "open"])
def test_119_wrong_bytes_are_read_twice_before_the_object_is_lost(tiers: Tiers, way: str) -> None:
    """Nothing of them stays, and nothing is returned."""
    tiers.bucket.damage(KEY, WRONG)
    with pytest.raises(BlobDamaged):
        tiers.contents.read(DIGEST, SIZE) if way == "read" else tiers.read_all()
    assert tiers.bucket.calls["open"] == 2
    assert len(tiers.objects.reasons) == 1
    assert list(tiers.cache.walk()) == []
    assert tiers.cache.growing() == {}


@pytest.mark.parametrize("way", ["read", "open"])
def test_119_bytes_that_were_damaged_on_the_way(tiers: Tiers, way: str) -> None:
    """The second read is right, and the object stays."""
    tiers.bucket.damage(KEY, WRONG)
    for act in (lambda: None, lambda: tiers.bucket.damage(KEY, CONTENT)):
        tiers.bucket.before("open", act)
    assert (tiers.contents.read(DIGEST, SIZE) if way == "read" else tiers.read_all()) == CONTENT
    assert tiers.objects.reasons == []


def test_a_damaged_copy_is_replaced_by_the_object(tiers: Tiers) -> None:
    """It is set aside as any damaged file."""
    tiers.cache.put(DIGEST, CONTENT)
    tiers.damage()
    assert tiers.contents.read(DIGEST, SIZE) == CONTENT
    assert [blob.digest for blob in tiers.cache.quarantined()] == [DIGEST]
    assert tiers.cache.read(DIGEST, SIZE) == CONTENT


def test_a_damaged_file_that_only_the_disk_has(tiers: Tiers) -> None:
    """What the disk said is what the caller gets."""
    tiers.cache.put(DIGEST, CONTENT)
    tiers.damage()
    tiers.objects.found = None
    with pytest.raises(BlobDamaged):
        tiers.contents.read(DIGEST, SIZE)


def test_more_than_the_limit_is_not_damage(tiers: Tiers) -> None:
    """Neither on the disk nor in the bucket: nothing is set aside, and nothing lost."""
    for _ in range(2):
        with pytest.raises(BlobDamaged, match="more than"):
            tiers.contents.read(DIGEST, SIZE - 1)
        assert tiers.contents.read(DIGEST, SIZE) == CONTENT
    assert tiers.objects.reasons == []
    assert tiers.cache.quarantined() == []


def test_replaced_while_it_is_read(tiers: Tiers) -> None:
    """A push has repaired it under another key."""
    tiers.bucket.damage(KEY, WRONG)

    def replace() -> None:
        tiers.bucket.write("blobs/newer", CONTENT)
        tiers.objects.found = BlobObject(DIGEST, "blobs/newer", SIZE)

    for act in (lambda: None, replace):
        tiers.bucket.before("open", act)
    with suppress(MirrorError):
        # whether this read succeeds or not, the newer object stays
        tiers.contents.read(DIGEST, SIZE)
    assert tiers.objects.reasons == []
    assert tiers.contents.read(DIGEST, SIZE) == CONTENT

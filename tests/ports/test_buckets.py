"""Buckets: the model in memory, and the faults that it can have."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.errors import BucketDenied, BucketUnavailable, RecordChanged, StoreError, UpstreamUnavailable
from mirror.ports import ABSENT, Aborted, Bucket
from tests.support.bucket_suite import BucketSuite, keys_below, stored, whole
from tests.support.memory_bucket import MemoryBucket


class TestMemoryBucket(BucketSuite):
    """The simplest one passes the suite that it is the model of."""

    @pytest.fixture
    def bucket(self) -> Bucket:
        """Empty."""
        return MemoryBucket()

    def fetch(self, bucket: Bucket, url: str) -> bytes:
        """Nothing listens there."""
        assert isinstance(bucket, MemoryBucket)
        return bucket.fetch(url)


class TestFaults:
    """What tests of others rely on."""

    def test_calls_that_fail(self) -> None:
        """As many as said, and the work is not done."""
        bucket = MemoryBucket()
        bucket.fail("write", 2)
        for _ in range(2):
            with pytest.raises(BucketUnavailable):
                bucket.write("key", b"1")
        assert bucket.content() == {}
        bucket.write("key", b"1")
        bucket.fail("read", error=BucketDenied("reading: s3:GetObject is missing"))
        with pytest.raises(BucketDenied):
            bucket.read("key", 10)
        assert bucket.pending == []
        assert (bucket.calls["write"], bucket.log[-1]) == (3, ("read", ("key",)))

    def test_answers_that_are_lost(self) -> None:
        """The work is done, and the caller cannot know it."""
        bucket = MemoryBucket()
        for verb in ("write", "delete"):
            bucket.fail(verb, done=True)
        with pytest.raises(BucketUnavailable):
            bucket.write("key", b"1", expect=ABSENT)
        assert bucket.content() == {"key": b"1"}
        with pytest.raises(BucketUnavailable):
            bucket.delete(["key"])
        assert bucket.content() == {}

    def test_down(self, tmp_path: Path) -> None:
        """Nothing works, until everything works again."""
        bucket = MemoryBucket()
        bucket.write("key", b"1")
        bucket.down = True
        for call in (
            lambda: bucket.read("key", 1),
            lambda: bucket.head("key"),
            lambda: bucket.open("key"),
            lambda: bucket.write("key", b""),
            lambda: bucket.upload("key", tmp_path / "file", 1),
            lambda: bucket.delete(["key"]),
            lambda: list(bucket.list("")),
            lambda: bucket.abort_uploads("", 0),
            lambda: bucket.sign("key", 1),
        ):
            with pytest.raises(BucketUnavailable):
                call()
        bucket.down = False
        assert stored(bucket, "key") == b"1"

    def test_bodies_that_break(self) -> None:
        """After so many bytes; the next body is whole, and goes on from there."""
        bucket = MemoryBucket()
        bucket.write("key", b"0123456789")
        bucket.break_bodies(after=4)
        body = bucket.open("key")
        assert body
        buffer = memoryview(bytearray(10))
        assert body.readinto(buffer) == 4
        with pytest.raises(UpstreamUnavailable):
            body.readinto(buffer)
        assert whole(bucket.open("key", 4)) == b"456789"

    def test_wrong_bytes(self) -> None:
        """An object that a bad store has changed has the same version; one that is lost is absent."""
        bucket = MemoryBucket()
        version = bucket.write("key", b"right")
        bucket.damage("key", b"wrong")
        found = bucket.head("key")
        assert found
        assert found.version == version
        assert stored(bucket, "key") == b"wrong"
        bucket.lose("key")
        assert bucket.head("key") is None

    def test_stale_listings(self) -> None:
        """What is listed is what was there; what is read is what is there."""
        bucket = MemoryBucket()
        bucket.write("old", b"1")
        bucket.freeze_listings()
        bucket.write("new", b"1")
        bucket.delete(["old"])
        assert keys_below(bucket, "") == ["old"]
        assert stored(bucket, "new") == b"1"
        bucket.thaw_listings()
        assert keys_below(bucket, "") == ["new"]

    def test_another_process_between(self) -> None:
        """It acts just before the call that the test names."""
        bucket = MemoryBucket()
        bucket.write("key", b"1")
        bucket.before("write", lambda: bucket.damage("key", b"9"))
        assert bucket.pending == ["write"]
        bucket.write("other", b"1")
        assert bucket.pending == []
        assert bucket.content()["key"] == b"9"
        bucket.before("write", lambda: bucket.lose("key"))
        found = bucket.head("key")
        assert found
        with pytest.raises(RecordChanged):
            bucket.write("key", b"2", expect=found.version)

    def test_unfinished_uploads(self) -> None:
        """Those below the prefix that are old enough are aborted; a store that does not list them says so."""
        bucket = MemoryBucket()
        for key, at in (("hosted/a", 10.0), ("hosted/b", 20.0), ("cache/c", 10.0)):
            bucket.begin_upload(key, at)
        assert bucket.abort_uploads("hosted/", 20.0) == Aborted(1)
        assert bucket.unfinished == ["hosted/b", "cache/c"]
        assert MemoryBucket(lists_uploads=False).abort_uploads("", 1) is None

    def test_dates_and_signatures(self, tmp_path: Path) -> None:
        """Objects may be made old; a store may be unable to sign; an unreadable file is no upload."""
        bucket = MemoryBucket(now=lambda: 50.0, signs=False)
        bucket.write("key", b"1")
        assert [info.changed_at for info in bucket.list("")] == [50.0]
        bucket.date("key", 7.0)
        assert [info.changed_at for info in bucket.list("")] == [7.0]
        assert bucket.sign("key", 10) is None
        with pytest.raises(StoreError):
            bucket.upload("key", tmp_path, 1)

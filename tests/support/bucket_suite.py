"""What every `Bucket` does. A test class inherits `BucketSuite` and supplies `bucket`, which has no objects.

Objects stay small, so that the suite is quick against a real store. A store whose uploads have parts says how large a
file must be to have three of them (`THREE_PARTS`).
"""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest

from mirror.errors import BlobDamaged, RecordChanged, StoreError, UpstreamError, UpstreamInvalid
from mirror.ports import ABSENT, Aborted, Body, Bucket, NotChanged, StoredObject, Version

#: Keys that a store might spoil: blanks, signs with a meaning in URLs and in XML, letters outside of ASCII.
ODD_KEYS = (
    "odd/a b+c%20=&?#~",
    "odd/%2f",
    "odd/<é&ü>'\"",
    "odd/_tags/v1.2-3_4",
    "odd/registry.example.com:5000/name",
)
CONTENT = bytes(range(256)) * 3000


def whole(body: Body | None, buffer_size: int = 100_000) -> bytes:
    """Read a body to its end."""
    assert body is not None
    got = bytearray()
    buffer = memoryview(bytearray(buffer_size))
    while count := body.readinto(buffer):
        got += buffer[:count]
    return bytes(got)


def stored(bucket: Bucket, key: str) -> bytes | None:
    """The content of an object."""
    found = bucket.read(key, 1 << 20)
    assert not isinstance(found, NotChanged)
    return found.content if found else None


def version_of(bucket: Bucket, key: str) -> Version:
    """The version of an object that is there, as `read` gives it."""
    found = bucket.read(key, 1 << 20)
    assert isinstance(found, StoredObject)
    return found.version


def keys_below(bucket: Bucket, prefix: str, after: str = "") -> list[str]:
    """The keys of a listing, in its order."""
    return [info.key for info in bucket.list(prefix, after=after)]


def count_up(bucket: Bucket, times: int) -> None:
    """Raise the number in the object `n` by one, so many times, however many others do the same."""
    done = 0
    while done < times:
        found = bucket.read("n", 100)
        assert not isinstance(found, NotChanged)
        try:
            if found is None:
                bucket.write("n", b"1", expect=ABSENT)
            else:
                bucket.write("n", b"%d" % (int(found.content) + 1), expect=found.version)
            done += 1
        except RecordChanged:
            continue


class BucketSuite:
    """Fixtures to supply: `bucket`."""

    #: A file of this size is uploaded in at least three parts, in a store that has parts.
    THREE_PARTS: ClassVar[int] = 3_000_000

    def fetch(self, bucket: Bucket, url: str) -> bytes:
        """What a client gets that follows a signed URL."""
        with urllib.request.urlopen(url, timeout=20) as answer:
            content: bytes = answer.read()
        return content

    # -------------------------------------------------------------------------------------------- small objects

    def test_an_empty_bucket_has_nothing(self, bucket: Bucket) -> None:
        """What was never written is absent, for every verb; deleting it is no error."""
        assert bucket.read("no/such", 10) is None
        assert bucket.read("no/such", 10, unless=Version('"0"')) is None
        assert bucket.head("no/such") is None
        assert bucket.open("no/such") is None
        assert bucket.open("no/such", 5) is None
        assert list(bucket.list("")) == []
        assert list(bucket.list("no/")) == []
        bucket.delete(["no/such", "no/other"])
        bucket.delete([])

    @pytest.mark.parametrize("content", [b"", b"small", CONTENT], ids=["empty", "small", "large"])
    def test_the_life_of_an_object(self, bucket: Bucket, content: bytes) -> None:
        """Written, seen alike by every verb, replaced, deleted."""
        began = time.time()
        version = bucket.write("a/key", content)
        assert bucket.read("a/key", len(content)) == StoredObject(content, version)
        info = bucket.head("a/key")
        assert info
        assert (info.key, info.size) == ("a/key", len(content))
        assert began - 60 < info.changed_at < time.time() + 60
        assert whole(bucket.open("a/key")) == content
        assert [(each.key, each.size) for each in bucket.list("")] == [("a/key", len(content))]
        bucket.write("a/key", b"another")
        assert stored(bucket, "a/key") == b"another"
        bucket.delete(["a/key"])
        assert bucket.read("a/key", 10) is None
        assert list(bucket.list("")) == []

    @pytest.mark.parametrize("key", ODD_KEYS)
    def test_keys_come_back_as_they_were(self, bucket: Bucket, key: str) -> None:
        """No sign in a key has a meaning, for no verb."""
        bucket.write(key, b"1", expect=ABSENT)
        bucket.write(key, b"22", expect=version_of(bucket, key))
        info = bucket.head(key)
        assert info
        assert (info.key, info.size) == (key, 2)
        assert keys_below(bucket, "odd/") == [key]
        assert whole(bucket.open(key, 1)) == b"2"
        bucket.delete([key])
        assert bucket.head(key) is None

    def test_similar_keys_are_different_ones(self, bucket: Bucket) -> None:
        """Dots at the end, capitals, and what others might take for an escape."""
        keys = ["_tags/v1", "_tags/v1.", "_tags/v1..", "_tags/V1", "_tags/v1%2E", "_tags/v1%252E", "_tags./v1"]
        for number, key in enumerate(keys):
            bucket.write(key, b"%d" % number, expect=ABSENT)
        assert [stored(bucket, key) for key in keys] == [b"%d" % number for number in range(len(keys))]
        assert set(keys_below(bucket, "")) == set(keys)
        assert set(keys_below(bucket, "_tags./")) == {"_tags./v1"}
        bucket.delete(keys[1:])
        assert keys_below(bucket, "") == keys[:1]

    def test_objects_larger_than_expected_are_not_read(self, bucket: Bucket) -> None:
        """A reader says how much it takes."""
        bucket.write("key", b"12345")
        with pytest.raises(BlobDamaged):
            bucket.read("key", 4)
        assert stored(bucket, "key") == b"12345"

    # ------------------------------------------------------------------------------------------------ versions

    def test_read_unless_it_is_unchanged(self, bucket: Bucket) -> None:
        """A reader that has the version is not sent the content; one that has another version is."""
        first = bucket.write("key", b"one")
        assert bucket.read("key", 10, unless=first) == NotChanged(first)
        assert bucket.read("key", 10, unless=version_of(bucket, "key")) == NotChanged(first)
        second = bucket.write("key", b"two", expect=first)
        assert second != first
        assert bucket.read("key", 10, unless=first) == StoredObject(b"two", second)
        assert bucket.read("key", 0, unless=second) == NotChanged(second)

    def test_create(self, bucket: Bucket) -> None:
        """Only what is absent is created, also after it was deleted; an empty object is there."""
        bucket.write("key", b"", expect=ABSENT)
        for content in (b"", b"other"):
            with pytest.raises(RecordChanged):
                bucket.write("key", content, expect=ABSENT)
        assert stored(bucket, "key") == b""
        bucket.delete(["key"])
        bucket.write("key", b"again", expect=ABSENT)
        assert stored(bucket, "key") == b"again"

    def test_replace_only_the_expected_version(self, bucket: Bucket) -> None:
        """A refused write changes nothing; a version of `head` serves as well as that of a write."""
        first = bucket.write("key", b"one", expect=ABSENT)
        second = bucket.write("key", b"two", expect=first)
        with pytest.raises(RecordChanged):
            bucket.write("key", b"three", expect=first)
        assert bucket.read("key", 10) == StoredObject(b"two", second)
        info = bucket.head("key")
        assert info
        third = bucket.write("key", b"", expect=info.version)
        bucket.write("key", b"four", expect=third)
        bucket.delete(["key"])
        with pytest.raises(RecordChanged):
            bucket.write("key", b"five", expect=third)
        assert bucket.head("key") is None

    def test_a_refused_write_of_the_same_content_is_refused(self, bucket: Bucket) -> None:
        """Two writers that expect the same and write the same: one has succeeded, and the other one knows it."""
        first = bucket.write("key", b"one", expect=ABSENT)
        with pytest.raises(RecordChanged):
            bucket.write("key", b"one", expect=ABSENT)
        bucket.write("key", b"two", expect=first)
        with pytest.raises(RecordChanged):
            bucket.write("key", b"two", expect=first)

    @pytest.mark.parametrize("there", [False, True], ids=["create", "replace"])
    def test_one_of_many_writers_succeeds(self, bucket: Bucket, there: bool) -> None:
        """Of writers at the same time that expect the same, exactly one wins, and its content is what is there."""
        expect = bucket.write("key", b"before") if there else ABSENT
        start = threading.Barrier(8)

        def write(number: int) -> bool:
            start.wait()
            try:
                bucket.write("key", b"writer %d" % number, expect=expect)
            except RecordChanged:
                return False
            return True

        with ThreadPoolExecutor(8) as threads:
            won = list(threads.map(write, range(8)))
        assert sum(won) == 1
        assert stored(bucket, "key") == b"writer %d" % won.index(True)

    def test_no_change_is_lost(self, bucket: Bucket) -> None:
        """Writers at the same time that read, count and write what they expect: every count is there in the end."""
        with ThreadPoolExecutor(4) as threads:
            for done in [threads.submit(count_up, bucket, 5) for _ in range(4)]:
                done.result()
        assert stored(bucket, "n") == b"20"

    # ------------------------------------------------------------------------------------------- large objects

    @pytest.mark.parametrize("parts", [0, 1, 3], ids=["empty", "small", "parts"])
    def test_upload(self, bucket: Bucket, tmp_path: Path, parts: int) -> None:
        """A file is there whole, and read back from any byte on; a second upload is harmless."""
        pattern = bytes(range(251)) * 4099
        content = (pattern * (parts * self.THREE_PARTS // 3 // len(pattern) + 1))[: parts * self.THREE_PARTS // 3 + 1]
        content = content if parts else b""
        file = tmp_path / "file"
        file.write_bytes(content)
        for _ in range(2):
            bucket.upload("blobs/key", file, len(content))
        info = bucket.head("blobs/key")
        assert info
        assert info.size == len(content)
        for start in {0, len(content) // 2, max(0, len(content) - 1), len(content)}:
            body = bucket.open("blobs/key", start)
            assert body is not None
            assert (body.start, body.size) == (start, len(content))
            assert whole(body) == content[start:]
            for stop in {start + 1, len(content) // 2 + 3, len(content)}:
                if start < stop <= len(content):
                    body = bucket.open("blobs/key", start, stop)
                    assert body is not None
                    assert (body.start, body.size) == (start, len(content))
                    assert whole(body) == content[start:stop]
        assert keys_below(bucket, "blobs/") == ["blobs/key"]
        assert keys_below(bucket, "") == ["blobs/key"]

    def test_upload_of_a_file_that_is_not_right(self, bucket: Bucket, tmp_path: Path) -> None:
        """A file that is absent, or has another size, is not uploaded, and nothing is visible."""
        file = tmp_path / "file"
        for size in (0, 9, 11, self.THREE_PARTS):
            with pytest.raises(StoreError):
                bucket.upload("key", file, size)
        file.write_bytes(b"0123456789")
        for size in (0, 9, 11, self.THREE_PARTS):
            with pytest.raises(StoreError):
                bucket.upload("key", file, size)
        assert bucket.head("key") is None
        assert list(bucket.list("")) == []

    def test_open_beyond_the_end(self, bucket: Bucket) -> None:
        """An object that ends before the first byte asked for is not what the reader takes it for."""
        bucket.write("key", b"12345")
        with pytest.raises(UpstreamInvalid):
            whole(bucket.open("key", 6))
        assert whole(bucket.open("key", 5)) == b""

    def test_an_aborted_body_ends_with_an_error(self, bucket: Bucket) -> None:
        """Never as if it were complete."""
        bucket.write("key", CONTENT)
        body = bucket.open("key")
        assert body is not None
        buffer = memoryview(bytearray(1000))
        assert body.readinto(buffer)
        body.abort()
        body.abort()
        with pytest.raises(UpstreamError):
            whole(body)

    # ------------------------------------------------------------------------------------- listing and deleting

    def test_listings_are_flat_and_sorted(self, bucket: Bucket) -> None:
        """By the bytes of the keys, whatever folders they have."""
        keys = ["a/B", "a/b", "a/c/d", "a/c/e/f", "a/~", "a/é", "c/d", "d"]
        for key in reversed(keys):
            bucket.write(key, b"x")
        assert keys_below(bucket, "") == keys
        assert keys_below(bucket, "a/") == keys[:6]
        assert keys_below(bucket, "a/c/") == ["a/c/d", "a/c/e/f"]
        for after in [*keys, "a/c/dd", "b", "zz"]:
            assert keys_below(bucket, "", after) == [key for key in keys if key.encode() > after.encode()]
        assert keys_below(bucket, "a/c/", "a/c/d") == ["a/c/e/f"]

    def test_listings_are_whole_whatever_their_order(self, bucket: Bucket) -> None:
        """The beginning of a name is no folder; what comes after a key is the rest of the same listing."""
        keys = {"a/b/c", "a/b/d/e", "a/b-c/d", "a/b.x", "a-b/c", "ab/c"}
        for key in keys:
            bucket.write(key, b"x")
        listed = keys_below(bucket, "")
        assert len(listed) == len(keys)
        assert set(listed) == keys
        assert set(keys_below(bucket, "a/")) == {key for key in keys if key.startswith("a/")}
        assert keys_below(bucket, "a/b/") == ["a/b/c", "a/b/d/e"]
        for place, key in enumerate(listed):
            assert keys_below(bucket, "", key) == listed[place + 1 :]

    def test_many_are_listed_and_deleted(self, bucket: Bucket) -> None:
        """More than one answer has, and more than one call of the store takes; absent ones among them."""
        keys = [f"many/{number:05}" for number in range(1100)]
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(lambda key: bucket.write(key, b""), keys))
        assert keys_below(bucket, "many/") == keys
        assert keys_below(bucket, "many/", keys[1050]) == keys[1051:]
        bucket.delete([*keys[:-1], "many/absent", "no/such"])
        assert keys_below(bucket, "many/") == keys[-1:]

    def test_no_unfinished_uploads(self, bucket: Bucket, tmp_path: Path) -> None:
        """An upload that has ended leaves none; a store that cannot list them says so."""
        file = tmp_path / "file"
        file.write_bytes(bytes(self.THREE_PARTS))
        bucket.upload("key", file, self.THREE_PARTS)
        assert bucket.abort_uploads("", time.time() + 3600) in (Aborted(0), None)
        assert bucket.head("key") is not None

    # ------------------------------------------------------------------------------------------------- signing

    @pytest.mark.parametrize("key", ["plain", *ODD_KEYS])
    def test_a_signed_url_gives_the_object(self, bucket: Bucket, key: str) -> None:
        """To somebody who has nothing but the URL."""
        bucket.write(key, b"content")
        url = bucket.sign(key, 60)
        if url is not None:
            assert self.fetch(bucket, url) == b"content"

    # ------------------------------------------------------------------------------------------------- threads

    def test_many_threads(self, bucket: Bucket) -> None:
        """Every call may be made from any thread, and closing may be repeated."""
        calls: list[Callable[[], object]] = []
        for number in range(24):
            key = f"thread/{number}"
            calls.append(lambda key=key: (bucket.write(key, key.encode()), whole(bucket.open(key)), bucket.head(key)))  # type: ignore[misc]
        with ThreadPoolExecutor(8) as threads:
            for done in [threads.submit(call) for call in calls]:
                done.result()
        assert len(keys_below(bucket, "thread/")) == 24
        bucket.close()
        bucket.close()

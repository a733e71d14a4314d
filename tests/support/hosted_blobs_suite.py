"""What every `HostedBlobs` does, and the `Blobs` that reads under both names. A test class inherits `HostedBlobsSuite`
and supplies the fixtures.

`cache` is an empty store, `hosted` the hosted names of its disk, `another` the same as another process has them, and
`contents` reads both.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mirror.errors import BlobDamaged, BlobUnknown, RecordChanged
from mirror.oci.digest import Digest
from mirror.policy.hosted_records import QueuedBlob
from mirror.ports import Blobs, BlobStore, HostedBlobs

CONTENT = b"a layer, or a manifest"
DIGEST = Digest.of(CONTENT)
ABSENT_DIGEST = Digest.of(b"nowhere")


def queued(hosted: HostedBlobs, digest: Digest, at: float = 100.0) -> QueuedBlob:
    """The record of a blob that was queued just now."""
    record = QueuedBlob(digest, at)
    hosted.queue(record)
    return record


def all_queued(hosted: HostedBlobs) -> list[QueuedBlob]:
    """The records of all blobs that wait."""
    return [record for page in hosted.queued_pages() for record in page]


class HostedBlobsSuite:
    """The contract of `HostedBlobs`."""

    def test_what_was_put_is_hosted_and_read(self, hosted: HostedBlobs, contents: Blobs, cache: BlobStore) -> None:
        """Under its hosted name alone: the cache does not know it."""
        assert hosted.put(DIGEST, CONTENT).size == len(CONTENT)
        hosted.flush()
        assert hosted.hosted(DIGEST).size == contents.stat(DIGEST).size == len(CONTENT)
        assert contents.read(DIGEST, 1000) == CONTENT
        with pytest.raises(BlobUnknown):
            cache.stat(DIGEST)

    def test_a_put_is_repeatable(self, hosted: HostedBlobs, contents: Blobs) -> None:
        """The second one changes nothing."""
        hosted.put(DIGEST, CONTENT)
        hosted.put(DIGEST, CONTENT)
        assert contents.read(DIGEST, 1000) == CONTENT
        assert len(hosted.blobs(None, 10)) == 1

    def test_a_put_of_other_bytes_is_refused(self, hosted: HostedBlobs) -> None:
        """Nothing gets a name that is not its own."""
        with pytest.raises(BlobDamaged):
            hosted.put(DIGEST, b"other bytes")
        with pytest.raises(BlobUnknown):
            hosted.hosted(DIGEST)

    def test_what_is_cached_is_not_hosted(self, hosted: HostedBlobs, cache: BlobStore, contents: Blobs) -> None:
        """But it is read."""
        cache.put(DIGEST, CONTENT)
        with pytest.raises(BlobUnknown):
            hosted.hosted(DIGEST)
        assert contents.read(DIGEST, 1000) == CONTENT

    def test_an_adopted_blob_outlives_its_eviction(
        self, hosted: HostedBlobs, cache: BlobStore, contents: Blobs
    ) -> None:
        """The evictor can delete the cache's name alone."""
        cache.put(DIGEST, CONTENT)
        assert hosted.adopt(DIGEST).size == len(CONTENT)
        cache.delete(DIGEST)
        assert contents.read(DIGEST, 1000) == CONTENT
        assert hosted.adopt(DIGEST).size == len(CONTENT)

    def test_a_collected_blob_that_is_cached_stays_in_the_cache(
        self, hosted: HostedBlobs, cache: BlobStore, contents: Blobs
    ) -> None:
        """And can be adopted again."""
        cache.put(DIGEST, CONTENT)
        hosted.adopt(DIGEST)
        hosted.collect(DIGEST, hosted.queue(QueuedBlob(DIGEST, 1.0)))
        assert cache.read(DIGEST, 1000) == contents.read(DIGEST, 1000) == CONTENT
        hosted.adopt(DIGEST)
        assert hosted.hosted(DIGEST).size == len(CONTENT)

    def test_what_is_nowhere_is_unknown(self, hosted: HostedBlobs, contents: Blobs) -> None:
        """And not an error of the disk."""
        for look in (hosted.hosted, hosted.adopt, hosted.rescue, contents.stat, contents.open):
            with pytest.raises(BlobUnknown):
                look(ABSENT_DIGEST)
        assert hosted.queued(ABSENT_DIGEST) is None
        assert not [*hosted.blobs(None, 10), *all_queued(hosted)]

    def test_a_queued_blob_is_collected(self, hosted: HostedBlobs, another: HostedBlobs, contents: Blobs) -> None:
        """Name and record are gone."""
        hosted.put(DIGEST, CONTENT)
        version = hosted.queue(QueuedBlob(DIGEST, 100.0))
        found = another.queued(DIGEST)
        assert found
        assert found.record == QueuedBlob(DIGEST, 100.0)
        assert found.version == version
        assert all_queued(another) == [found.record]
        assert another.collect(DIGEST, version) == len(CONTENT)
        assert hosted.queued(DIGEST) is None
        with pytest.raises(BlobUnknown):
            contents.stat(DIGEST)

    def test_a_blob_waits_once(self, hosted: HostedBlobs, another: HostedBlobs) -> None:
        """A second collector does not begin its time anew."""
        hosted.put(DIGEST, CONTENT)
        first = queued(hosted, DIGEST)
        with pytest.raises(RecordChanged):
            another.queue(QueuedBlob(DIGEST, 200.0))
        assert all_queued(hosted) == [first]

    def test_all_blobs_that_wait_are_on_the_pages(self, hosted: HostedBlobs, another: HostedBlobs) -> None:
        """Each of them once."""
        digests = {hosted.put(Digest.of(content), content).digest for content in (b"%d" % n for n in range(120))}
        for digest in digests:
            hosted.queue(QueuedBlob(digest, 100.0))
        found = [record.digest for record in all_queued(another)]
        assert len(found) == len(digests)
        assert {*found} == digests

    @pytest.mark.parametrize("how", ["rescue", "adopt", "put"])
    def test_a_rescued_blob_is_not_collected(self, hosted: HostedBlobs, another: HostedBlobs, how: str) -> None:
        """Whoever relies on a blob takes it out of the queue, and the collector notices."""
        hosted.put(DIGEST, CONTENT)
        version = hosted.queue(QueuedBlob(DIGEST, 100.0))
        if how == "put":
            another.put(DIGEST, CONTENT)
        else:
            getattr(another, how)(DIGEST)
        assert hosted.queued(DIGEST) is None
        with pytest.raises(RecordChanged):
            hosted.collect(DIGEST, version)
        assert hosted.hosted(DIGEST).size == len(CONTENT)

    def test_a_blob_that_was_queued_anew_is_not_collected_by_its_old_record(self, hosted: HostedBlobs) -> None:
        """A slow collector expects the record that it has seen."""
        hosted.put(DIGEST, CONTENT)
        old = hosted.queue(QueuedBlob(DIGEST, 100.0))
        hosted.rescue(DIGEST)
        new = hosted.queue(QueuedBlob(DIGEST, 200.0))
        with pytest.raises(RecordChanged):
            hosted.collect(DIGEST, old)
        assert hosted.collect(DIGEST, new) == len(CONTENT)

    def test_the_record_of_a_blob_that_is_gone_can_be_collected(self, hosted: HostedBlobs) -> None:
        """As a collector leaves it that was killed."""
        version = hosted.queue(QueuedBlob(DIGEST, 100.0))
        assert hosted.collect(DIGEST, version) == 0
        assert hosted.queued(DIGEST) is None

    def test_pages_of_all_blobs(self, hosted: HostedBlobs) -> None:
        """In the order of algorithm and digits, each once."""
        contents = [f"blob {number}".encode() for number in range(20)]
        digests = sorted(
            Digest.of(content, algorithm)
            for number, content in enumerate(contents)
            for algorithm in (["sha256", "sha512"] if number % 2 else ["sha256"])
        )
        for digest in digests:
            hosted.put(digest, next(content for content in contents if digest.matches(content)))
        found: list[Digest] = []
        while page := hosted.blobs(found[-1] if found else None, 7):
            assert len(page) <= 7
            found += [info.digest for info in page]
        assert found == digests

    def test_a_walk_over_both_names(self, hosted: HostedBlobs, cache: BlobStore, contents: Blobs) -> None:
        """Sorted, and a blob with both names once."""
        blobs = [b"cached", b"hosted", b"both"]
        cache.put(Digest.of(b"cached"), b"cached")
        hosted.put(Digest.of(b"hosted"), b"hosted")
        cache.put(Digest.of(b"both"), b"both")
        hosted.adopt(Digest.of(b"both"))
        assert [info.digest for info in contents.walk()] == sorted(map(Digest.of, blobs))
        assert {info.digest for info in cache.walk()} == {Digest.of(b"cached"), Digest.of(b"both")}

    def test_many_rescue_while_one_collects(self, hosted: HostedBlobs, another: HostedBlobs) -> None:
        """A blob whose rescue returned is there: rescue and collect exclude each other."""
        barrier = threading.Barrier(2)

        def rescue() -> bool:
            barrier.wait()
            try:
                another.rescue(DIGEST)
            except BlobUnknown:
                return False
            return True

        def collect(version: str) -> bool:
            barrier.wait()
            try:
                return bool(hosted.collect(DIGEST, version))  # type: ignore[arg-type]
            except RecordChanged:
                return False

        with ThreadPoolExecutor(2) as threads:
            for number in range(50):
                hosted.put(DIGEST, CONTENT)
                version = hosted.queue(QueuedBlob(DIGEST, float(number)))
                rescued, collected = threads.submit(rescue), threads.submit(collect, version)
                assert rescued.result() != collected.result()
                if rescued.result():
                    assert hosted.hosted(DIGEST).size == len(CONTENT)

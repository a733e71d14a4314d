"""What every `Uploads` and its `UploadFile` do. A test class inherits `UploadsSuite` and supplies the fixtures.

`uploads` has no session, `another` is the same as another process has them, `hosted` are the hosted blobs, and
`contents` reads them.
"""

from __future__ import annotations

import pytest

from mirror.errors import BlobDamaged, BlobUnknown, StoreError, StoreFull, UploadBusy, UpstreamUnavailable
from mirror.oci.digest import HEX_LENGTHS, Digest
from mirror.policy.hosted_records import QueuedBlob
from mirror.ports import Blobs, Expired, HostedBlobs, UploadFile, Uploads
from tests.support.store_suite import CONTENT, DIGEST, LATER, Pieces

OWNER = "0123abcd_4567ef"


def ignore(_offset: int) -> None:
    """A `grown` that does nothing."""


def opened(uploads: Uploads, session: str) -> UploadFile:
    """The session, which must be there."""
    upload = uploads.open(session)
    assert upload
    return upload


def pushed(uploads: Uploads, content: bytes) -> str:
    """A session that has this content."""
    session = uploads.begin(OWNER)
    upload = opened(uploads, session)
    upload.fill(Pieces(content), ignore)
    upload.close()
    return session


class Trickle(Pieces):
    """A body of which at times no byte is here: then `readinto` gives 0."""

    def __init__(self, content: bytes, *, step: int) -> None:
        super().__init__(content, step=step)
        self._dry = False
        self.left = len(content)

    def readinto(self, buffer: memoryview) -> int:
        """A piece, then none, then a piece."""
        self._dry = not self._dry
        received = super().readinto(buffer) if self._dry else 0
        self.left -= received
        return received


class UploadsSuite:
    """The contract of `Uploads` and `UploadFile`."""

    def test_a_session_from_its_beginning_to_its_end(
        self, uploads: Uploads, hosted: HostedBlobs, contents: Blobs
    ) -> None:
        """Begun, filled, published: the blob is hosted, the session over."""
        session = uploads.begin(OWNER)
        upload = opened(uploads, session)
        sizes: list[int] = []
        upload.fill(Pieces(CONTENT), sizes.append)
        assert sizes == sorted(set(sizes))
        assert sizes[-1] == upload.offset == len(CONTENT)
        assert upload.publish(DIGEST).size == len(CONTENT)
        upload.close()
        assert hosted.hosted(DIGEST).size == len(CONTENT)
        assert contents.read(DIGEST, len(CONTENT)) == CONTENT
        assert uploads.session(session) is None
        assert uploads.open(session) is None
        assert list(uploads.sessions()) == []

    def test_the_state_of_a_session(self, uploads: Uploads, another: Uploads) -> None:
        """Every process sees owner and size."""
        session = pushed(uploads, CONTENT)
        found = another.session(session)
        assert found
        assert (found.id, found.owner, found.size) == (session, OWNER, len(CONTENT))
        assert list(another.sessions()) == [found]
        assert session.replace("-", "").replace("_", "").isalnum()

    def test_two_sessions_of_one_owner_are_two(self, uploads: Uploads) -> None:
        """Each has its own bytes."""
        first, second = pushed(uploads, b"first"), pushed(uploads, b"the second")
        sizes = {found.id: found.size for found in uploads.sessions()}
        assert sizes == {first: 5, second: 10}

    @pytest.mark.parametrize("owner", ["a/b", "a-b", "é", "x" * 129, "a\n", "."])
    def test_an_owner_is_a_word(self, uploads: Uploads, owner: str) -> None:
        """Nothing else becomes part of an id."""
        with pytest.raises(ValueError, match="owner"):
            uploads.begin(owner)

    @pytest.mark.parametrize("session", ["", ".", "..", "../blobs", "x", "a" * 300, "0" * 32 + "-a-" + "0" * 32, "\0"])
    def test_no_such_session(self, uploads: Uploads, session: str) -> None:
        """Whatever a client sends."""
        pushed(uploads, CONTENT)
        assert uploads.open(session) is None
        assert uploads.session(session) is None

    def test_one_writer_at_a_time(self, uploads: Uploads, another: Uploads) -> None:
        """In any process; whoever closes lets the next one in."""
        session = uploads.begin(OWNER)
        upload = opened(uploads, session)
        for other in (uploads, another):
            with pytest.raises(UploadBusy):
                other.open(session)
        upload.close()
        upload.close()
        opened(another, session).close()

    @pytest.mark.parametrize("algorithm", HEX_LENGTHS)
    def test_chunks_in_several_requests(
        self, uploads: Uploads, another: Uploads, contents: Blobs, algorithm: str
    ) -> None:
        """Each may come to another process, which continues where the last one ended."""
        session = uploads.begin(OWNER)
        for number, start in enumerate(range(0, len(CONTENT), 100_000)):
            upload = opened(uploads if number % 3 else another, session)
            assert upload.offset == start
            upload.fill(Pieces(CONTENT[start : start + 100_000]), ignore)
            upload.close()
        digest = Digest.of(CONTENT, algorithm)
        upload = opened(uploads, session)
        upload.publish(digest)
        assert contents.read(digest, len(CONTENT)) == CONTENT

    def test_a_body_that_trickles(self, uploads: Uploads, contents: Blobs) -> None:
        """`fill` returns while no byte is here, and is called again."""
        upload = opened(uploads, uploads.begin(OWNER))
        body = Trickle(CONTENT, step=10_000)
        while body.left:
            upload.fill(body, ignore)
        assert upload.offset == len(CONTENT)
        upload.publish(DIGEST)
        assert contents.read(DIGEST, len(CONTENT)) == CONTENT

    def test_an_empty_blob(self, uploads: Uploads, contents: Blobs) -> None:
        """Is a blob."""
        upload = opened(uploads, uploads.begin(OWNER))
        upload.publish(Digest.of(b""))
        assert contents.read(Digest.of(b""), 10) == b""

    def test_wrong_bytes_are_refused_and_can_be_mended(self, uploads: Uploads, hosted: HostedBlobs) -> None:
        """The session stays: after the rest has come, the digest is right."""
        session = pushed(uploads, CONTENT[:-1])
        upload = opened(uploads, session)
        with pytest.raises(BlobDamaged):
            upload.publish(DIGEST)
        assert upload.offset == len(CONTENT) - 1
        with pytest.raises(BlobUnknown):
            hosted.hosted(DIGEST)
        upload.fill(Pieces(CONTENT[-1:]), ignore)
        upload.publish(DIGEST)
        assert hosted.hosted(DIGEST).size == len(CONTENT)

    def test_what_came_before_an_error_is_kept(self, uploads: Uploads) -> None:
        """A body that breaks off, and a caller who stops it."""
        session = uploads.begin(OWNER)
        upload = opened(uploads, session)
        with pytest.raises(UpstreamUnavailable):
            upload.fill(Pieces(CONTENT, breaks_at=30_000), ignore)
        assert upload.offset == 30_000

        def stop(_offset: int) -> None:
            raise StoreFull("enough")

        with pytest.raises(StoreFull):
            upload.fill(Pieces(CONTENT[30_000:]), stop)
        assert 30_000 < upload.offset < len(CONTENT)
        offset = upload.offset
        upload.close()
        found = uploads.session(session)
        assert found
        assert found.size == offset
        upload = opened(uploads, session)
        upload.fill(Pieces(CONTENT[offset:]), ignore)
        upload.publish(DIGEST)

    def test_a_cancelled_session(self, uploads: Uploads) -> None:
        """Leaves nothing."""
        session = pushed(uploads, CONTENT)
        upload = opened(uploads, session)
        upload.discard()
        upload.discard()
        assert uploads.session(session) is None
        assert uploads.open(session) is None

    def test_a_closed_file_is_not_written(self, uploads: Uploads) -> None:
        """The lock is gone: another request may write."""
        upload = opened(uploads, pushed(uploads, CONTENT))
        upload.close()
        with pytest.raises(StoreError):
            upload.fill(Pieces(CONTENT), ignore)

    def test_a_blob_that_is_hosted_already(self, uploads: Uploads, hosted: HostedBlobs, contents: Blobs) -> None:
        """Two pushers of one blob both succeed, and it is taken out of the queue."""
        sessions = [pushed(uploads, CONTENT) for _ in range(2)]
        opened(uploads, sessions[0]).publish(DIGEST)
        hosted.queue(QueuedBlob(DIGEST, 100.0))
        assert opened(uploads, sessions[1]).publish(DIGEST).size == len(CONTENT)
        assert hosted.queued(DIGEST) is None
        assert list(uploads.sessions()) == []
        assert contents.read(DIGEST, len(CONTENT)) == CONTENT

    def test_the_sweep(self, uploads: Uploads, another: Uploads) -> None:
        """Old sessions go, except one that a request writes to."""
        idle, busy = pushed(uploads, CONTENT), pushed(uploads, CONTENT)
        upload = opened(another, busy)
        assert uploads.sweep(before=-1.0) == Expired()
        assert uploads.sweep(before=LATER) == Expired(1, len(CONTENT))
        assert uploads.session(idle) is None
        assert [found.id for found in uploads.sessions()] == [busy]
        upload.publish(DIGEST)
        assert uploads.sweep(before=LATER) == Expired()

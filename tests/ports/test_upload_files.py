"""Upload sessions as files."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import threading
from contextlib import closing, suppress
from pathlib import Path

import pytest

from mirror.errors import BlobDamaged, BlobUnknown, StoreError, StoreFull
from mirror.oci.digest import Digest
from mirror.ports import Expired, UploadFile
from mirror.store.hosted.blob_names import HostedNames
from mirror.store.hosted.contents import LocalContents
from mirror.store.hosted.upload_files import LocalUploads
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from tests.support.store_suite import CONTENT, DIGEST, Pieces
from tests.support.tmpfs import tmpfs
from tests.support.uploads_suite import OWNER, UploadsSuite, ignore, opened, pushed


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Of an empty store."""
    return LocalStore(Layout(tmp_path)).layout


@pytest.fixture
def hosted(layout: Layout) -> HostedNames:
    """None yet."""
    return HostedNames(layout)


@pytest.fixture
def uploads(layout: Layout, hosted: HostedNames) -> LocalUploads:
    """None yet."""
    return LocalUploads(layout, hosted)


@pytest.fixture
def another(layout: Layout) -> LocalUploads:
    """Another process's view: it shares nothing but files."""
    return LocalUploads(layout, HostedNames(layout))


@pytest.fixture
def contents(layout: Layout) -> LocalContents:
    """Reads the blobs."""
    return LocalContents(layout)


class TestLocalUploads(UploadsSuite):
    """The disk behaves like the model in memory."""


class Plugged(Pieces):
    """A body that offers its socket, which does not block, as that of a client's request does."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._left = len(content)
        self._sending = threading.Thread(target=self._theirs.sendall, args=(content,))
        self._sending.start()

    def readinto(self, buffer: memoryview) -> int:
        """What has come since the last look at the socket."""
        try:
            received = self._ours.recv_into(buffer)
        except BlockingIOError:
            return 0
        self._left -= received
        return received

    def plain_socket(self) -> tuple[int, int] | None:
        """While more is to come."""
        return (self._ours.fileno(), self._left) if self._left else None

    def advance(self, count: int) -> None:
        """So many were taken."""
        self._left -= count

    def drain(self, upload: UploadFile) -> None:
        """All of it, into this upload."""
        while self._left:
            select.select([self._ours], [], [])
            upload.fill(self, ignore)

    def close(self) -> None:
        """Whoever sends ends, too."""
        self._ours.close()
        self._sending.join()
        self._theirs.close()


#: More than fits into a pipe, and than one buffer.
LARGE = bytes(range(251)) * 30_000


def test_a_spliced_upload(uploads: LocalUploads, contents: LocalContents) -> None:
    """Its bytes go from the socket into the file inside the kernel, and are hashed behind."""
    upload = opened(uploads, uploads.begin(OWNER))
    with closing(Plugged(LARGE)) as body:
        body.drain(upload)
    digest = Digest.of(LARGE)
    upload.publish(digest)
    assert contents.read(digest, len(LARGE)) == LARGE


class Received(Pieces):
    """The same in pieces, from memory."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content, step=300_000)

    def drain(self, upload: UploadFile) -> None:
        """All of it, into this upload."""
        upload.fill(self, ignore)

    def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize("kind", [Plugged, Received])
def test_88_an_upload_goes_on_once_there_is_room(tmp_path: Path, kind: type[Plugged | Received]) -> None:
    """Row 88: the disk is full in mid-upload. The bytes that found no room are not lost."""
    with tmpfs(tmp_path, "size=8m") as mount:
        layout = LocalStore(Layout(mount)).layout
        uploads = LocalUploads(layout, HostedNames(layout))
        cached = mount / "cached"
        cached.write_bytes(bytes(3_000_000))
        session = uploads.begin(OWNER)
        upload = opened(uploads, session)
        with closing(kind(LARGE)) as body:
            for _ in range(2):
                with pytest.raises(StoreFull):
                    body.drain(upload)
            found = uploads.session(session)
            assert found
            assert 1_000_000 < upload.offset == found.size < len(LARGE)
            cached.unlink()
            upload.fill(body, ignore)
            body.drain(upload)
        assert upload.publish(Digest.of(LARGE)).size == len(LARGE)


def test_sessions_of_an_earlier_boot_are_over(layout: Layout, uploads: LocalUploads) -> None:
    """After a power cut a file can have its size without its bytes. The sweep deletes it, however new it is."""
    session = uploads.begin(OWNER)
    boot, _, rest = session.partition("-")
    old = f"{'0' * len(boot)}-{rest}"
    (layout.uploads / session).rename(layout.uploads / old)
    (layout.uploads / old).write_bytes(bytes(1000))
    (layout.uploads / "notes").write_text("foreign")
    assert uploads.session(old) is None
    assert uploads.open(old) is None
    assert not list(uploads.sessions())
    assert uploads.sweep(before=0.0) == Expired(1, 1000)
    assert [path.name for path in layout.uploads.iterdir()] == ["notes"]


def test_87_a_worker_dies_between_two_requests(uploads: LocalUploads, another: LocalUploads) -> None:
    """Row 87: or in the middle of one. The kernel releases its lock, and another goes on at the same byte."""
    session = uploads.begin(OWNER)
    if not (process := os.fork()):
        with suppress(BaseException):
            opened(another, session).fill(Pieces(CONTENT[:300_000]), lambda _: os.kill(os.getpid(), signal.SIGKILL))
        os._exit(1)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    upload = opened(uploads, session)
    assert 0 < upload.offset < 300_000
    upload.fill(Pieces(CONTENT[upload.offset :]), ignore)
    assert upload.publish(DIGEST).size == len(CONTENT)


def test_few_hashes_are_remembered(layout: Layout, hosted: HostedNames, contents: LocalContents) -> None:
    """A session whose hash was forgotten is hashed again."""
    uploads = LocalUploads(layout, hosted, most_hashes=2)
    halves = {content: (content[:40_000], content[40_000:]) for content in (bytes([n]) * 90_000 for n in range(6))}
    sessions = {content: pushed(uploads, first) for content, (first, _) in halves.items()}
    for content, session in sessions.items():
        upload = opened(uploads, session)
        upload.fill(Pieces(halves[content][1]), ignore)
        upload.publish(Digest.of(content))
        assert contents.read(Digest.of(content), 90_000) == content


def test_a_file_that_changed_is_hashed_again(layout: Layout, uploads: LocalUploads) -> None:
    """The remembered hash is of bytes that are not there any more: they must not be published under its digest."""
    session = pushed(uploads, CONTENT)
    path = layout.uploads / session
    before = path.stat()
    path.write_bytes(b"x" * len(CONTENT))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(BlobDamaged):
        opened(uploads, session).publish(DIGEST)
    assert uploads.open(session)


def test_a_failed_sync_ends_the_session(
    layout: Layout, uploads: LocalUploads, hosted: HostedNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second sync that succeeds would prove nothing."""
    session = pushed(uploads, CONTENT)
    upload = opened(uploads, session)

    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StoreError):
            upload.publish(DIGEST)
    assert uploads.open(session) is None
    with pytest.raises(BlobUnknown):
        hosted.hosted(DIGEST)


def test_published_blobs_are_read_only_and_private(layout: Layout, uploads: LocalUploads) -> None:
    """Nobody but the owner reads pushed content, and not even the owner writes to it by mistake."""
    opened(uploads, pushed(uploads, CONTENT)).publish(DIGEST)
    assert Path(layout.hosted_blob(DIGEST)).stat().st_mode & 0o777 == 0o400
    for folder in (layout.hosted, layout.uploads):
        assert folder.stat().st_mode & 0o077 == 0

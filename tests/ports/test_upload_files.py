"""Upload sessions as files."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import closing
from pathlib import Path

import pytest

from mirror.errors import StoreFull
from mirror.oci.digest import Digest
from mirror.ports import UploadFile
from mirror.store.hosted.blob_names import HostedNames
from mirror.store.hosted.contents import LocalContents
from mirror.store.hosted.upload_files import LocalUploads
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from tests.support.store_suite import Pieces
from tests.support.tmpfs import tmpfs
from tests.support.uploads_suite import OWNER, UploadsSuite, ignore, opened


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

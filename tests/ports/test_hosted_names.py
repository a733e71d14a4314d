"""Hosted blobs and upload sessions on the local disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mirror.errors import BlobDamaged, BlobUnknown, RecordChanged, RecordDamaged
from mirror.oci.digest import Digest
from mirror.policy.hosted_records import QueuedBlob
from mirror.store.hosted.blob_names import HostedNames
from mirror.store.hosted.contents import LocalContents
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from tests.support.hosted_blobs_suite import CONTENT, DIGEST, HostedBlobsSuite, all_queued


class TestHostedNames(HostedBlobsSuite):
    """The disk behaves like the model in memory."""

    @pytest.fixture
    def cache(self, tmp_path: Path) -> LocalStore:
        """Empty."""
        return LocalStore(Layout(tmp_path))

    @pytest.fixture
    def hosted(self, cache: LocalStore) -> HostedNames:
        """On the same disk."""
        return HostedNames(cache.layout)

    @pytest.fixture
    def another(self, cache: LocalStore) -> HostedNames:
        """Another process's view: it shares nothing but files."""
        return HostedNames(cache.layout)

    @pytest.fixture
    def contents(self, cache: LocalStore) -> LocalContents:
        """Reads both names."""
        return LocalContents(cache.layout)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Of an empty store."""
    return LocalStore(Layout(tmp_path)).layout


@pytest.fixture
def hosted(layout: Layout) -> HostedNames:
    """Without a blob."""
    return HostedNames(layout)


def test_an_adopted_blob_is_one_file(layout: Layout, hosted: HostedNames) -> None:
    """It takes the room of one, and nobody writes to it by mistake."""
    LocalStore(layout).put(DIGEST, CONTENT)
    hosted.adopt(DIGEST)
    status = Path(layout.hosted_blob(DIGEST)).stat()
    assert (status.st_nlink, status.st_mode & 0o777) == (2, 0o400)
    assert Path(layout.blob(DIGEST)).samefile(layout.hosted_blob(DIGEST))


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_hard_links(
    layout: Layout, hosted: HostedNames, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """What is adopted is copied, and a damaged file is not."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    store = LocalStore(layout)
    store.put(DIGEST, CONTENT)
    hosted.adopt(DIGEST)
    store.delete(DIGEST)
    assert LocalContents(layout).read(DIGEST, 1000) == CONTENT
    assert Path(layout.hosted_blob(DIGEST)).stat().st_mode & 0o777 == 0o400
    other = Digest.of(b"another")
    store.put(other, b"another")
    damage(layout.blob(other), b"rubbish")
    with pytest.raises(BlobDamaged):
        hosted.adopt(other)
    with pytest.raises(BlobUnknown):
        hosted.hosted(other)
    assert not list(layout.ingests.iterdir())


def test_a_store_that_hosts_nothing_has_no_folders_for_it(layout: Layout, hosted: HostedNames) -> None:
    """They are made when they are needed."""
    assert not [*hosted.blobs(None, 10), *all_queued(hosted)]
    assert not [path for path in (layout.hosted, layout.hosted_queue, layout.uploads) if path.exists()]


# ------------------------------------------------------------------------------------------------------------ damage


def damage(path: str, content: bytes) -> None:
    """Other bytes in this file, behind the store's back."""
    Path(path).chmod(0o600)
    Path(path).write_bytes(content)


def set_aside(layout: Layout, digest: Digest) -> bool:
    """Whoever reads a damaged blob under any of its names sets it aside."""
    contents = LocalContents(layout)
    _, reader = contents.open(digest)
    try:
        return contents.set_aside(digest, reader)
    finally:
        reader.close()


def test_a_damaged_hosted_blob_is_kept_until_it_comes_again(layout: Layout, hosted: HostedNames) -> None:
    """It leaves its place, and nothing drops it, however full the quarantine may be; a push repairs it."""
    hosted.put(DIGEST, CONTENT)
    damage(layout.hosted_blob(DIGEST), b"rubbish")
    assert set_aside(layout, DIGEST)
    with pytest.raises(BlobUnknown):
        hosted.hosted(DIGEST)
    store = LocalStore(layout)
    assert list(store.quarantined()) == []
    assert store.drop_quarantined(DIGEST) == 0
    assert [(blob.digest, blob.size) for blob in hosted.damaged()] == [(DIGEST, 7)]
    hosted.put(DIGEST, CONTENT)
    assert not [*hosted.damaged(), *layout.hosted_damaged.iterdir()]


def test_a_damaged_file_loses_both_its_names(layout: Layout, hosted: HostedNames) -> None:
    """And the room that it takes is not counted as freed while it has one in `hosted-damaged/`."""
    store = LocalStore(layout)
    store.put(DIGEST, CONTENT)
    hosted.adopt(DIGEST)
    damage(layout.blob(DIGEST), b"rubbish")
    assert set_aside(layout, DIGEST)
    for look in (store.stat, hosted.hosted, LocalContents(layout).stat):
        with pytest.raises(BlobUnknown):
            look(DIGEST)
    assert store.drop_quarantined(DIGEST) == 0
    assert not store.quarantined()
    assert len(hosted.damaged()) == 1


def test_a_name_that_leads_to_another_file_stays(layout: Layout, hosted: HostedNames) -> None:
    """Nothing is known against it."""
    store = LocalStore(layout)
    store.put(DIGEST, CONTENT)
    hosted.put(DIGEST, CONTENT)
    damage(layout.hosted_blob(DIGEST), b"rubbish")
    assert set_aside(layout, DIGEST)
    assert store.read(DIGEST, 1000) == LocalContents(layout).read(DIGEST, 1000) == CONTENT
    damage(layout.blob(DIGEST), b"rubbish")
    hosted.put(DIGEST, CONTENT)
    _, reader = store.open(DIGEST)
    assert store.set_aside(DIGEST, reader)
    assert LocalContents(layout).read(DIGEST, 1000) == CONTENT
    reader.close()


def test_a_hosted_blob_of_another_size_is_replaced(layout: Layout, hosted: HostedNames) -> None:
    """Whoever adopts or pushes a blob gets one that has all its bytes."""
    store = LocalStore(layout)
    store.put(DIGEST, CONTENT)
    hosted.adopt(DIGEST)
    store.delete(DIGEST)
    damage(layout.hosted_blob(DIGEST), CONTENT[:5])
    store.put(DIGEST, CONTENT)
    assert hosted.adopt(DIGEST).size == len(CONTENT)
    assert LocalContents(layout).read(DIGEST, 1000) == CONTENT
    assert not hosted.damaged()


def test_a_blob_that_is_uploaded_again_gets_the_new_file(layout: Layout, hosted: HostedNames, tmp_path: Path) -> None:
    """Whether the old one was damaged or not: nobody has read that since. The cache keeps its own."""
    store, uploaded = LocalStore(layout), tmp_path / "uploaded"
    store.put(DIGEST, CONTENT)
    hosted.adopt(DIGEST)
    damage(layout.hosted_blob(DIGEST), bytes(len(CONTENT)))
    uploaded.write_bytes(CONTENT)
    assert hosted.take_in(DIGEST, uploaded, len(CONTENT)).size == len(CONTENT)
    assert LocalContents(layout).read(DIGEST, 1000) == CONTENT
    assert store.stat(DIGEST).size == len(CONTENT)
    assert not uploaded.exists()
    assert not hosted.damaged()


def test_a_damaged_record_of_the_queue_is_dropped_by_a_rescue(layout: Layout, hosted: HostedNames) -> None:
    """Until then it collects nothing, and another record does not replace it."""
    hosted.put(DIGEST, CONTENT)
    hosted.queue(QueuedBlob(DIGEST, 1.0))
    Path(layout.queued_blob(DIGEST)).write_bytes(b"{")
    with pytest.raises(RecordDamaged):
        hosted.queued(DIGEST)
    with pytest.raises(RecordChanged):
        hosted.queue(QueuedBlob(DIGEST, 2.0))
    assert all_queued(hosted) == []
    hosted.rescue(DIGEST)
    assert hosted.queued(DIGEST) is None


def test_foreign_files_are_no_blobs(layout: Layout, hosted: HostedNames) -> None:
    """Links, folders and files of other names are left alone."""
    hosted.put(DIGEST, CONTENT)
    folder = Path(layout.hosted_blob(DIGEST)).parent
    (folder / "notes").write_text("mine")
    (folder / f"{DIGEST.hex[:2]}{'0' * 62}").symlink_to("/etc/passwd")
    (layout.hosted / "sha256" / "old").mkdir()
    assert [info.digest for info in hosted.blobs(None, 10)] == [DIGEST]
    assert [info.digest for info in LocalContents(layout).walk()] == [DIGEST]
    linked = Digest.parse(f"sha256:{DIGEST.hex[:2]}{'0' * 62}")
    with pytest.raises(BlobUnknown):
        LocalContents(layout).open(linked)
    with pytest.raises(BlobUnknown):
        hosted.rescue(linked)

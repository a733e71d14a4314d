"""Backups of hosted content: complete and consistent, whatever happens while they are made."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mirror.errors import BlobUnknown, ConfigError, StoreError
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST
from mirror.oci.reference import Repo
from mirror.policy.hosted_records import BlobLink, DeletedManifest, LinkState, QueuedBlob
from mirror.policy.records import ManifestRecord, TagRecord
from mirror.store.hosted import backup_folder
from mirror.store.hosted.backup_folder import BackupFolder, BackupReport
from mirror.store.hosted.blob_names import HostedNames
from mirror.store.hosted.contents import LocalContents
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from mirror.store.local.local_records import local_catalog, local_repository_records

APP = Repo("corp", "team/app")
OTHER = Repo("corp", "other")


class Hosted:
    """The hosted content of one store, changed in the order in which pushes and deletions change it."""

    def __init__(self, root: Path) -> None:
        self.store = LocalStore(Layout(root))
        self.layout = self.store.layout
        self.names = HostedNames(self.layout)
        self.records = local_repository_records(self.layout)
        self.catalog = local_catalog(self.layout)

    def push_blob(self, repo: Repo, content: bytes) -> Digest:
        digest = Digest.of(content)
        self.names.put(digest, content)
        self.records.put_link(repo, BlobLink(digest, len(content), LinkState.LINKED, 1.0))
        return digest

    def push(self, repo: Repo, tag: str, *children: Digest) -> Digest:
        """An image of a layer, or an index of images."""
        layer = self.push_blob(repo, f"layer of {repo}:{tag}".encode())
        content = json.dumps({"layer": str(layer), "children": [*map(str, children)]}).encode()
        digest, kind = Digest.of(content), OCI_INDEX if children else OCI_MANIFEST
        self.names.put(digest, content)
        self.catalog.put_manifest(repo, ManifestRecord(digest, kind, len(content), 1.0))
        self.catalog.put_tag(repo, TagRecord(tag, digest, kind, len(content), 1.0))
        return digest

    def delete(self, repo: Repo, tag: str, *, keep: bool) -> None:
        """The image of a tag; it is kept for a while, or collected at once with its bytes."""
        record = self.catalog.get_tag(repo, tag)
        assert record
        digest = record.digest
        manifest = json.loads(self.read(digest))
        if keep:
            kept = DeletedManifest(digest, record.media_type, record.size, 1.0, 2.0, tags=(tag,))
            self.records.put_deleted_manifest(repo, kept)
        self.catalog.drop_manifest(repo, digest)
        self.catalog.drop_tag(repo, tag)
        if not keep:
            layer = Digest.parse(manifest["layer"])
            self.records.drop_link(repo, layer)
            for gone in (layer, digest):
                self.names.collect(gone, self.names.queue(QueuedBlob(gone, 1.0)))

    def undelete(self, repo: Repo, digest: Digest) -> None:
        found = self.records.deleted_manifest(repo, digest)
        assert found
        record = found.record
        self.catalog.put_manifest(repo, ManifestRecord(digest, record.media_type, record.size, 1.0))
        for tag in record.tags:
            self.catalog.put_tag(repo, TagRecord(tag, digest, record.media_type, record.size, 1.0))
        self.records.drop_deleted_manifest(repo, digest)

    def read(self, digest: Digest) -> bytes:
        return LocalContents(self.layout).read(digest, 1 << 20)

    def whole(self, repo: Repo, digest: Digest) -> bool:
        """True if the repository has the manifest, and everything that it names can be served."""
        if not self.catalog.get_manifest(repo, digest):
            return False
        manifest = json.loads(self.read(digest))
        layer = Digest.parse(manifest["layer"])
        link = self.records.link(repo, layer)
        served = link is not None and link.record.state is LinkState.LINKED and bool(self.read(layer))
        return served and all(self.whole(repo, Digest.parse(child)) for child in manifest["children"])

    def images(self, repo: Repo) -> dict[str, bool]:
        """Each tag that counts, and whether all of its image is here."""
        tags = {tag: self.catalog.get_tag(repo, tag) for tag in self.catalog.tags(repo)}
        counting = {tag: record for tag, record in tags.items() if record}
        return {
            tag: self.whole(repo, record.digest)
            for tag, record in counting.items()
            if self.catalog.get_manifest(repo, record.digest)
        }


@pytest.fixture
def hosted(tmp_path: Path) -> Hosted:
    """Empty."""
    return Hosted(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of the backup; absent."""
    return tmp_path / "backup"


def back_up(hosted: Hosted, folder: Path) -> BackupReport:
    """A backup of the registry `corp`."""
    return BackupFolder(hosted.layout, hosted.store.id, ["corp"], folder, now=lambda: 1000.0).back_up()


def restored(folder: Path, root: Path) -> Hosted:
    """The backup, copied into an empty root as the documentation says."""
    root.mkdir()
    shutil.copytree(folder / "hosted", root / "hosted")
    shutil.copytree(folder / "records", root, dirs_exist_ok=True)
    return Hosted(root)


def test_everything_comes_back(hosted: Hosted, folder: Path, tmp_path: Path) -> None:
    """Images, indexes, deleted images and tags with their bytes; in a store of its own, and only hosted registries."""
    image = hosted.push(APP, "1.0")
    hosted.push(APP, "index", image)
    gone = hosted.push(OTHER, "2.0")
    hosted.delete(OTHER, "2.0", keep=True)
    cached = Repo("docker.io", "library/alpine")
    hosted.catalog.put_tag(cached, TagRecord("1", image, OCI_MANIFEST, 1, 1.0))
    report = back_up(hosted, folder)
    assert (report.repositories, report.copied, report.present, report.removed) == (2, 6, 0, 0)
    assert report.problems == []
    copy = restored(folder, tmp_path / "new")
    assert copy.store.id != hosted.store.id
    assert copy.images(APP) == {"1.0": True, "index": True}
    assert copy.images(OTHER) == {}
    copy.undelete(OTHER, gone)
    assert copy.images(OTHER) == {"2.0": True}
    assert sorted(copy.catalog.repositories()) == sorted([APP, OTHER])
    assert json.loads((folder / "backup.json").read_text()) == {
        "store": hosted.store.id,
        "beganAt": 1000.0,
        "endedAt": 1000.0,
    }


def test_names_without_images_come_back(hosted: Hosted, folder: Path, tmp_path: Path) -> None:
    """A name that was pushed to stays taken after its last image has gone, also in a restored store."""
    hosted.push(APP, "1.0")
    hosted.push(OTHER, "2.0")
    hosted.delete(OTHER, "2.0", keep=False)
    assert list(hosted.records.repositories("corp")) == [APP]
    assert back_up(hosted, folder).repositories == 1
    copy = restored(folder, tmp_path / "new")
    assert copy.records.is_taken(OTHER)
    assert sorted(copy.records.taken("corp")) == sorted([APP, OTHER])
    assert list(copy.records.repositories("corp")) == [APP]


def test_the_next_backup_copies_what_is_new(hosted: Hosted, folder: Path, tmp_path: Path) -> None:
    """Bytes that are there are not read again, and those that nothing names any more are deleted."""
    hosted.push(APP, "1.0")
    hosted.push(APP, "2.0")
    assert back_up(hosted, folder).copied == 4
    unchanged = back_up(hosted, folder)
    assert (unchanged.copied, unchanged.copied_bytes, unchanged.present, unchanged.removed) == (0, 0, 4, 0)
    hosted.delete(APP, "1.0", keep=False)
    hosted.push(APP, "3.0")
    changed = back_up(hosted, folder)
    assert (changed.copied, changed.present, changed.removed) == (2, 2, 2)
    assert restored(folder, tmp_path / "new").images(APP) == {"2.0": True, "3.0": True}


#: Every so many steps of the backup, a change is tried.
_STRIDE = 4
_CHANGES: dict[str, Callable[[Hosted], object]] = {
    "push": lambda hosted: hosted.push(APP, "new", hosted.push(APP, "child")),
    "delete": lambda hosted: hosted.delete(APP, "victim", keep=True),
    "delete now": lambda hosted: hosted.delete(APP, "victim", keep=False),
    "delete now elsewhere": lambda hosted: hosted.delete(OTHER, "victim", keep=False),
    "undelete": lambda hosted: hosted.undelete(APP, next(iter(hosted.records.deleted_manifests(APP)))),
}


@pytest.mark.parametrize("change", _CHANGES)
def test_a_change_at_any_step(
    hosted: Hosted, folder: Path, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a change between any two steps of the backup, every tag in it has all of its image. What was there before
    and was not deleted is there, and what was deleted but kept, or undeleted, is one or the other.
    """
    hosted.push(APP, "victim")
    hosted.push(OTHER, "victim")
    hosted.push(APP, "stays", hosted.push(APP, "1.0"))
    kept = hosted.push(APP, "kept")
    hosted.delete(APP, "kept", keep=True)
    shutil.copytree(hosted.layout.root, tmp_path / "before")
    steps, at = 0, -1
    for name in ("sync", "fsync"):
        # hundreds of stores are written here, and none of them meets a power cut
        monkeypatch.setattr(os, name, lambda *_: None)

    def step(*_: object) -> None:
        nonlocal steps
        if steps == at:
            _CHANGES[change](Hosted(root))
        steps += 1

    def before(owner: object, name: str) -> None:
        work = getattr(owner, name)

        def stepped(*arguments: object) -> object:
            step()
            return work(*arguments)

        monkeypatch.setattr(owner, name, stepped)

    before(backup_folder, "_listed")
    before(backup_folder, "read_file")
    before(BackupFolder, "_copy_blob")
    root = tmp_path / "before"
    back_up(Hosted(root), tmp_path / "counting")
    assert steps > 40
    # each change takes other steps than the next one
    for at in range([*_CHANGES].index(change) % _STRIDE, steps, _STRIDE):
        root, target, copy_root = tmp_path / "root", tmp_path / "target", tmp_path / "copy"
        for old in (root, target, copy_root):
            shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(hosted.layout.root, root)
        steps = 0
        report = back_up(Hosted(root), target)
        assert report.problems == [], at
        copy = restored(target, copy_root)
        images = copy.images(APP) | {f"other {tag}": whole for tag, whole in copy.images(OTHER).items()}
        assert all(images.values()), (at, images)
        expected = {"stays", "1.0"} | ({"victim"} if change not in ("delete", "delete now") else set())
        assert expected <= images.keys(), at
        deleted = set(copy.records.deleted_manifests(APP))
        assert kept in deleted or copy.whole(APP, kept), at
        if change == "delete":
            victim = hosted.catalog.get_tag(APP, "victim")
            assert victim
            assert victim.digest in deleted or images.get("victim"), at


def test_an_interrupted_backup_leaves_the_one_before(
    hosted: Hosted, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any step; the next one completes it."""
    hosted.push(APP, "1.0")
    back_up(hosted, folder)
    hosted.push(APP, "2.0")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for owner, name in ((BackupFolder, "_put"), (BackupFolder, "_copy_blob"), (os, "sync")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises(StoreError, match="No space left"):
                back_up(hosted, folder)
        copy = restored(folder, tmp_path / name)
        assert copy.images(APP) == {"1.0": True}
    # killed between the two renames
    (folder / "records").rename(folder / "records-previous")
    assert back_up(hosted, folder).problems == []
    assert restored(folder, tmp_path / "last").images(APP) == {"1.0": True, "2.0": True}
    assert sorted(os.listdir(folder)) == ["backup.json", "backup.lock", "hosted", "records"]


def test_what_cannot_be_copied_is_named(hosted: Hosted, folder: Path, tmp_path: Path) -> None:
    """Missing and damaged bytes, and damaged records. All else is copied, and the last backup's copies stay."""
    for tag in ("rotten", "lost", "cut", "fine"):
        hosted.push(APP, tag)
    back_up(hosted, folder)
    first = restored(folder, tmp_path / "first")

    def digest(tag: str) -> Digest:
        record = first.catalog.get_tag(APP, tag)
        assert record
        return record.digest

    rotten, lost = Path(hosted.layout.hosted_blob(digest("rotten"))), hosted.layout.hosted_blob(digest("lost"))
    rotten.chmod(0o600)
    rotten.write_bytes(b"x" * rotten.stat().st_size)
    Path(lost).unlink()
    (Path(hosted.layout.tags(APP)) / "cut").write_bytes(b'{"dig')
    report = back_up(hosted, folder)
    assert report.problems == ["repositories/corp/team/app/_tags/cut is damaged"]
    again = restored(folder, tmp_path / "again")
    assert again.images(APP) == dict.fromkeys(("rotten", "lost", "cut", "fine"), True)
    report = back_up(hosted, tmp_path / "fresh")
    assert sorted(report.problems) == sorted(
        [
            f"{APP} has no bytes of {digest('lost')}",
            f"{digest('rotten')} of {APP}: the bytes in the store do not match the digest",
            "repositories/corp/team/app/_tags/cut is damaged",
        ]
    )
    fresh = restored(tmp_path / "fresh", tmp_path / "third")
    assert fresh.whole(APP, digest("fine"))
    with pytest.raises(BlobUnknown):
        fresh.read(digest("rotten"))


def test_a_repository_that_cannot_be_listed_fails_the_backup(
    hosted: Hosted, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be missing; the backup before stays."""
    hosted.push(APP, "1.0")
    back_up(hosted, folder)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(backup_folder, "_listed", fail)
        with pytest.raises(StoreError, match="Input/output error"):
            back_up(hosted, folder)
    assert restored(folder, tmp_path / "new").images(APP) == {"1.0": True}


def test_a_folder_that_must_not_be_used(hosted: Hosted, folder: Path, tmp_path: Path) -> None:
    """Nothing in it is changed: foreign files, another store's backup, the store itself."""
    hosted.push(APP, "1.0")
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty, and is no backup"):
        back_up(hosted, folder)
    assert os.listdir(folder) == ["notes.txt"]
    for inside in (hosted.layout.root, hosted.layout.root / "backup", hosted.layout.root.parent):
        with pytest.raises(ConfigError, match="contain one another"):
            back_up(hosted, inside)
    mine = tmp_path / "mine"
    back_up(hosted, mine)
    with pytest.raises(ConfigError, match="is the backup of another store"):
        back_up(Hosted(tmp_path / "empty"), mine)
    assert restored(mine, tmp_path / "new").images(APP) == {"1.0": True}
    (mine / "backup.json").write_text("{")
    with pytest.raises(ConfigError, match=r"backup\.json is damaged"):
        back_up(hosted, mine)


def test_one_backup_at_a_time(hosted: Hosted, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into the same folder."""
    hosted.push(APP, "1.0")
    refused: list[str] = []

    def meanwhile() -> None:
        with pytest.raises(ConfigError, match=r"another backup to .* is running"):
            back_up(hosted, folder)
        refused.append("yes")

    monkeypatch.setattr(os, "sync", meanwhile)
    back_up(hosted, folder)
    assert refused == ["yes"]

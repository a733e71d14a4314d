"""A copy of all hosted content in a folder, made while the mirror runs.

    FOLDER/
    ├── backup.json            when the last complete backup began and ended (null: none is complete), of which store
    ├── backup.lock            held by the backup that is running
    ├── hosted/                the bytes, named as in the store; shared by all backups into this folder
    ├── records/               the last complete backup's records, as in the root of the store:
    │   ├── repositories/<registry>/<name…>/…
    │   └── pins/ freezes/
    ├── records-next/          the records of a backup that is under way, or was interrupted
    └── records-previous/      for the moment in which records-next becomes records

    records ──> records-next ── the bytes that they name ──> hosted/ ── all is durable ──> records-next becomes records
                                                                        ── bytes that no record names are deleted

So an interrupted backup leaves the one before it whole, and the next one goes on with the bytes that are there.

What was acknowledged before the backup began is in it, unless it was deleted before the backup came to it:

* Records come before bytes, because whoever pushes writes the bytes first.
* Within a repository, what refers to something comes before it: tags, then manifests, then referrers and links. Names
  of manifests are listed until no new ones come, because an index could be listed without a manifest that was pushed
  just before it.
* Deletions are copied before and after tags and manifests, because both deleting and undeleting write one side before
  they drop the other. What is on both sides counts as not deleted.
* Bytes that were collected after their record was copied take the record with them. Bytes that are missing although
  the record is still in the store are a problem that the report names.

The change counters are not copied: processes that remember them do not outlive a restore.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Final

from mirror.errors import BlobUnknown, ConfigError, StoreError
from mirror.folders import sync_folder
from mirror.oci.digest import Digest, hasher
from mirror.oci.reference import Repo
from mirror.policy.hosted_records import BlobLink, DeletedManifest, LinkState
from mirror.policy.records import ManifestRecord
from mirror.store.hosted.contents import LocalContents
from mirror.store.local.durable import make_folder, store_errors, write_all, write_whole
from mirror.store.local.file_tree import read_file
from mirror.store.local.layout import Layout
from mirror.store.local.local_records import local_catalog, local_repository_records
from mirror.store.records.record_keys import digest_from

_BLOCK: Final = 1 << 20
#: The folders of a repository, each before those that it refers to; deletions twice.
_ORDER: Final = ("_deleted", "_deleted_tags", "_tags", "_history", "_manifests", "_deleted", "_deleted_tags")
_LAST: Final = ("_referrers", "_blobs")
#: The folders whose records have bytes.
_WITH_BYTES: Final = ("_blobs", "_manifests", "_deleted")
#: Listings of one folder that may find new names before the backup goes on without the rest.
_LISTINGS: Final = 100


@dataclass(slots=True)
class BackupReport:
    """What a backup did. Sizes are in bytes; `problems` are sentences about what could not be copied."""

    repositories: int = 0
    records: int = 0
    copied: int = 0
    copied_bytes: int = 0
    present: int = 0
    removed: int = 0
    problems: list[str] = field(default_factory=list)


def last_backup(layout: Layout) -> float | None:
    """When the last complete backup of a store began, in epoch seconds; None if there was none. Raises `StoreError`."""
    with store_errors("looking for the last backup"), suppress(FileNotFoundError):
        return layout.backed_up.stat().st_mtime
    return None


class BackupFolder:
    """Copies the hosted content of one store into one folder. Blocking; for one backup."""

    def __init__(
        self,
        layout: Layout,
        store_id: str,
        registries: Iterable[str],
        folder: Path,
        *,
        now: Callable[[], float],
        progress: Callable[[int], None] = lambda _size: None,
    ) -> None:
        """`registries` are the hosted ones. `progress` is called with the size of each piece that was copied."""
        self._layout = layout
        self._store_id = store_id
        self._registries = tuple(registries)
        self._folder = folder
        self._now = now
        self._progress = progress
        self._contents = LocalContents(layout)
        self._report = BackupReport()
        self._missing: set[int] = set()

    def __repr__(self) -> str:
        return f"<BackupFolder {self._folder}>"

    def back_up(self) -> BackupReport:
        """Make the folder a backup of the store as it is now.

        Raises `ConfigError` if the folder must not be used, `StoreError` if the backup could not be completed; the
        backup that was there before is then still there.
        """
        with store_errors(f"writing the backup to {self._folder}"), self._only_one():
            began_at = self._now()
            self._begin()
            self._copy_records()
            named = self._copy_bytes()
            self._forget_what_went()
            # one call for all small files; a sync of each would take minutes for a million records
            os.sync()
            self._publish(began_at)
            self._delete_unnamed(named)
        if not self._report.problems:
            with store_errors("noting the backup"):
                self._note(began_at)
        return self._report

    def _note(self, began_at: float) -> None:
        """Let the mirror show when the backup was made."""
        descriptor = os.open(self._layout.backed_up, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.utime(descriptor, (began_at, began_at))
            if os.geteuid() == 0:
                # the store's owner makes the next one, perhaps
                owner = self._layout.marker.stat()
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
        finally:
            os.close(descriptor)

    @property
    def _records(self) -> Path:
        return self._folder / "records"

    @property
    def _next(self) -> Path:
        return self._folder / "records-next"

    @property
    def _previous(self) -> Path:
        return self._folder / "records-previous"

    @contextmanager
    def _only_one(self) -> Iterator[None]:
        """Make the folder if need be, check that it is a backup of this store, and lock it."""
        root = self._layout.root.resolve()
        target = self._folder.resolve()
        if target == root or root in target.parents or target in root.parents:
            raise ConfigError([f"{self._folder} and the store contain one another: give a folder elsewhere"])
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._check_folder()
        # a file of its own, because a folder cannot be locked on every network file system
        descriptor = os.open(self._folder / "backup.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError([f"another backup to {self._folder} is running"]) from None
            yield
        finally:
            os.close(descriptor)

    def _check_folder(self) -> None:
        written = read_file(self._folder / "backup.json", "backup.json")
        if written is None:
            if set(os.listdir(self._folder)) - {"backup.lock", "lost+found"}:
                raise ConfigError([f"{self._folder} is not empty, and is no backup: it has no backup.json"])
            return
        try:
            of = json.loads(written)["store"]
        except (ValueError, TypeError, KeyError):
            raise ConfigError([f"{self._folder}/backup.json is damaged; give another folder"]) from None
        if of != self._store_id:
            raise ConfigError(
                [f"{self._folder} is the backup of another store, which this one would replace; give another folder"]
            )

    def _begin(self) -> None:
        if not (self._folder / "backup.json").exists():
            # from here on the folder is a backup of this store, even if this one is interrupted
            self._describe(None, None)
        shutil.rmtree(self._next, ignore_errors=True)
        if not self._records.exists():
            # a backup died between its two renames
            with suppress(FileNotFoundError):
                self._previous.rename(self._records)
        self._next.mkdir(mode=0o700)

    def _copy_records(self) -> None:
        for kind in ("pins", "freezes"):
            self._copy_folder(self._layout.records(kind), Path(kind))
        records = local_repository_records(self._layout)
        for repo in chain(*map(records.taken, self._registries)):
            # a name stays taken when nothing is left under it; the folder says so
            Path(Layout(self._next).manifests(repo)).mkdir(mode=0o700, parents=True, exist_ok=True)
        for repo in chain(*map(records.repositories, self._registries)):
            self._report.repositories += 1
            below = Path(self._layout.repository(repo)).relative_to(self._layout.root)
            for name in _ORDER:
                self._copy_folder(self._layout.root / below / name, below / name)
            for name in _LAST:
                for folder in _folders(self._layout.root / below / name):
                    self._copy_folder(folder, folder.relative_to(self._layout.root))

    def _copy_folder(self, source: Path, below: Path) -> None:
        """Copy the records of a folder, without those in folders below it. Raises `StoreError` if it cannot be listed,
        because records that are not listed would be missing in the backup.
        """
        seen: set[str] = set()
        for _ in range(_LISTINGS):
            names = {name for name in _listed(source) if name not in seen}
            if not names:
                break
            seen |= names
            for name in sorted(names):
                self._copy_record(source / name, below / name)

    def _copy_record(self, source: Path, below: Path) -> None:
        """Copy one record. A record that cannot be read, or is damaged, keeps the copy that the last backup has."""
        before = self._records / below
        try:
            content = read_file(source, "the record")
            sound = content is None or _is_json(content)
        except StoreError as error:
            content, sound = None, False
            self._report.problems.append(f"{below}: {error}")
        else:
            if not sound:
                self._report.problems.append(f"{below} is damaged")
        kept = _read_if_there(before)
        if not sound and kept is not None and _is_json(kept):
            content = kept
        if content is None:
            return
        self._put(below, content, before if kept == content else None)

    def _put(self, below: Path, content: bytes, same: Path | None) -> None:
        """Write a record of the next backup. `same` is a file that has this content already."""
        target = self._next / below
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if target.exists():
            target.unlink()
        else:
            self._report.records += 1
        if same:
            # not every file system has hard links
            with suppress(OSError):
                os.link(same, target)
                return
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_all(descriptor, content)
        finally:
            os.close(descriptor)

    def _copy_bytes(self) -> set[int]:
        """Copy the bytes that the records name. Returns which bytes they name."""
        named: set[int] = set()
        records = local_repository_records(Layout(self._next))
        for repo in chain(*map(records.repositories, self._registries)):
            folder = Path(Layout(self._next).repository(repo))
            for kind in _WITH_BYTES:
                for name in _listed(folder / kind):
                    digest = digest_from(name)
                    if digest and self._has_bytes(repo, kind, digest, folder / kind / name):
                        named.add(_short(digest))
        self._report.present = len(named) - self._report.copied - len(self._missing)
        return named

    def _forget_what_went(self) -> None:
        """Drop the records of manifests that were deleted for good meanwhile: their bytes may not be here."""
        copied, live = Layout(self._next), local_repository_records(self._layout)
        catalog = local_catalog(self._layout)
        for repo in chain(*map(local_repository_records(copied).repositories, self._registries)):
            folder = Path(copied.manifests(repo))
            for name in _listed(folder):
                digest = digest_from(name)
                with suppress(StoreError):
                    if digest and not catalog.manifest(repo, digest) and not live.deleted_manifest(repo, digest):
                        (folder / name).unlink()

    def _has_bytes(self, repo: Repo, kind: str, digest: Digest, record: Path) -> bool:
        """Copy the bytes of one record unless they are there. False if the backup has none, and need not have any."""
        size = _size(kind, digest, record.read_bytes())
        target = Path(Layout(self._folder).hosted_blob(digest))
        if size is None:
            return False
        with suppress(FileNotFoundError):
            if target.stat().st_size == size:
                return True
        try:
            self._copy_blob(digest, target)
        except BlobUnknown:
            below = record.relative_to(self._next)
            now = read_file(self._layout.root / below, "the record")
            if now is None or _size(kind, digest, now) is None:
                record.unlink()
                return False
            self._report.problems.append(f"{repo} has no bytes of {digest}")
        except StoreError as error:
            self._report.problems.append(f"{digest} of {repo}: {error}")
        else:
            return True
        self._missing.add(_short(digest))
        return True

    def _copy_blob(self, digest: Digest, target: Path) -> None:
        """Copy and check the bytes, durable on return. Raises `BlobUnknown`, `StoreError`."""
        _info, reader = self._contents.open(digest)
        make_folder(target.parent, below=self._folder)
        part = target.with_name(f"tmp-{secrets.token_hex(16)}")
        try:
            hashed, size = hasher(digest), 0
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
            try:
                while piece := reader.pread_once(_BLOCK, size):
                    hashed.update(piece)
                    write_all(descriptor, piece)
                    size += len(piece)
                    self._progress(len(piece))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if hashed.hexdigest() != digest.hex:
                raise StoreError("the bytes in the store do not match the digest")
            part.rename(target)
            sync_folder(target.parent)
        finally:
            reader.close()
            part.unlink(missing_ok=True)
        self._report.copied += 1
        self._report.copied_bytes += size

    def _publish(self, began_at: float) -> None:
        shutil.rmtree(self._previous, ignore_errors=True)
        with suppress(FileNotFoundError):
            self._records.rename(self._previous)
        self._next.rename(self._records)
        sync_folder(self._folder)
        self._describe(began_at, self._now())
        shutil.rmtree(self._previous, ignore_errors=True)

    def _describe(self, began_at: float | None, ended_at: float | None) -> None:
        body: dict[str, Any] = {"store": self._store_id, "beganAt": began_at, "endedAt": ended_at}
        write_whole(self._folder / "backup.json", json.dumps(body).encode(), through=self._folder, mode=0o666)

    def _delete_unnamed(self, named: set[int]) -> None:
        """Delete the bytes that no record of this backup names, and what an interrupted backup has left."""
        for folder in _folders(self._folder / "hosted"):
            for name in _listed(folder):
                digest = digest_from(f"{folder.parent.name}-{name}")
                if digest is None or _short(digest) not in named:
                    (folder / name).unlink()
                    self._report.removed += 1


def _size(kind: str, digest: Digest, text: bytes) -> int | None:
    """The size of the bytes that a record has; None if it has none, or is damaged."""
    if kind == "_blobs":
        link = BlobLink.from_json(digest, text)
        return link.size if link and link.state is not LinkState.REMOVED else None
    if kind == "_manifests":
        manifest = ManifestRecord.from_json(digest, text)
        return manifest.size if manifest else None
    deleted = DeletedManifest.from_json(digest, text)
    return deleted.size if deleted else None


def _short(digest: Digest) -> int:
    """60 bits of the digest, so that a million of them fit into memory. Of two blobs that share them both are kept."""
    return int(digest.hex[:15], 16)


def _is_json(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _read_if_there(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _listed(folder: Path) -> list[str]:
    """The names of the files in a folder; none if it is absent. Raises `OSError`."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _folders(folder: Path) -> Iterator[Path]:
    """The folder and all below it. Raises `OSError`."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for name, _folders, _files in os.walk(folder, onerror=refuse):
        yield Path(name)

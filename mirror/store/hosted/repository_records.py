"""The records of hosted repositories as small files beside their tags and manifests (`layout.py` draws them).

`record_files.py` says how a record is read and written.

The change counter of a repository is the size of the file `_changes`. It grows without taking room on the disk, so that
a deletion can be noted when the disk is full:

    note_change ── flock ── size: n ── truncate to n + 1 ── unlock
    changes     ── stat                                              (absent: 0)

A restart of the machine may lose the last steps, but then no process remembers anything either.

A name is taken as long as there is the counter, or one of the folders that have records: folders stay when their last
record has gone. The counter comes first because it needs only one `stat`; after a power cut, the folders remain.

    release ── rmdir of each folder ──┬── all were empty ──> the counter is deleted: the name is free
                                      └── one has a record ──> the name stays taken
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, ManifestMalformed, read_descriptor
from mirror.oci.reference import Repo
from mirror.policy.hosted_records import BlobLink, DeletedManifest, DeletedTag
from mirror.ports import Expected, Version, Versioned
from mirror.store.local.durable import ABSENT_ERRNOS, make_folder, store_errors
from mirror.store.local.layout import Layout, file_name
from mirror.store.local.record_files import (
    RecordFiles,
    digests_in,
    read_record,
    registries_in,
    repositories_with,
    tags_in,
)

#: A repository that is about to get its first manifest may have only links or referrers.
_FOLDERS: Final = ("_tags", "_manifests", "_blobs", "_referrers", "_deleted", "_deleted_tags")


class LocalHostedRecords:
    """`HostedRecords` on disk. May be used from any thread."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._files = RecordFiles(layout)

    def __repr__(self) -> str:
        return f"<LocalHostedRecords {self._layout.repositories}>"

    def link(self, repo: Repo, digest: Digest) -> Versioned[BlobLink] | None:
        what = f"the link of {repo} to {digest}"
        return read_record(self._link(repo, digest), lambda text: BlobLink.from_json(digest, text), what)

    def put_link(self, repo: Repo, link: BlobLink, *, expect: Expected = None) -> Version:
        return self._files.write(self._link(repo, link.digest), link.to_json(), expect)

    def drop_link(self, repo: Repo, digest: Digest, *, expect: Expected = None) -> None:
        self._files.drop(self._link(repo, digest), expect)

    def linked(self, repo: Repo) -> Iterable[Digest]:
        return digests_in(self._layout.links(repo))

    def put_referrer(self, repo: Repo, subject: Digest, referrer: Descriptor) -> None:
        path = f"{self._layout.referrers(repo, subject)}/{file_name(referrer.digest)}"
        self._files.write(path, json.dumps(referrer.to_json()).encode())

    def drop_referrer(self, repo: Repo, subject: Digest, digest: Digest) -> None:
        self._files.drop(f"{self._layout.referrers(repo, subject)}/{file_name(digest)}")

    def referrers(self, repo: Repo, subject: Digest) -> Sequence[Descriptor]:
        folder, found = self._layout.referrers(repo, subject), []
        for digest in sorted(digests_in(folder)):
            what = f"the entry of {repo}@{digest}, which refers to {subject},"
            # an entry that is dropped while the folder is read is not listed
            if entry := read_record(f"{folder}/{file_name(digest)}", partial(_referrer, digest), what):
                found.append(entry.record)
        return found

    def referrer_digests(self, repo: Repo, subject: Digest) -> Iterable[Digest]:
        return digests_in(self._layout.referrers(repo, subject))

    def deleted_manifest(self, repo: Repo, digest: Digest) -> Versioned[DeletedManifest] | None:
        what = f"the record of the deleted manifest {repo}@{digest}"
        path = self._deleted_manifest(repo, digest)
        return read_record(path, lambda text: DeletedManifest.from_json(digest, text), what)

    def put_deleted_manifest(self, repo: Repo, record: DeletedManifest, *, expect: Expected = None) -> Version:
        return self._files.write(self._deleted_manifest(repo, record.digest), record.to_json(), expect)

    def drop_deleted_manifest(self, repo: Repo, digest: Digest, *, expect: Expected = None) -> None:
        self._files.drop(self._deleted_manifest(repo, digest), expect)

    def deleted_manifests(self, repo: Repo) -> Iterable[Digest]:
        return digests_in(self._layout.deleted_manifests(repo))

    def deleted_tag(self, repo: Repo, tag: str) -> Versioned[DeletedTag] | None:
        path = f"{self._layout.deleted_tags(repo)}/{tag}"
        return read_record(
            path, lambda text: DeletedTag.from_json(tag, text), f"the record of the deleted tag {repo}:{tag}"
        )

    def put_deleted_tag(self, repo: Repo, record: DeletedTag, *, expect: Expected = None) -> Version:
        return self._files.write(f"{self._layout.deleted_tags(repo)}/{record.tag}", record.to_json(), expect)

    def drop_deleted_tag(self, repo: Repo, tag: str, *, expect: Expected = None) -> None:
        self._files.drop(f"{self._layout.deleted_tags(repo)}/{tag}", expect)

    def deleted_tags(self, repo: Repo) -> Sequence[str]:
        return tags_in(self._layout.deleted_tags(repo))

    def changes(self, repo: Repo) -> int:
        try:
            return os.stat(self._layout.changes(repo)).st_size
        except (FileNotFoundError, NotADirectoryError):
            return 0
        except OSError:
            return -1

    def note_change(self, repo: Repo) -> None:
        with store_errors("noting a change of a repository"):
            try:
                descriptor = self._open_changes(repo)
            except FileNotFoundError:
                make_folder(self._layout.repository(repo), below=self._layout.repositories)
                descriptor = self._open_changes(repo)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                os.ftruncate(descriptor, os.fstat(descriptor).st_size + 1)
            finally:
                os.close(descriptor)

    def _open_changes(self, repo: Repo) -> int:
        return os.open(self._layout.changes(repo), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def is_taken(self, repo: Repo) -> bool:
        with store_errors(f"looking whether {repo} exists"):
            if _exists(self._layout.changes(repo)):
                return True
            folder = self._layout.repository(repo)
            return _exists(folder) and any(_exists(f"{folder}/{each}") for each in _FOLDERS)

    def release(self, repo: Repo) -> bool:
        folder = Path(self._layout.repository(repo))
        with store_errors(f"releasing the name {repo}"):
            # the folders of subjects first: each stays when its last referrer has gone
            for path in (*folder.glob("_referrers/*"), *(folder / each for each in _FOLDERS)):
                try:
                    path.rmdir()
                except FileNotFoundError:
                    continue
                except OSError as error:
                    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                        return False
                    raise
            Path(self._layout.changes(repo)).unlink(missing_ok=True)
        return True

    def registries(self) -> Iterable[str]:
        return registries_in(self._layout)

    def repositories(self, registry: str) -> Iterable[Repo]:
        return repositories_with(self._layout, _FOLDERS, registry)

    def flush(self) -> None:
        self._files.flush()

    def _link(self, repo: Repo, digest: Digest) -> str:
        return f"{self._layout.links(repo)}/{file_name(digest)}"

    def _deleted_manifest(self, repo: Repo, digest: Digest) -> str:
        return f"{self._layout.deleted_manifests(repo)}/{file_name(digest)}"


def _exists(path: str) -> bool:
    """True if there is such a file or folder. Raises `OSError` if that cannot be said."""
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno in ABSENT_ERRNOS:
            return False
        raise
    return True


def _referrer(digest: Digest, text: bytes) -> Descriptor | None:
    """The descriptor in an entry; None if it cannot be parsed, or is not about this digest."""
    try:
        descriptor = read_descriptor(json.loads(text))
    except (ManifestMalformed, ValueError, RecursionError):
        return None
    return descriptor if descriptor.digest == digest else None

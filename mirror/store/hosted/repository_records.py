"""The records of hosted repositories as small files beside their tags and manifests (`layout.py` draws them).

`record_files.py` says how a record is read and written.

The change counter of a repository is the size of the file `_changes`. It grows without taking room on the disk, so that
a deletion can be noted when the disk is full:

    note_change ── flock ── size: n ── truncate to n + 1 ── unlock
    changes     ── stat                                              (absent: 0)

A restart of the machine may lose the last steps, but then no process remembers anything either.

A name is taken for good once a manifest was there: folders stay when their last record has gone. Before that, links
take it that are more than reservations, for as long as they are there.

    release ── are all folders empty? ──┬── yes: rmdir, that of the manifests last ──> the name is free
                                        └── no ──> the name stays taken
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from mirror.aio.caches import LruCache
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, ManifestMalformed, read_descriptor
from mirror.oci.reference import Repo
from mirror.policy.hosted_records import BlobLink, DeletedManifest, DeletedTag, LinkState
from mirror.ports import Expected, Version, Versioned
from mirror.store.local.durable import ABSENT_ERRNOS, make_folder, store_errors
from mirror.store.local.layout import Layout, file_name
from mirror.store.local.record_files import (
    RecordFiles,
    digests_in,
    names_in,
    read_record,
    registries_in,
    repositories_with,
    tags_in,
)

#: A repository that is about to get its first manifest may have only links or referrers.
_FOLDERS: Final = ("_tags", "_manifests", "_blobs", "_referrers", "_deleted", "_deleted_tags")
#: The folders, besides `_manifests`, that show that something was pushed, and not only uploaded.
_PUBLISHED: Final = ("_tags", "_referrers", "_deleted", "_deleted_tags")
#: Repositories for which it is remembered whether something is being pushed to them.
_MOST: Final = 10_000


class LocalHostedRecords:
    """`HostedRecords` on disk. May be used from any thread."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._files = RecordFiles(layout)
        #: By repository, with the number of its changes.
        self._pushed: LruCache[Repo, tuple[int, bool]] = LruCache(_MOST)

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
            folder = self._layout.repository(repo)
            if _exists(f"{folder}/_manifests"):
                return True
            if not _exists(folder):
                return False
            if any(_exists(f"{folder}/{each}") for each in _PUBLISHED):
                return True
        return self._is_being_pushed(repo)

    def _is_being_pushed(self, repo: Repo) -> bool:
        """True if the repository has a link that is more than a reservation. Read again after each change."""
        changes = self.changes(repo)
        remembered = self._pushed.get(repo)
        if remembered is not None and remembered[0] == changes >= 0:
            return remembered[1]
        links = (self.link(repo, digest) for digest in self.linked(repo))
        found = any(link is not None and link.record.state is not LinkState.RESERVED for link in links)
        self._pushed[repo] = changes, found
        return found

    def taken(self, registry: str) -> Iterable[Repo]:
        return repositories_with(self._layout, ("_manifests", *_PUBLISHED), registry, had=True)

    def release(self, repo: Repo) -> bool:
        folder = self._layout.repository(repo)
        with store_errors(f"releasing the name {repo}"):
            subjects = [f"{folder}/_referrers/{name}" for name in names_in(f"{folder}/_referrers")]
            # the folder that shows that a manifest was there goes last: until then, the name is taken
            others = [f"{folder}/{each}" for each in _FOLDERS if each not in ("_manifests", "_referrers")]
            if any(names_in(each) for each in (*subjects, *others, f"{folder}/_manifests")):
                return False
            try:
                for each in (*subjects, *others, f"{folder}/_referrers", f"{folder}/_manifests"):
                    with suppress(FileNotFoundError):
                        os.rmdir(each)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return False
                raise
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

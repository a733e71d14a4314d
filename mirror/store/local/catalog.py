"""Tags, their histories and manifest links as small files beside the blobs: the source of truth for each repository.

A record is replaced by a rename, so a reader sees the old or the new record and needs no lock. Of several writers that
expect the same version of a record, one succeeds (`record_versions.py`).

    no file                          None: there is certainly no such record
    a file that cannot be read       StoreError: there may be a record
    a file that does not parse       RecordDamaged: truncated by an old crash, or foreign; a history counts as empty
                                     instead, because only the next sighting can write a new one
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from mirror.errors import RecordDamaged, RequestError
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo, check_name, check_registry, check_tag
from mirror.policy.records import ManifestRecord, Sighting, TagRecord, read_history, write_history
from mirror.ports import Expected, Version, Versioned
from mirror.store.local.durable import ABSENT_ERRNOS, PendingSyncs, make_folder, store_errors, write_whole
from mirror.store.local.layout import Layout, digest_from
from mirror.store.local.record_versions import only_writer, version_of

T = TypeVar("T")


class LocalCatalog:
    """A `Catalog` on disk; `layout.py` shows its files."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._unsynced = PendingSyncs()

    def __repr__(self) -> str:
        return f"<LocalCatalog {self._layout.root}>"

    def tag(self, repo: Repo, tag: str) -> Versioned[TagRecord] | None:
        path = self._layout.tags(repo) / tag
        return _record(path, lambda text: TagRecord.from_json(tag, text), f"the record of the tag {repo}:{tag}")

    def get_tag(self, repo: Repo, tag: str) -> TagRecord | None:
        versioned = self.tag(repo, tag)
        return versioned.record if versioned else None

    def put_tag(self, repo: Repo, record: TagRecord, *, expect: Expected = None) -> Version:
        return self._write(self._layout.tags(repo) / record.tag, record.to_json(), expect)

    def drop_tag(self, repo: Repo, tag: str, *, expect: Expected = None) -> None:
        self._drop(self._layout.tags(repo) / tag, expect)

    def tags(self, repo: Repo) -> list[str]:
        return sorted(_names(self._layout.tags(repo)))

    def get_history(self, repo: Repo, tag: str) -> tuple[Sighting, ...]:
        text = _read(self._layout.history(repo) / tag, f"the history of the tag {repo}:{tag}")
        return () if text is None else read_history(text)

    def put_history(self, repo: Repo, tag: str, sightings: Sequence[Sighting]) -> None:
        self._write(self._layout.history(repo) / tag, write_history(sightings))

    def manifest(self, repo: Repo, digest: Digest) -> Versioned[ManifestRecord] | None:
        what = f"the record of the manifest {repo}@{digest}"
        return _record(self._manifest(repo, digest), lambda text: ManifestRecord.from_json(digest, text), what)

    def get_manifest(self, repo: Repo, digest: Digest) -> ManifestRecord | None:
        versioned = self.manifest(repo, digest)
        return versioned.record if versioned else None

    def put_manifest(self, repo: Repo, record: ManifestRecord, *, expect: Expected = None) -> Version:
        return self._write(self._manifest(repo, record.digest), record.to_json(), expect)

    def drop_manifest(self, repo: Repo, digest: Digest, *, expect: Expected = None) -> None:
        self._drop(self._manifest(repo, digest), expect)

    def manifests(self, repo: Repo) -> Iterable[ManifestRecord]:
        for digest in self.manifest_digests(repo):
            with suppress(RecordDamaged):
                record = self.get_manifest(repo, digest)
                if record:
                    yield record

    def manifest_digests(self, repo: Repo) -> Iterable[Digest]:
        for name in _names(self._layout.manifests(repo)):
            digest = digest_from(name)
            if digest:
                yield digest

    def repositories(self) -> Iterable[Repo]:
        root = self._layout.repositories
        for folder, below, _files in os.walk(root, onerror=_must_be_absent):
            if "_tags" in below or "_manifests" in below:
                registry, _, name = os.path.relpath(folder, root).partition("/")
                with suppress(RequestError):
                    yield Repo(check_registry(registry), check_name(name))
            below[:] = [name for name in below if not name.startswith("_")]

    def repositories_added(self) -> int:
        try:
            return os.stat(self._layout.repositories_added).st_size
        except FileNotFoundError:
            return 0
        except OSError:
            return -1

    def flush(self) -> None:
        with store_errors("making names of the catalog durable"):
            self._unsynced.sync()

    def _manifest(self, repo: Repo, digest: Digest) -> Path:
        return self._layout.manifests(repo) / f"{digest.algorithm}-{digest.hex}"

    def _write(self, path: Path, content: bytes, expect: Expected = None) -> Version:
        with store_errors("writing a record of the catalog"):
            if make_folder(path.parent, below=self._layout.repositories, sync=self._unsynced.add):
                self._note_added()
            guard = only_writer(self._layout, path, expect)
            write_whole(path, content, through=self._layout.ingests, sync=self._unsynced.add, guard=guard)
        return version_of(content)

    def _drop(self, path: Path, expect: Expected) -> None:
        with (
            store_errors("dropping a record of the catalog"),
            only_writer(self._layout, path, expect),
            suppress(FileNotFoundError, NotADirectoryError),
        ):
            path.unlink()

    def _note_added(self) -> None:
        """Raise the count of repositories. Called after the folder is made: a process that reads the count and then
        lists the folders misses none.
        """
        # if this fails, other processes list the repository some seconds later
        with suppress(OSError):
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self._layout.repositories_added, flags, 0o600)
            try:
                os.write(descriptor, b".")
            finally:
                os.close(descriptor)


def _read(path: Path, what: str) -> bytes | None:
    """The content of the file; None if there is certainly no file. Raises `StoreError` if the file cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno in ABSENT_ERRNOS:
            return None
        with store_errors(f"reading {what}"):
            raise


def _record(path: Path, parse: Callable[[bytes], T | None], what: str) -> Versioned[T] | None:
    """The parsed record; None if there is no file. Raises `RecordDamaged` if it does not parse, `StoreError`."""
    text = _read(path, what)
    if text is None:
        return None
    record = parse(text)
    if record is None:
        raise RecordDamaged(f"{what} is damaged")
    return Versioned(record, version_of(text))


def _must_be_absent(error: OSError) -> None:
    """Ignore the error if the folder is absent: a folder that disappears meanwhile counts as empty. Raises `StoreError`
    for any other error, because the caller would take an incomplete list for a complete one.
    """
    if error.errno not in ABSENT_ERRNOS:
        with store_errors("listing records of the catalog"):
            raise error


def _names(folder: Path) -> Iterator[str]:
    try:
        names = os.listdir(folder)
    except OSError as error:
        _must_be_absent(error)
        return
    for name in names:
        if digest_from(name):
            yield name
            continue
        with suppress(RequestError):
            yield check_tag(name)

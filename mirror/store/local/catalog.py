"""Tags, their histories and manifest links as small files beside the blobs: the source of truth for each repository.

A record is replaced by a rename, so a reader sees the old or the new record. Readers need no lock.

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
from mirror.store.local.durable import ABSENT, PendingSyncs, make_folder, store_errors, write_whole
from mirror.store.local.layout import Layout, digest_from

T = TypeVar("T")


class LocalCatalog:
    """A `Catalog` on disk; `layout.py` shows its files."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._unsynced = PendingSyncs()

    def get_tag(self, repo: Repo, tag: str) -> TagRecord | None:
        path = self._layout.tags(repo) / tag
        return _record(path, lambda text: TagRecord.from_json(tag, text), f"the record of the tag {repo}:{tag}")

    def put_tag(self, repo: Repo, record: TagRecord) -> None:
        self._write(self._layout.tags(repo), record.tag, record.to_json())

    def drop_tag(self, repo: Repo, tag: str) -> None:
        _drop(self._layout.tags(repo) / tag)

    def tags(self, repo: Repo) -> list[str]:
        return sorted(_names(self._layout.tags(repo)))

    def get_history(self, repo: Repo, tag: str) -> tuple[Sighting, ...]:
        text = _read(self._layout.history(repo) / tag, f"the history of the tag {repo}:{tag}")
        return () if text is None else read_history(text)

    def put_history(self, repo: Repo, tag: str, sightings: Sequence[Sighting]) -> None:
        self._write(self._layout.history(repo), tag, write_history(sightings))

    def get_manifest(self, repo: Repo, digest: Digest) -> ManifestRecord | None:
        path = self._layout.manifests(repo) / f"{digest.algorithm}-{digest.hex}"
        what = f"the record of the manifest {repo}@{digest}"
        return _record(path, lambda text: ManifestRecord.from_json(digest, text), what)

    def put_manifest(self, repo: Repo, record: ManifestRecord) -> None:
        name = f"{record.digest.algorithm}-{record.digest.hex}"
        self._write(self._layout.manifests(repo), name, record.to_json())

    def drop_manifest(self, repo: Repo, digest: Digest) -> None:
        _drop(self._layout.manifests(repo) / f"{digest.algorithm}-{digest.hex}")

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

    def settle(self) -> None:
        with store_errors("making names of the catalog durable"):
            self._unsynced.sync()

    def _write(self, folder: Path, name: str, content: bytes) -> None:
        with store_errors("writing a record of the catalog"):
            if make_folder(folder, below=self._layout.repositories, sync=self._unsynced.add):
                self._note_added()
            write_whole(folder / name, content, through=self._layout.ingests, sync=self._unsynced.add)

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
        if error.errno in ABSENT:
            return None
        with store_errors(f"reading {what}"):
            raise


def _record(path: Path, parse: Callable[[bytes], T | None], what: str) -> T | None:
    """The parsed record; None if there is no file. Raises `RecordDamaged` if it does not parse, `StoreError`."""
    text = _read(path, what)
    if text is None:
        return None
    record = parse(text)
    if record is None:
        raise RecordDamaged(f"{what} is damaged")
    return record


def _drop(path: Path) -> None:
    with store_errors("dropping a record of the catalog"), suppress(FileNotFoundError, NotADirectoryError):
        path.unlink()


def _must_be_absent(error: OSError) -> None:
    """Ignore the error if the folder is absent: a folder that disappears meanwhile counts as empty. Raises `StoreError`
    for any other error, because the caller would take an incomplete list for a complete one.
    """
    if error.errno not in ABSENT:
        with store_errors("listing records of the catalog"):
            raise error


def _names(folder: Path) -> Iterator[str]:
    try:
        found = os.listdir(folder)
    except OSError as error:
        _must_be_absent(error)
        return
    for name in found:
        if digest_from(name):
            yield name
            continue
        with suppress(RequestError):
            yield check_tag(name)

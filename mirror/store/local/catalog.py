"""Tags, their histories and manifest links as small files beside the blobs: the source of truth for each repository.

`record_files.py` says how a record is read and written. A history that does not parse counts as empty, because only the
next sighting can write a new one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress

from mirror.errors import RecordDamaged
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.records import ManifestRecord, Sighting, TagRecord, read_history, write_history
from mirror.ports import Expected, Version, Versioned
from mirror.store.local.layout import Layout, file_name
from mirror.store.local.record_files import (
    LISTED,
    RecordFiles,
    digests_in,
    read_file,
    read_record,
    repositories_with,
    tags_in,
)


class LocalCatalog:
    """A `Catalog` on disk; `layout.py` shows its files."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._files = RecordFiles(layout)

    def __repr__(self) -> str:
        return f"<LocalCatalog {self._layout.root}>"

    def tag(self, repo: Repo, tag: str) -> Versioned[TagRecord] | None:
        path = f"{self._layout.tags(repo)}/{tag}"
        return read_record(path, lambda text: TagRecord.from_json(tag, text), f"the record of the tag {repo}:{tag}")

    def get_tag(self, repo: Repo, tag: str) -> TagRecord | None:
        versioned = self.tag(repo, tag)
        return versioned.record if versioned else None

    def put_tag(self, repo: Repo, record: TagRecord, *, expect: Expected = None) -> Version:
        return self._files.write(f"{self._layout.tags(repo)}/{record.tag}", record.to_json(), expect)

    def drop_tag(self, repo: Repo, tag: str, *, expect: Expected = None) -> None:
        self._files.drop(f"{self._layout.tags(repo)}/{tag}", expect)

    def tags(self, repo: Repo) -> list[str]:
        return tags_in(self._layout.tags(repo))

    def get_history(self, repo: Repo, tag: str) -> tuple[Sighting, ...]:
        text = read_file(f"{self._layout.history(repo)}/{tag}", f"the history of the tag {repo}:{tag}")
        return () if text is None else read_history(text)

    def put_history(self, repo: Repo, tag: str, sightings: Sequence[Sighting]) -> None:
        self._files.write(f"{self._layout.history(repo)}/{tag}", write_history(sightings))

    def manifest(self, repo: Repo, digest: Digest) -> Versioned[ManifestRecord] | None:
        what = f"the record of the manifest {repo}@{digest}"
        return read_record(self._manifest(repo, digest), lambda text: ManifestRecord.from_json(digest, text), what)

    def get_manifest(self, repo: Repo, digest: Digest) -> ManifestRecord | None:
        versioned = self.manifest(repo, digest)
        return versioned.record if versioned else None

    def put_manifest(self, repo: Repo, record: ManifestRecord, *, expect: Expected = None) -> Version:
        return self._files.write(self._manifest(repo, record.digest), record.to_json(), expect)

    def drop_manifest(self, repo: Repo, digest: Digest, *, expect: Expected = None) -> None:
        self._files.drop(self._manifest(repo, digest), expect)

    def manifests(self, repo: Repo) -> Iterable[ManifestRecord]:
        for digest in self.manifest_digests(repo):
            with suppress(RecordDamaged):
                record = self.get_manifest(repo, digest)
                if record:
                    yield record

    def manifest_digests(self, repo: Repo) -> Iterable[Digest]:
        return digests_in(self._layout.manifests(repo))

    def repositories(self) -> Iterable[Repo]:
        return repositories_with(self._layout, LISTED)

    def repositories_added(self) -> int:
        try:
            return os.stat(self._layout.repositories_added).st_size
        except FileNotFoundError:
            return 0
        except OSError:
            return -1

    def flush(self) -> None:
        self._files.flush()

    def _manifest(self, repo: Repo, digest: Digest) -> str:
        return f"{self._layout.manifests(repo)}/{file_name(digest)}"

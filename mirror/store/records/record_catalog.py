"""Tags, their histories and manifest links as records in a tree: the source of truth for each repository.

A history that does not parse counts as empty, because only the next sighting can write a new one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from mirror.errors import RecordDamaged
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.records import ManifestRecord, Sighting, TagRecord, read_history, write_history
from mirror.ports import Condition, RecordTree, Version, Versioned
from mirror.store.records import record_keys
from mirror.store.records.record_reading import digests_in, read_record, tags_in


class RecordCatalog:
    """A `Catalog` in a tree of records."""

    def __init__(self, tree: RecordTree) -> None:
        self._tree = tree

    def __repr__(self) -> str:
        return f"<RecordCatalog in {self._tree!r}>"

    def tag(self, repo: Repo, tag: str) -> Versioned[TagRecord] | None:
        key = f"{record_keys.tags(repo)}/{tag}"
        return read_record(
            self._tree,
            key,
            lambda text: TagRecord.from_json(tag, text),
            lambda: f"the record of the tag {repo}:{tag}",
        )

    def get_tag(self, repo: Repo, tag: str) -> TagRecord | None:
        versioned = self.tag(repo, tag)
        return versioned.record if versioned else None

    def put_tag(self, repo: Repo, record: TagRecord, *, expect: Condition = None) -> Version:
        return self._tree.write(f"{record_keys.tags(repo)}/{record.tag}", record.to_json(), expect=expect)

    def drop_tag(self, repo: Repo, tag: str, *, expect: Condition = None) -> None:
        self._tree.drop(f"{record_keys.tags(repo)}/{tag}", expect=expect)

    def tags(self, repo: Repo) -> list[str]:
        return tags_in(self._tree, record_keys.tags(repo))

    def get_history(self, repo: Repo, tag: str) -> tuple[Sighting, ...]:
        found = self._tree.read(f"{record_keys.history(repo)}/{tag}")
        return () if found is None else read_history(found.record)

    def put_history(self, repo: Repo, tag: str, sightings: Sequence[Sighting]) -> None:
        self._tree.write(f"{record_keys.history(repo)}/{tag}", write_history(sightings))

    def histories(self, repo: Repo) -> list[str]:
        return tags_in(self._tree, record_keys.history(repo))

    def drop_history(self, repo: Repo, tag: str, *, expect: Condition = None) -> None:
        self._tree.drop(f"{record_keys.history(repo)}/{tag}", expect=expect)

    def manifest(self, repo: Repo, digest: Digest) -> Versioned[ManifestRecord] | None:
        return read_record(
            self._tree,
            _manifest(repo, digest),
            lambda text: ManifestRecord.from_json(digest, text),
            lambda: f"the record of the manifest {repo}@{digest}",
        )

    def get_manifest(self, repo: Repo, digest: Digest) -> ManifestRecord | None:
        versioned = self.manifest(repo, digest)
        return versioned.record if versioned else None

    def put_manifest(self, repo: Repo, record: ManifestRecord, *, expect: Condition = None) -> Version:
        return self._tree.write(_manifest(repo, record.digest), record.to_json(), expect=expect)

    def drop_manifest(self, repo: Repo, digest: Digest, *, expect: Condition = None) -> None:
        self._tree.drop(_manifest(repo, digest), expect=expect)

    def manifests(self, repo: Repo) -> Iterable[ManifestRecord]:
        for digest in self.manifest_digests(repo):
            with suppress(RecordDamaged):
                record = self.get_manifest(repo, digest)
                if record:
                    yield record

    def manifest_digests(self, repo: Repo) -> Iterable[Digest]:
        return digests_in(self._tree, record_keys.manifests(repo))

    def repositories(self, after: str = "") -> Iterable[Repo]:
        return self._tree.repositories(record_keys.LISTED, after=after)

    def repositories_added(self) -> int:
        return self._tree.repositories_added()

    def flush(self) -> None:
        self._tree.flush()


def _manifest(repo: Repo, digest: Digest) -> str:
    return f"{record_keys.manifests(repo)}/{record_keys.file_name(digest)}"

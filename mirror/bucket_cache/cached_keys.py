"""The keys of the bucket's cache. Other keys below its prefixes are foreign and left alone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from mirror.errors import RequestError
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo, check_name, check_registry, check_tag

#: The prefixes of blobs and of records.
BLOBS: Final = "cache/"
RECORDS: Final = "cached/"


class RecordKind(Enum):
    """A kind of record; the value is the folder of a repository that has them."""

    TAG = "_tags"
    HISTORY = "_history"
    MANIFEST = "_manifests"


@dataclass(frozen=True, slots=True)
class CachedRecord:
    """The name of a record of a repository: that of a tag, of its history, or of a manifest."""

    repo: Repo
    kind: RecordKind
    name: str

    @classmethod
    def of_tag(cls, repo: Repo, tag: str) -> CachedRecord:
        """The record of a tag."""
        return cls(repo, RecordKind.TAG, tag)

    @classmethod
    def of_history(cls, repo: Repo, tag: str) -> CachedRecord:
        """The history of a tag."""
        return cls(repo, RecordKind.HISTORY, tag)

    @classmethod
    def of_manifest(cls, repo: Repo, digest: Digest) -> CachedRecord:
        """The record that lets a repository serve a manifest."""
        return cls(repo, RecordKind.MANIFEST, f"{digest.algorithm}-{digest.hex}")

    @property
    def key(self) -> str:
        """Its key in the bucket."""
        return f"{records_prefix(self.repo, self.kind)}{self.name}"

    @property
    def digest(self) -> Digest:
        """The manifest that the record of a manifest is about."""
        return Digest.parse(self.name.replace("-", ":", 1))


def records_prefix(repo: Repo, kind: RecordKind) -> str:
    """The prefix of all records of one kind of a repository."""
    return f"{RECORDS}{repo.registry}/{repo.name}/{kind.value}/"


def parse_record_key(key: str) -> CachedRecord | None:
    """The record of a key; None for any other key."""
    folder, _, name = key.removeprefix(RECORDS).rpartition("/")
    path, _, kind = folder.rpartition("/")
    registry, _, rest = path.partition("/")
    try:
        record = CachedRecord(Repo(check_registry(registry), check_name(rest)), RecordKind(kind), name)
        if record.kind is RecordKind.MANIFEST:
            return record if CachedRecord.of_manifest(record.repo, record.digest).key == key else None
        check_tag(name)
    except (RequestError, ValueError):
        return None
    return record if record.key == key else None


def blob_key(digest: Digest) -> str:
    """The key of the bytes of a blob or manifest."""
    return f"{BLOBS}{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"


def parse_blob_key(key: str) -> Digest | None:
    """The digest of a key; None for any other key."""
    algorithm, _, rest = key.removeprefix(BLOBS).partition("/")
    try:
        digest = Digest.parse(f"{algorithm}:{rest.rpartition('/')[2]}")
    except RequestError:
        return None
    return digest if blob_key(digest) == key else None

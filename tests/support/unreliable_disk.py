"""A disk in memory of which parts cannot be read for a while, and which knows what was deleted.

What tests want to know of it (`content`, `linked`) is true whether it can be read at the moment or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NoReturn

from mirror.errors import RecordChanged, RecordDamaged, StoreError
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted_records import DeletedManifest
from mirror.policy.records import Freeze, ManifestRecord, Pin, TagRecord
from mirror.policy.unreadable_records import UnreadableRecord
from mirror.ports import BlobInfo, Catalog, Condition, Deleted, Version, Versioned
from tests.support.memory_hosted_records import MemoryHostedRecords
from tests.support.memory_store import MemoryCatalog, MemoryPins, MemoryReader, MemoryStore

#: The version of every damaged record.
_RUBBISH: Final = Version("rubbish")


def _replacing(damaged: set[tuple[Repo, Digest]], repo: Repo, digest: Digest, expect: Condition) -> Condition:
    """What to expect of a record that is now written or dropped: it is damaged no longer. Raises `RecordChanged`."""
    if (repo, digest) not in damaged:
        if expect == _RUBBISH:
            raise RecordChanged("it was written anew")
        return expect
    if expect not in (None, _RUBBISH):
        raise RecordChanged("it is damaged now")
    damaged.discard((repo, digest))
    return None


def _refuse(what: object) -> NoReturn:
    raise StoreError(f"{what}: too many open files")


class UnreliableStore(MemoryStore):
    """The blobs in `unreadable` exist, and can be looked at, but not opened, as in a process without descriptors."""

    def __init__(self) -> None:
        super().__init__()
        self.unreadable: set[Digest] = set()
        self.deleted: set[Digest] = set()

    def content(self) -> Mapping[Digest, bytes]:
        """Every blob that is present."""
        with self.changed:
            return {digest: bytes(blob.content) for digest, blob in self._present.items()}

    def open(self, digest: Digest) -> tuple[BlobInfo, MemoryReader]:
        self._check(digest)
        return super().open(digest)

    def read(self, digest: Digest, limit: int) -> bytes:
        self._check(digest)
        return super().read(digest, limit)

    def delete(self, digest: Digest) -> Deleted:
        self.deleted.add(digest)
        return super().delete(digest)

    def _check(self, digest: Digest) -> None:
        if digest in self.unreadable:
            _refuse(digest)


class UnreliableCatalog(MemoryCatalog):
    """The records in `unreadable` exist, and cannot be read: (repository, digest) and (repository, tag). They can be
    written. Those of manifests that are `damaged` cannot be parsed, until they are written anew.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unreadable: set[tuple[Repo, Digest | str]] = set()
        self.damaged: set[tuple[Repo, Digest]] = set()
        self.dropped: set[tuple[Repo, Digest]] = set()

    def linked(self) -> Iterator[tuple[Repo, Digest]]:
        """Every manifest record."""
        return ((repo, digest) for repo, records in self._manifests.items() for digest in records)

    def pointed(self, repo: Repo, tag: str) -> Digest | None:
        """The digest that a tag points to."""
        record = self._tags.get(repo, {}).get(tag)
        return record.digest if record else None

    def get_tag(self, repo: Repo, tag: str) -> TagRecord | None:
        self._check(repo, tag)
        return super().get_tag(repo, tag)

    def get_manifest(self, repo: Repo, digest: Digest) -> ManifestRecord | None:
        self._check(repo, digest)
        return super().get_manifest(repo, digest)

    def manifest(self, repo: Repo, digest: Digest) -> Versioned[ManifestRecord] | None:
        self._check(repo, digest)
        return super().manifest(repo, digest)

    def put_manifest(self, repo: Repo, record: ManifestRecord, *, expect: Condition = None) -> Version:
        return super().put_manifest(repo, record, expect=_replacing(self.damaged, repo, record.digest, expect))

    def drop_manifest(self, repo: Repo, digest: Digest, *, expect: Condition = None) -> None:
        self.dropped.add((repo, digest))
        super().drop_manifest(repo, digest, expect=_replacing(self.damaged, repo, digest, expect))

    def damage(self, repo: Repo, digest: Digest) -> None:
        """Damages the record of a manifest, if there is one."""
        if digest in self._manifests.get(repo, {}):
            self.damaged.add((repo, digest))

    def _check(self, repo: Repo, reference: Digest | str) -> None:
        if (repo, reference) in self.unreadable:
            _refuse(f"{repo} {reference}")
        if (repo, reference) in self.damaged:
            raise RecordDamaged(f"{repo} {reference}", _RUBBISH)


class UnreliableHostedRecords(MemoryHostedRecords):
    """The records of deleted manifests that are `damaged` cannot be parsed, until they are written anew."""

    def __init__(self, catalog: Catalog) -> None:
        super().__init__(catalog)
        self.damaged: set[tuple[Repo, Digest]] = set()

    def deleted_manifest(self, repo: Repo, digest: Digest) -> Versioned[DeletedManifest] | None:
        if (repo, digest) in self.damaged:
            raise RecordDamaged(f"{repo} {digest}", _RUBBISH)
        return super().deleted_manifest(repo, digest)

    def put_deleted_manifest(self, repo: Repo, record: DeletedManifest, *, expect: Condition = None) -> Version:
        return super().put_deleted_manifest(repo, record, expect=_replacing(self.damaged, repo, record.digest, expect))

    def drop_deleted_manifest(self, repo: Repo, digest: Digest, *, expect: Condition = None) -> None:
        super().drop_deleted_manifest(repo, digest, expect=_replacing(self.damaged, repo, digest, expect))

    def damage(self, repo: Repo, digest: Digest) -> None:
        """Damages the record of a deletion, if there is one."""
        if digest in self._manifests.get(repo, {}):
            self.damaged.add((repo, digest))

    def deletion(self, repo: Repo, digest: Digest) -> DeletedManifest | None:
        """The record of a deletion, damaged or not, as it was written."""
        return self._manifests.get(repo, {}).get(digest)


class UnreliablePins(MemoryPins):
    """While `unreadable`, the folder cannot be listed."""

    def __init__(self) -> None:
        super().__init__()
        self.unreadable = False

    def there(self) -> Sequence[Pin]:
        """Every pin."""
        return list(self._pins.values())

    def look(self) -> tuple[Sequence[Pin], Sequence[UnreadableRecord]]:
        if self.unreadable:
            _refuse("pins")
        return super().look()


class UnreliableFreezes:
    """`Freezes` in a dict. While `unreadable`, the folder cannot be listed."""

    def __init__(self) -> None:
        self.unreadable = False
        self._freezes: dict[tuple[Repo, str], Freeze] = {}

    def there(self) -> Sequence[Freeze]:
        """Every freeze."""
        return list(self._freezes.values())

    def all(self) -> Iterable[Freeze]:
        return self.look()[0]

    def look(self) -> tuple[Sequence[Freeze], Sequence[UnreadableRecord]]:
        if self.unreadable:
            _refuse("freezes")
        return self.there(), ()

    def get(self, repo: Repo, tag: str) -> Freeze | None:
        if self.unreadable:
            _refuse("freezes")
        return self._freezes.get((repo, tag))

    def put(self, freeze: Freeze) -> None:
        self._freezes[freeze.repo, freeze.tag] = freeze

    def drop(self, repo: Repo, tag: str) -> bool:
        return self._freezes.pop((repo, tag), None) is not None

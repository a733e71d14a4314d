"""A disk in memory of which parts cannot be read for a while, and which knows what was deleted.

What tests want to know of it (`content`, `linked`) is true whether it can be read at the moment or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NoReturn

from mirror.errors import StoreError
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.records import Freeze, ManifestRecord, Pin, TagRecord
from mirror.policy.unreadable_records import UnreadableRecord
from mirror.ports import BlobInfo, Deleted, Expected, Versioned
from tests.support.memory_store import MemoryCatalog, MemoryPins, MemoryReader, MemoryStore


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
    written.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unreadable: set[tuple[Repo, Digest | str]] = set()
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

    def drop_manifest(self, repo: Repo, digest: Digest, *, expect: Expected = None) -> None:
        self.dropped.add((repo, digest))
        super().drop_manifest(repo, digest, expect=expect)

    def _check(self, repo: Repo, reference: Digest | str) -> None:
        if (repo, reference) in self.unreadable:
            _refuse(f"{repo} {reference}")


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

"""`HostedRecords` in dicts: the simplest correct implementation."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TypeVar

from mirror.errors import RecordChanged
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor
from mirror.oci.reference import Repo
from mirror.policy.hosted_records import BlobLink, DeletedManifest, DeletedTag, LinkState
from mirror.ports import ABSENT, Catalog, Condition, Version, Versioned, in_time

K = TypeVar("K")
T = TypeVar("T", BlobLink, DeletedManifest, DeletedTag)


class MemoryHostedRecords:
    """See `mirror.ports.HostedRecords`. May be used from any thread. `catalog` has the tags and manifests."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._links: dict[Repo, dict[Digest, BlobLink]] = {}
        self._referrers: dict[Repo, dict[Digest, dict[Digest, Descriptor]]] = {}
        self._manifests: dict[Repo, dict[Digest, DeletedManifest]] = {}
        self._tags: dict[Repo, dict[str, DeletedTag]] = {}
        self._changes: dict[Repo, int] = {}
        #: Names that are taken for good. Tags and manifests are the catalog's: they count once somebody has looked.
        self._taken: set[Repo] = set()
        self._changing = threading.Lock()

    def link(self, repo: Repo, digest: Digest) -> Versioned[BlobLink] | None:
        return _get(self._links, repo, digest)

    def put_link(self, repo: Repo, link: BlobLink, *, expect: Condition = None) -> Version:
        with self._changing:
            return _put(self._links, repo, link.digest, link, expect)

    def drop_link(self, repo: Repo, digest: Digest, *, expect: Condition = None) -> None:
        with self._changing:
            _drop(self._links, repo, digest, expect)

    def linked(self, repo: Repo) -> Iterable[Digest]:
        return list(self._links.get(repo, {}))

    def put_referrer(self, repo: Repo, subject: Digest, referrer: Descriptor) -> None:
        with self._changing:
            self._referrers.setdefault(repo, {}).setdefault(subject, {})[referrer.digest] = referrer

    def drop_referrer(self, repo: Repo, subject: Digest, digest: Digest) -> None:
        with self._changing:
            entries = self._referrers.get(repo, {})
            entries.get(subject, {}).pop(digest, None)
            if not entries.get(subject, True):
                del entries[subject]

    def referrer(self, repo: Repo, subject: Digest, digest: Digest) -> Descriptor | None:
        with self._changing:
            return self._referrers.get(repo, {}).get(subject, {}).get(digest)

    def referrer_digests(self, repo: Repo, subject: Digest) -> Iterable[Digest]:
        with self._changing:
            return list(self._referrers.get(repo, {}).get(subject, {}))

    def deleted_manifest(self, repo: Repo, digest: Digest) -> Versioned[DeletedManifest] | None:
        return _get(self._manifests, repo, digest)

    def put_deleted_manifest(self, repo: Repo, record: DeletedManifest, *, expect: Condition = None) -> Version:
        with self._changing:
            return _put(self._manifests, repo, record.digest, record, expect)

    def drop_deleted_manifest(self, repo: Repo, digest: Digest, *, expect: Condition = None) -> None:
        with self._changing:
            _drop(self._manifests, repo, digest, expect)

    def deleted_manifests(self, repo: Repo) -> Iterable[Digest]:
        return list(self._manifests.get(repo, {}))

    def deleted_tag(self, repo: Repo, tag: str) -> Versioned[DeletedTag] | None:
        return _get(self._tags, repo, tag)

    def put_deleted_tag(self, repo: Repo, record: DeletedTag, *, expect: Condition = None) -> Version:
        with self._changing:
            return _put(self._tags, repo, record.tag, record, expect)

    def drop_deleted_tag(self, repo: Repo, tag: str, *, expect: Condition = None) -> None:
        with self._changing:
            _drop(self._tags, repo, tag, expect)

    def deleted_tags(self, repo: Repo) -> Sequence[str]:
        return sorted(self._tags.get(repo, {}))

    def changes(self, repo: Repo) -> int:
        return self._changes.get(repo, 0)

    def note_change(self, repo: Repo) -> None:
        with self._changing:
            self._changes[repo] = self._changes.get(repo, 0) + 1

    def is_taken(self, repo: Repo) -> bool:
        links = self._links.get(repo, {}).values()
        if any(self._published(repo)):
            self._taken.add(repo)
        return repo in self._taken or any(link.state is not LinkState.RESERVED for link in links)

    def _published(self, repo: Repo) -> Iterable[object]:
        yield from (kind.get(repo) for kind in (self._referrers, self._manifests, self._tags))
        yield repo in self._catalog.repositories()

    def taken(self, registry: str) -> Iterable[Repo]:
        self._taken.update(repo for repo in self.repositories(registry) if any(self._published(repo)))
        return [repo for repo in self._taken if repo.registry == registry]

    def release(self, repo: Repo) -> bool:
        if self._links.get(repo) or any(self._published(repo)):
            return False
        self._taken.discard(repo)
        return True

    def registries(self) -> Iterable[str]:
        records = (self._links, self._referrers, self._manifests, self._tags)
        with self._changing:
            found = {repo.registry for repo in chain.from_iterable(records)}
        return found | {repo.registry for repo in self._catalog.repositories()}

    def repositories(self, registry: str, after: str = "") -> Iterable[Repo]:
        records = (self._links, self._referrers, self._manifests, self._tags)
        with self._changing:
            found = {repo for repo in chain.from_iterable(records) if any(kind.get(repo) for kind in records)}
        found.update(self._catalog.repositories())
        return sorted((repo for repo in found if repo.registry == registry and str(repo) > after), key=str)

    def flush(self) -> None:
        """Does nothing: the content does not outlive the process."""


def _version(record: object) -> Version:
    return Version(repr(record))


def _get(records: dict[Repo, dict[K, T]], repo: Repo, key: K) -> Versioned[T] | None:
    record = records.get(repo, {}).get(key)
    return None if record is None else Versioned(record, _version(record))


def _put(records: dict[Repo, dict[K, T]], repo: Repo, key: K, record: T, expect: Condition) -> Version:
    _expect(_get(records, repo, key), expect)
    records.setdefault(repo, {})[key] = record
    return _version(record)


def _drop(records: dict[Repo, dict[K, T]], repo: Repo, key: K, expect: Condition) -> None:
    _expect(_get(records, repo, key), expect)
    records.get(repo, {}).pop(key, None)


def _expect(present: Versioned[object] | None, expect: Condition) -> None:
    expected = in_time(expect)
    if expected is not None and (present.version if present else ABSENT) != expected:
        raise RecordChanged("the record was changed meanwhile")

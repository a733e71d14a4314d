"""The records of hosted repositories, beside their tags and manifests in a tree of records.

A name is taken for good once a manifest was there: a tree knows which folders had a record. Before that, links take it
that are more than reservations, for as long as they are there; in a bucket, a record of its own says that a name is
taken, and such a link writes it.

    release ── are all folders empty? ──┬── yes: the tree forgets that they had records ──> the name is free
                                        └── no ──> the name stays taken
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Final

from mirror.aio.caches import SharedLru
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, ManifestMalformed, read_descriptor
from mirror.oci.reference import Repo
from mirror.policy.hosted_records import BlobLink, DeletedManifest, DeletedTag, LinkState
from mirror.ports import ChangeCounter, Condition, RecordTree, Version, Versioned
from mirror.store.records import record_keys
from mirror.store.records.record_keys import file_name
from mirror.store.records.record_reading import digests_in, read_record, tags_in

#: The folders that show that something was pushed, and not only uploaded; the commonest first.
_PUBLISHED: Final = ("_manifests", "_tags", "_referrers", "_deleted", "_deleted_tags")
#: A repository that is about to get its first manifest may have only links.
_ALL: Final = (*_PUBLISHED, "_blobs")
#: Repositories for which it is remembered whether something is being pushed to them.
_MOST: Final = 10_000


class RepositoryRecords:
    """`HostedRecords` in a tree. May be used from any thread."""

    def __init__(self, tree: RecordTree, counter: ChangeCounter) -> None:
        self._tree = tree
        self._counter = counter
        #: By repository, with the number of its changes.
        self._pushed: SharedLru[Repo, tuple[int, bool]] = SharedLru(_MOST)

    def __repr__(self) -> str:
        return f"<RepositoryRecords in {self._tree!r}>"

    def link(self, repo: Repo, digest: Digest) -> Versioned[BlobLink] | None:
        return read_record(
            self._tree,
            _link(repo, digest),
            lambda text: BlobLink.from_json(digest, text),
            lambda: f"the link of {repo} to {digest}",
        )

    def put_link(self, repo: Repo, link: BlobLink, *, expect: Condition = None) -> Version:
        if link.state is not LinkState.RESERVED:
            self._tree.take(repo)
        version = self._tree.write(_link(repo, link.digest), link.to_json(), expect=expect)
        if link.state is not LinkState.RESERVED:
            # the name may have been released between the two
            self._tree.take(repo, again=True)
        return version

    def drop_link(self, repo: Repo, digest: Digest, *, expect: Condition = None) -> None:
        self._tree.drop(_link(repo, digest), expect=expect)

    def linked(self, repo: Repo) -> Iterable[Digest]:
        return digests_in(self._tree, record_keys.links(repo))

    def put_referrer(self, repo: Repo, subject: Digest, referrer: Descriptor) -> None:
        key = f"{record_keys.referrers(repo, subject)}/{file_name(referrer.digest)}"
        self._tree.write(key, json.dumps(referrer.to_json()).encode())

    def drop_referrer(self, repo: Repo, subject: Digest, digest: Digest) -> None:
        self._tree.drop(f"{record_keys.referrers(repo, subject)}/{file_name(digest)}")

    def referrer(self, repo: Repo, subject: Digest, digest: Digest) -> Descriptor | None:
        found = read_record(
            self._tree,
            f"{record_keys.referrers(repo, subject)}/{file_name(digest)}",
            lambda text: _referrer(digest, text),
            lambda: f"the entry of {repo}@{digest}, which refers to {subject},",
        )
        return None if found is None else found.record

    def referrer_digests(self, repo: Repo, subject: Digest) -> Iterable[Digest]:
        return digests_in(self._tree, record_keys.referrers(repo, subject))

    def deleted_manifest(self, repo: Repo, digest: Digest) -> Versioned[DeletedManifest] | None:
        return read_record(
            self._tree,
            _deleted_manifest(repo, digest),
            lambda text: DeletedManifest.from_json(digest, text),
            lambda: f"the record of the deleted manifest {repo}@{digest}",
        )

    def put_deleted_manifest(self, repo: Repo, record: DeletedManifest, *, expect: Condition = None) -> Version:
        return self._tree.write(_deleted_manifest(repo, record.digest), record.to_json(), expect=expect)

    def drop_deleted_manifest(self, repo: Repo, digest: Digest, *, expect: Condition = None) -> None:
        self._tree.drop(_deleted_manifest(repo, digest), expect=expect)

    def deleted_manifests(self, repo: Repo) -> Iterable[Digest]:
        return digests_in(self._tree, record_keys.deleted_manifests(repo))

    def deleted_tag(self, repo: Repo, tag: str) -> Versioned[DeletedTag] | None:
        return read_record(
            self._tree,
            f"{record_keys.deleted_tags(repo)}/{tag}",
            lambda text: DeletedTag.from_json(tag, text),
            lambda: f"the record of the deleted tag {repo}:{tag}",
        )

    def put_deleted_tag(self, repo: Repo, record: DeletedTag, *, expect: Condition = None) -> Version:
        return self._tree.write(f"{record_keys.deleted_tags(repo)}/{record.tag}", record.to_json(), expect=expect)

    def drop_deleted_tag(self, repo: Repo, tag: str, *, expect: Condition = None) -> None:
        self._tree.drop(f"{record_keys.deleted_tags(repo)}/{tag}", expect=expect)

    def deleted_tags(self, repo: Repo) -> Sequence[str]:
        return tags_in(self._tree, record_keys.deleted_tags(repo))

    def changes(self, repo: Repo) -> int:
        return self._counter.changes(repo)

    def note_change(self, repo: Repo) -> None:
        self._counter.note_change(repo)

    def is_taken(self, repo: Repo) -> bool:
        folder = next(iter(self._tree.had(repo, _ALL)), None)
        return folder is not None and (folder in _PUBLISHED or self._is_being_pushed(repo))

    def _is_being_pushed(self, repo: Repo) -> bool:
        """True if the repository has a link that is more than a reservation. Read again after each change."""
        changes = self.changes(repo)
        remembered = self._pushed.get(repo)
        if remembered is not None and remembered[0] == changes >= 0:
            return remembered[1]
        links = (self.link(repo, digest) for digest in self.linked(repo))
        found = any(link is not None and link.record.state is not LinkState.RESERVED for link in links)
        self._pushed.put(repo, (changes, found))
        return found

    def taken(self, registry: str) -> Iterable[Repo]:
        return self._tree.repositories(_PUBLISHED, registry, had=True)

    def release(self, repo: Repo) -> bool:
        return self._tree.forget(repo, _ALL)

    def registries(self) -> Iterable[str]:
        return self._tree.registries()

    def repositories(self, registry: str, after: str = "") -> Iterable[Repo]:
        return self._tree.repositories(_ALL, registry, after=after)

    def flush(self) -> None:
        self._tree.flush()


def _link(repo: Repo, digest: Digest) -> str:
    return f"{record_keys.links(repo)}/{file_name(digest)}"


def _deleted_manifest(repo: Repo, digest: Digest) -> str:
    return f"{record_keys.deleted_manifests(repo)}/{file_name(digest)}"


def _referrer(digest: Digest, text: bytes) -> Descriptor | None:
    """The descriptor in an entry; None if it cannot be parsed, or is not about this digest."""
    try:
        descriptor = read_descriptor(json.loads(text))
    except (ManifestMalformed, ValueError, RecursionError):
        return None
    return descriptor if descriptor.digest == digest else None

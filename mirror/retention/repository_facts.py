"""Reads what retention must know about a repository, in steps that each block for a short time."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass

from mirror.collection.pace import MANIFEST, RECORD, Pace
from mirror.errors import StoreError
from mirror.graph.manifests import certain_manifest
from mirror.hosting.parts import HostedParts
from mirror.oci.attachments import tags_about
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted.retention import ManifestFact, RepositoryFacts, TagFact
from mirror.policy.records import ManifestRecord
from mirror.ports import Version
from mirror.retention.protected_images import Protected


@dataclass(frozen=True, slots=True)
class ReadRepository:
    """The facts, and the versions of the records from which they were read."""

    facts: RepositoryFacts
    tags: Mapping[str, tuple[Digest, Version]]
    manifests: Mapping[Digest, Version]


def read_repository(
    parts: HostedParts, repo: Repo, protected: Protected, pace: Pace
) -> Generator[None, None, ReadRepository]:
    """Reads tags and manifests; without pull times and marks. If anything cannot be read, the facts say so, and are
    incomplete.
    """
    reading = _Reading(parts, repo, protected)
    unread = ""
    try:
        yield from reading.read_manifests(pace)
        yield from reading.read_tags(pace)
    except StoreError as error:
        unread = str(error)
    facts = RepositoryFacts([*reading.tags.values()], reading.manifests, unread=unread)
    return ReadRepository(facts, reading.tag_versions, reading.manifest_versions)


class _Reading:
    def __init__(self, parts: HostedParts, repo: Repo, protected: Protected) -> None:
        self._parts = parts
        self._repo = repo
        self._protected = protected
        self.tags: dict[str, TagFact] = {}
        self.manifests: dict[Digest, ManifestFact] = {}
        self.tag_versions: dict[str, tuple[Digest, Version]] = {}
        self.manifest_versions: dict[Digest, Version] = {}

    def read_manifests(self, pace: Pace) -> Generator[None]:
        # digests, not records: a damaged record must not be passed over
        for digest in self._parts.catalog.manifest_digests(self._repo):
            found = self._parts.catalog.manifest(self._repo, digest)
            if found is not None:
                self.manifest_versions[digest] = found.version
                self.manifests[digest] = self._fact(found.record)
            if pace.spent(MANIFEST):
                yield

    def _fact(self, record: ManifestRecord) -> ManifestFact:
        manifest = certain_manifest(self._parts.contents, self._repo, record.digest, record.media_type)
        return ManifestFact(
            record.digest,
            record.fetched_at,
            tuple(child.digest for child in manifest.manifests) if manifest else (),
            manifest.subject.digest if manifest and manifest.subject else None,
            record.restored_at,
            self._protected.manifest(self._repo, record.digest),
        )

    def read_tags(self, pace: Pace) -> Generator[None]:
        for name in self._parts.catalog.tags(self._repo):
            found = self._parts.catalog.tag(self._repo, name)
            # a tag whose manifest was not there is new, or counts as absent
            if found is not None and found.record.digest in self.manifests:
                record = found.record
                stays = self._protected.tag(self._repo, name)
                self.tags[name] = TagFact(name, record.digest, record.tagged_at, record.restored_at, stays)
                self.tag_versions[name] = record.digest, found.version
            if pace.spent(RECORD):
                yield


def needed_by(facts: RepositoryFacts) -> dict[Digest, list[Digest]]:
    """What must stay with each manifest if it stays: what it names, what is about it, what is attached to it."""
    needed = {digest: [*manifest.children] for digest, manifest in facts.manifests.items()}
    by_name = {tag.name: tag.digest for tag in facts.tags}
    for digest, manifest in facts.manifests.items():
        if manifest.subject in needed:
            needed[manifest.subject].append(digest)
        attached = (by_name.get(name) for name in tags_about(digest))
        needed[digest] += [each for each in attached if each is not None]
    return needed


def in_order(going: set[Digest], needed: Mapping[Digest, list[Digest]]) -> list[Digest]:
    """Manifests before those that they need: an index before what it names, an image before its signatures."""
    done: dict[Digest, None] = {}
    entered: set[Digest] = set()
    for root in sorted(going):
        waiting = [(root, False)]
        while waiting:
            digest, left = waiting.pop()
            if left:
                done[digest] = None
            elif digest not in entered:
                entered.add(digest)
                waiting.append((digest, True))
                waiting += [(each, False) for each in needed.get(digest, ()) if each in going]
    return [*reversed(done)]

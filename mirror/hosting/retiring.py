"""Deletes what retention has chosen in a repository, many tags and manifests at once.

    1 mark       a record of each deletion, with the tags that go too
    2 look       all tags, once: a manifest to which another tag points stays; durable
    3 drop       the records of the manifests, if they are still as they were
    4 look       manifests that came meanwhile: what they name is brought back
    5 tags       if they are still as they were; durable

Each step keeps what a client did meanwhile:

    pushes the manifest, or another tag of it    before 3: the record is another, so it stays
                                                 after it: the push finds no manifest, and says so
    pushes an index that names it                before 3: met by 4 and brought back; after it: as above
    moves a tag, or pushes it again              the record is another, so it stays

A crash between the steps leaves records of deletions. A round of collection finishes them: tags that point to nothing
go, and a manifest that a live index names is brought back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from mirror.errors import Denied, RecordChanged, StoreError
from mirror.graph.manifests import certain_manifest
from mirror.hosting.damaged_records import has_manifest
from mirror.hosting.parts import HostedParts
from mirror.hosting.placing import Placing
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.events.changes import ChangeKind, HostedChange
from mirror.policy.hosted.retention import RETENTION
from mirror.policy.hosted_records import DeletedManifest, DeletedTag
from mirror.ports import ABSENT, Announcement, Version

#: Changes after which a step ends.
_PER_STEP = 20
#: Records that are read in one step.
_READ_PER_STEP = 200
_NEEDED = "something that stays needs it"


@dataclass(frozen=True, slots=True)
class Retirement:
    """What goes from a repository, as it was when that was decided: tags with what they point to, and manifests, those
    that name others before these. `needed` has for manifests what must stay if they stay.
    """

    tags: Mapping[str, tuple[Digest, Version]] = field(default_factory=dict)
    manifests: Mapping[Digest, Version] = field(default_factory=dict)
    needed: Mapping[Digest, Sequence[Digest]] = field(default_factory=dict)

    def batches(self, size: int) -> Iterator[Retirement]:
        """Cuts it into parts of about this size, in order. A manifest is in one part with all its tags."""
        of: dict[Digest, dict[str, tuple[Digest, Version]]] = {}
        for name, (digest, version) in self.tags.items():
            of.setdefault(digest, {})[name] = digest, version
        tags: dict[str, tuple[Digest, Version]] = {}
        manifests: dict[Digest, Version] = {}
        for each in (*(digest for digest in of if digest not in self.manifests), *self.manifests):
            tags |= of.get(each, {})
            if each in self.manifests:
                manifests[each] = self.manifests[each]
            if len(tags) + len(manifests) >= size:
                yield Retirement(tags, manifests, self.needed)
                tags, manifests = {}, {}
        if tags or manifests:
            yield Retirement(tags, manifests, self.needed)


@dataclass(slots=True)
class Retired:
    """What is gone, and why the rest stays: over all batches of a repository."""

    tags: list[str] = field(default_factory=list)
    manifests: list[Digest] = field(default_factory=list)
    stayed: list[tuple[str, str]] = field(default_factory=list)
    #: Manifests that stay although they were to go, and what they need.
    kept: set[Digest] = field(default_factory=set)


@dataclass(slots=True)
class _Mark:
    """The record of a deletion that is being made, and the version in which the manifest must still be."""

    record: DeletedManifest
    version: Version
    expected: Version
    announced: Announcement | None = None


class Retiring:
    """Deletions by retention in all hosted repositories."""

    def __init__(self, parts: HostedParts, placing: Placing) -> None:
        self._parts = parts
        self._placing = placing

    def __repr__(self) -> str:
        return "<Retiring>"

    def steps(
        self, repo: Repo, batch: Retirement, known: Collection[Digest], retired: Retired, *, keep: bool
    ) -> Iterator[None]:
        """Deletes; a generator whose steps block for a short time. `known` are the manifests that were there when the
        batch was decided. `keep`: what is deleted can be undeleted. Raises `StoreError` if something cannot be read.
        """
        work = _Work(self._parts, self._placing, repo, batch, retired, keep=keep)
        try:
            with self._parts.noted(repo, lambda: work.changed):
                yield from work.mark()
                yield from work.look_for_tags()
                work.record_tags()
                self._parts.records.flush()
                yield from work.drop_manifests()
                yield from work.look_for_indexes(known)
                yield from work.drop_tags()
            work.confirm()
        finally:
            work.close()


class _Work:
    """One batch, while it is deleted."""

    def __init__(
        self, parts: HostedParts, placing: Placing, repo: Repo, batch: Retirement, retired: Retired, *, keep: bool
    ) -> None:
        self._parts = parts
        self._placing = placing
        self._repo = repo
        self._batch = batch
        self._retired = retired
        self._keep = keep
        self._tags = dict(batch.tags)
        self._marks: dict[Digest, _Mark] = {}
        self._dropped: dict[Digest, _Mark] = {}
        self._deleted_tags: dict[str, Version] = {}
        self._announced: list[Announcement] = []
        #: True once a record of a tag or manifest was dropped, or may have been.
        self.changed = False
        self._count = 0

    def _spent(self, most: int) -> bool:
        self._count += 1
        return self._count % most == 0

    def mark(self) -> Iterator[None]:
        """Writes the records of deletions."""
        records = self._parts.records
        tags_of: dict[Digest, list[str]] = {}
        for name, (digest, _) in self._tags.items():
            tags_of.setdefault(digest, []).append(name)
        for digest, expected in self._batch.manifests.items():
            if digest in self._retired.kept:
                self._stay(digest, _NEEDED)
                continue
            found = self._parts.catalog.manifest(self._repo, digest)
            if found is None or found.version != expected:
                self._stay(digest, "it was pushed or deleted meanwhile")
                continue
            tags = tuple(sorted(tags_of.get(digest, ())))
            record = DeletedManifest.of(found.record, self._parts.now(), RETENTION, tags)
            # written even if it cannot be undeleted: after a crash, it says which tags are stale
            version = records.put_deleted_manifest(self._repo, record)
            self._marks[digest] = _Mark(record, version, expected)
            if self._spent(_PER_STEP):
                yield

    def look_for_tags(self) -> Iterator[None]:
        """Keeps the manifests to which other tags point by now, and the tags that are others by now."""
        going: set[str] = set()
        for name in self._parts.catalog.tags(self._repo):
            found = self._parts.catalog.tag(self._repo, name)
            if found is not None:
                expected = self._tags.get(name)
                if expected == (found.record.digest, found.version):
                    going.add(name)
                else:
                    self._stay(found.record.digest, f"the tag {name} points to it", only_marked=True)
            if self._spent(_READ_PER_STEP):
                yield
        for name in [name for name in self._tags if name not in going]:
            self._keep_tag(name, "it was moved, pushed or deleted meanwhile")
        for name in [*self._tags]:
            if reason := self._refused(name):
                self._stay(self._tags[name][0], reason, only_marked=True)
                self._keep_tag(name, reason)

    def _refused(self, tag: str) -> str:
        if self._parts.immutable.rule(self._repo, tag):
            return f"the tag {tag} is immutable"
        try:
            self._placing.check_freeze(self._repo, tag, None)
        except Denied as error:
            return str(error)
        return ""

    def _keep_tag(self, tag: str, reason: str) -> None:
        if self._tags.pop(tag, None):
            self._retired.stayed.append((tag, reason))

    def _stay(self, digest: Digest, reason: str, *, only_marked: bool = False) -> None:
        """Lets a manifest stay, with its tags and what it needs."""
        if only_marked and digest not in self._marks:
            return
        waiting = [(digest, reason)]
        while waiting:
            each, why = waiting.pop()
            if mark := self._marks.pop(each, None):
                self._withdraw(mark)
            if each in self._batch.manifests:
                self._retired.stayed.append((str(each), why))
                for name in [name for name, (pointed_to, _) in self._tags.items() if pointed_to == each]:
                    self._keep_tag(name, why)
            self._retired.kept.add(each)
            waiting += [(more, _NEEDED) for more in self._batch.needed.get(each, ()) if more not in self._retired.kept]

    def _withdraw(self, mark: _Mark) -> None:
        with suppress(RecordChanged):
            self._parts.records.drop_deleted_manifest(self._repo, mark.record.digest, expect=mark.version)

    def record_tags(self) -> None:
        """Writes the records of tags that go alone; the others are in the records of their manifests."""
        for name, (digest, _) in self._tags.items():
            if digest in self._marks:
                continue
            record = self._parts.catalog.get_tag(self._repo, name)
            if not self._keep:
                self._parts.records.drop_deleted_tag(self._repo, name)
            elif record is not None:
                deleted = DeletedTag.of(record, self._parts.now(), RETENTION)
                self._deleted_tags[name] = self._parts.records.put_deleted_tag(self._repo, deleted)

    def _announce(self, change: HostedChange) -> Announcement:
        announced = self._parts.events.begin(change.kind, self._repo, lambda: change)
        self._announced.append(announced)
        return announced

    def drop_manifests(self) -> Iterator[None]:
        """Drops the records of the manifests that are still as they were."""
        for digest, mark in [*self._marks.items()]:
            if digest not in self._marks:
                # what needs it stays
                continue
            record = mark.record
            change = HostedChange(
                ChangeKind.DELETE, self._repo, RETENTION, digest, record.tags, record.media_type, record.size
            )
            announced = self._announce(change)
            self.changed = True
            try:
                with announced.turn():
                    self._parts.catalog.drop_manifest(self._repo, digest, expect=mark.expected)
            except RecordChanged:
                self._take_back(announced)
                self._stay(digest, "it was pushed or tagged meanwhile")
            else:
                mark.announced = announced
                self._dropped[digest] = self._marks.pop(digest)
            if self._spent(_PER_STEP):
                yield

    def look_for_indexes(self, known: Collection[Digest]) -> Iterator[None]:
        """Brings back what manifests name that came since."""
        if not self._dropped:
            return
        try:
            for digest in [*self._parts.catalog.manifest_digests(self._repo)]:
                if digest not in known or digest in self._dropped or digest in self._retired.manifests:
                    self._bring_back_all(self._children(digest))
                if self._spent(_PER_STEP):
                    yield
        except StoreError:
            # an index that cannot be read may name all of them
            for digest in [*self._dropped]:
                self._bring_back(digest)
            raise

    def _children(self, digest: Digest) -> Sequence[Digest]:
        manifest = certain_manifest(self._parts.contents, self._repo, digest)
        return [child.digest for child in manifest.manifests] if manifest else []

    def _bring_back_all(self, digests: Sequence[Digest]) -> None:
        """Makes manifests live again, with what they name."""
        waiting = [*digests]
        while waiting:
            digest = waiting.pop()
            if digest in self._dropped:
                self._bring_back(digest)
                waiting += self._children(digest)

    def _bring_back(self, digest: Digest) -> None:
        mark = self._dropped.pop(digest)
        with suppress(RecordChanged):
            # its tags point to it still
            self._parts.catalog.put_manifest(self._repo, mark.record.restored(), expect=ABSENT)
        self._parts.catalog.flush()
        self._withdraw(mark)
        self._take_back(mark.announced)
        self._stay(digest, "an index that may name it was pushed meanwhile")

    def _take_back(self, announced: Announcement | None) -> None:
        if announced is not None:
            self._announced.remove(announced)
            announced.cancel()

    def drop_tags(self) -> Iterator[None]:
        """Drops the tags of the manifests that are gone, and those that go alone."""
        for name, (digest, version) in [*self._tags.items()]:
            self.changed = True
            try:
                if digest in self._dropped:
                    self._parts.catalog.drop_tag(self._repo, name, expect=version)
                else:
                    change = HostedChange(ChangeKind.DELETE_TAG, self._repo, RETENTION, digest, (name,))
                    announced = self._announce(change)
                    with announced.turn():
                        self._parts.catalog.drop_tag(self._repo, name, expect=version)
            except RecordChanged:
                if digest not in self._dropped:
                    self._take_back(announced)
                self._keep_tag(name, "it was moved or pushed meanwhile")
                if name in self._deleted_tags:
                    with suppress(RecordChanged):
                        self._parts.records.drop_deleted_tag(self._repo, name, expect=self._deleted_tags[name])
            if self._spent(_PER_STEP):
                yield

    def confirm(self) -> None:
        """To be called when all is durable, and every process sees it."""
        for digest, mark in self._dropped.items():
            if not self._keep:
                self._withdraw(mark)
                if not has_manifest(self._parts.catalog, self._repo, digest):
                    # what can be undeleted counts until it is collected
                    self._parts.accounts.unlink(self._repo, digest)
        self._retired.tags += self._tags
        self._retired.manifests += self._dropped
        for announced in self._announced:
            announced.done()

    def close(self) -> None:
        """Takes back what was not done, and ends the events."""
        for mark in self._marks.values():
            with suppress(StoreError):
                self._withdraw(mark)
        for announced in self._announced:
            announced.end()

"""Deletes tags, manifests and links of hosted repositories, and brings deleted ones back.

    delete a manifest    _deleted ──> its tags looked for ──> they in _deleted ──> durable ──> _manifests dropped
                         ──> its tags dropped ──> durable                      (from here on it is gone, and its tags)
    undelete it          links of its blobs ──> _manifests ──> the links again ──> tags ──> _deleted dropped
    delete a tag         _deleted_tags ──> the tag dropped ──> durable
    delete a blob        the link waits ──> the manifests are looked at again ──> it becomes a mark (REMOVED)

A tag whose manifest has no record counts as absent, so a crash between the steps of a deletion leaves nothing that can
be pulled. The tags that such a crash leaves are dropped before the same manifest is pushed again (`drop_stale_tags`).

A push looks for a deletion of its manifest after it has written a tag. If there is one, it writes the manifest's record
anew: a deletion that has not met the tag then fails to drop the record, and looks for tags again. If the record is gone
already, the push drops its tag, and the client is told so. In the same way, a push looks at the
links again after it has written a manifest, and the deletion of a blob looks at the manifests again once the link
waits. A push that relies on a link that waits writes it anew, so the deletion then fails to remove it, however late its
request arrives, and if it dies in between, the link still stands.

What immutable tags need goes only by force: `immutable_images.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from mirror.errors import (
    BlobReferenced,
    BlobUnknown,
    Denied,
    ManifestBlobUnknown,
    ManifestUnknown,
    RecordChanged,
    RecordDamaged,
    StaleRequest,
    StoreError,
)
from mirror.graph.manifests import has_blob, manifest_of_bytes
from mirror.hosting.damaged_records import damaged_deleted_tag, deletion_or_remade, has_manifest, manifest_or_remade
from mirror.hosting.immutable_images import ImmutableImages
from mirror.hosting.links import TRIES, Links
from mirror.hosting.parts import HostedParts
from mirror.hosting.placing import PlacedTag, Placing
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.events.changes import ChangeKind, HostedChange
from mirror.policy.hosted.push_checks import requirements
from mirror.policy.hosted_records import BlobLink, DeletedManifest, DeletedTag
from mirror.policy.records import TagRecord
from mirror.ports import OWN_WORK, SILENCE, Announcement, Announcer, Steps, Version, Versioned


@dataclass(slots=True)
class _Change:
    """Whether something was changed, or may have been, and the events that report it. `tags` are those that were
    written, with their generations, if they are not all that were announced.
    """

    made: bool = False
    announced: Announcement = SILENCE
    tags: Mapping[str, int] | None = None

    def announce(self, events: Announcer, change: HostedChange) -> None:
        """To be called before the change is made, also for another attempt after one that has changed nothing."""
        self.announced.cancel()
        self.announced = SILENCE
        self.announced = events.begin(change.kind, change.repo, lambda: change)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A link that waits to be removed, and what it was before."""

    before: BlobLink
    link: Versioned[BlobLink]


class Deleting:
    """Deletions in all hosted repositories. All calls block, and raise `StoreError` if a record cannot be read, and
    `StaleRequest` if the `steps` do not let them change anything.
    """

    def __init__(self, parts: HostedParts, links: Links, placing: Placing) -> None:
        self._parts = parts
        self._links = links
        self._placing = placing
        self._immutable = ImmutableImages(parts)

    def __repr__(self) -> str:
        return "<Deleting>"

    def check(self, repo: Repo, tags: Collection[str], digests: Collection[Digest], *, force: bool = False) -> None:
        """Returns if these tags and manifests, where they exist, may be deleted. `force`: immutable tags, too. Raises
        `Denied`, `TagImmutable`.
        """
        for tag in tags:
            self._placing.check_freeze(repo, tag, None)
            if not force:
                self._immutable.check_tag_deletion(repo, tag)
        if digests and not force:
            self._immutable.check_deletion(repo, digests)

    # --------------------------------------------------------------------------------------------------------- tags

    def delete_tag(
        self, repo: Repo, tag: str, caller: str, *, keep: bool, force: bool = False, steps: Steps = OWN_WORK
    ) -> None:
        """Deletes a tag. `keep`: it can be undeleted. `force`: even if it is immutable. Raises `ManifestUnknown`,
        `TagImmutable`, `Denied` if the tag is frozen.
        """
        with self._changing(repo) as change:
            for _ in range(TRIES):
                try:
                    found = self._parts.catalog.tag(repo, tag)
                except RecordDamaged as damaged:
                    # nobody can say what it points to
                    self.check(repo, [tag], [], force=force)
                    change.made = True
                    unknown = HostedChange(ChangeKind.DELETE_TAG, repo, caller, None, (tag,))
                    change.announce(self._parts.events, unknown)
                    with suppress(RecordChanged), change.announced.turn():
                        self._parts.catalog.drop_tag(repo, tag, expect=steps.expect(Version(damaged.version)))
                        return
                    continue
                if found is None and self._drop_damaged_deletion(repo, tag):
                    change.made = True
                    return
                is_here = found is not None and has_manifest(self._parts.catalog, repo, found.record.digest)
                if found is None or not (is_here or force):
                    raise ManifestUnknown(f"{repo} has no tag {tag}")
                self.check(repo, [tag], [], force=force)
                deleted = DeletedTag.of(found.record, self._parts.now(), caller)
                steps.go_on()
                change.made = True
                change.announce(self._parts.events, _of_tag(repo, deleted, found.version))
                if keep:
                    self._parts.records.put_deleted_tag(repo, deleted)
                    self._parts.records.flush()
                else:
                    self._parts.records.drop_deleted_tag(repo, tag)
                with suppress(RecordChanged), change.announced.turn():
                    self._parts.catalog.drop_tag(repo, tag, expect=steps.expect(found.version))
                    return
        raise StoreError(f"the tag {repo}:{tag} was changed all the time")

    def _drop_damaged_deletion(self, repo: Repo, tag: str) -> bool:
        """Drops the record of a tag's deletion if it is damaged; False if it is not."""
        damaged = damaged_deleted_tag(self._parts.records, repo, tag)
        if damaged is not None:
            with suppress(RecordChanged):
                self._parts.records.drop_deleted_tag(repo, tag, expect=damaged)
        return damaged is not None

    def undelete_tag(self, repo: Repo, tag: str, caller: str, *, steps: Steps = OWN_WORK) -> None:
        """Brings back a deleted tag. Raises `ManifestUnknown` if there is none, or if its manifest is not here, and
        `Denied` if the tag points to something again.
        """
        with self._changing(repo) as change:
            deleted = self._parts.records.deleted_tag(repo, tag)
            if deleted is None:
                raise ManifestUnknown(f"{repo} has no deleted tag {tag}")
            record = deleted.record
            if not has_manifest(self._parts.catalog, repo, record.digest):
                raise ManifestUnknown(f"the tag {tag} pointed to {record.digest}, which {repo} does not have")
            now = self._parts.now()
            fresh = TagRecord(tag, record.digest, record.media_type, record.size, now, restored_at=now, by=caller)
            change.made = True
            change.announce(
                self._parts.events, HostedChange(ChangeKind.UNDELETE_TAG, repo, caller, record.digest, (tag,))
            )
            change.tags = {}
            with change.announced.turn():
                placed = self._placing.put_absent_tag(repo, fresh, steps)
            change.tags = {tag: placed.record.generation}
            self._placing.check_still_there(repo, record.digest, [placed], anew=True)
            with suppress(RecordChanged):
                self._parts.records.drop_deleted_tag(repo, tag, expect=deleted.version)

    # ---------------------------------------------------------------------------------------------------- manifests

    def delete_manifest(
        self, repo: Repo, digest: Digest, caller: str, *, keep: bool, force: bool = False, steps: Steps = OWN_WORK
    ) -> None:
        """Deletes a manifest and all its tags. `keep`: they can be undeleted. `force`: even if an immutable tag needs
        it. Raises `ManifestUnknown`, `TagImmutable`, `Denied` if one of the tags is frozen.
        """
        catalog, records = self._parts.catalog, self._parts.records
        with self._changing(repo) as change:
            for _ in range(TRIES):
                found = manifest_or_remade(self._parts, repo, digest)
                if found is None:
                    raise ManifestUnknown(f"{repo} has no manifest {digest}")
                # without its bytes there is nothing to bring back
                keep = keep and found.record.size > 0
                mark = DeletedManifest.of(found.record, self._parts.now(), caller)
                steps.go_on()
                change.made = True
                # before the tags are looked for: whoever writes one that is not found, finds this record
                version = records.put_deleted_manifest(repo, mark)
                try:
                    tags = dict(self._tags_of(repo, digest, steps))
                    self.check(repo, tags, [digest], force=force)
                    record = replace(mark, tags=tuple(tags))
                    deletion = _of_manifest(ChangeKind.DELETE, repo, record, caller, found.version)
                    change.announce(self._parts.events, deletion)
                except BaseException:
                    with suppress(RecordChanged):
                        records.drop_deleted_manifest(repo, digest, expect=version)
                    raise
                try:
                    # written even if it cannot be undeleted: after a crash, it says which tags are stale
                    version = records.put_deleted_manifest(repo, record, expect=version)
                    records.flush()
                    with change.announced.turn():
                        catalog.drop_manifest(repo, digest, expect=steps.expect(found.version))
                except RecordChanged:
                    # pushed or tagged again meanwhile
                    continue
                except StaleRequest:
                    with suppress(RecordChanged):
                        records.drop_deleted_manifest(repo, digest, expect=version)
                    raise
                self._drop_tags(repo, record, version, tags, keep=keep)
                if not keep and not has_manifest(catalog, repo, digest):
                    # what can be undeleted counts until it is collected
                    self._parts.accounts.unlink(repo, digest)
                return
        raise StoreError(f"the manifest {repo}@{digest} was changed all the time")

    def _drop_tags(
        self, repo: Repo, record: DeletedManifest, version: Version, before: Mapping[str, Version], *, keep: bool
    ) -> None:
        """Drops the tags of a manifest whose record was dropped. `before` are those that it had then."""
        records = self._parts.records
        tags = dict(self._tags_of(repo, record.digest))
        if has_manifest(self._parts.catalog, repo, record.digest):
            # a push has brought it back since: the tags that it has written are its own, and have other versions
            tags = dict(before)
        late = tuple(tag for tag in tags if tag not in record.tags)
        if late:
            with suppress(RecordChanged):
                more = replace(record, tags=(*record.tags, *late))
                version = records.put_deleted_manifest(repo, more, expect=version)
                records.flush()
        for tag, seen in tags.items():
            # a tag that moved meanwhile points elsewhere, or its push drops it
            with suppress(RecordChanged):
                self._parts.catalog.drop_tag(repo, tag, expect=seen)
        if not keep:
            self._parts.catalog.flush()
            with suppress(RecordChanged):
                records.drop_deleted_manifest(repo, record.digest, expect=version)

    def _tags_of(self, repo: Repo, digest: Digest, steps: Steps = OWN_WORK) -> Iterator[tuple[str, Version]]:
        """Yields the tags that point to a manifest, with the versions of their records. A damaged record points to
        nothing. Raises `StoreError` if one cannot be read.
        """
        for tag in self._parts.catalog.tags(repo):
            steps.go_on()
            with suppress(RecordDamaged):
                found = self._parts.catalog.tag(repo, tag)
                if found is not None and found.record.digest == digest:
                    yield tag, found.version

    def drop_stale_tags(self, repo: Repo, digest: Digest) -> Versioned[DeletedManifest] | None:
        """To be called before a manifest without a record gets one: drops the tags that an interrupted deletion has
        left, so that they do not come back with it. Returns the record of the deletion.
        """
        deleted = deletion_or_remade(self._parts, repo, digest)
        if deleted is None:
            return None
        stale = list(self._tags_of(repo, digest))
        if has_manifest(self._parts.catalog, repo, digest):
            # another push was faster; the tags are its own
            return deleted
        for tag, version in stale:
            # every push of a tag writes its record anew, so a tag that is pushed meanwhile has another version
            with suppress(RecordChanged):
                self._parts.catalog.drop_tag(repo, tag, expect=version)
        return deleted

    def undelete_manifest(
        self, repo: Repo, digest: Digest, caller: str, *, sparse: bool = False, steps: Steps = OWN_WORK
    ) -> dict[str, str]:
        """Brings back a deleted manifest, and those of its tags that point to nothing now: none if the record of the
        deletion is damaged. Returns why the other tags do not come back, by tag.

        Raises `ManifestUnknown` if there is none; `ManifestBlobUnknown` if content that it needs is gone, unless it may
        be `sparse`; `QuotaExceeded`.
        """
        back: list[PlacedTag] = []
        left: dict[str, str] = {}
        with self._changing(repo) as change:
            deleted = deletion_or_remade(self._parts, repo, digest)
            if deleted is None:
                raise ManifestUnknown(f"{repo} has no deleted manifest {digest}")
            record = deleted.record
            manifest = manifest_of_bytes(self._parts.contents, digest, record.media_type)
            if manifest is None:
                raise ManifestBlobUnknown(f"the bytes of {digest} are gone", [str(digest)])
            change.made = True
            change.announce(self._parts.events, _of_manifest(ChangeKind.UNDELETE, repo, record, caller))
            change.tags = {}
            for blob in requirements(manifest, sparse=True).blobs:
                self._links.restore(repo, blob.digest)
            now = self._parts.now()
            self._placing.put_manifest(repo, manifest, record.restored(now), caller, sparse=sparse, steps=steps)
            with change.announced.turn():
                for tag in record.tags:
                    fresh = TagRecord(tag, digest, record.media_type, record.size, now, restored_at=now, by=caller)
                    try:
                        back.append(self._placing.put_absent_tag(repo, fresh, steps))
                    except Denied as error:
                        left[tag] = str(error)
            change.tags = {placed.record.tag: placed.record.generation for placed in back}
            self._placing.check_still_there(repo, digest, back)
            self._parts.flush()
            with suppress(RecordChanged):
                self._parts.records.drop_deleted_manifest(repo, digest, expect=deleted.version)
        return left

    # -------------------------------------------------------------------------------------------------------- blobs

    def delete_blob(self, repo: Repo, digest: Digest, caller: str, *, steps: Steps = OWN_WORK) -> None:
        """Removes the link to a blob. Raises `BlobUnknown`, and `BlobReferenced` if a manifest of the repository names
        the blob. If a deleted manifest that can be undeleted names it, its bytes stay as long, and still count.
        """
        with self._changing(repo) as change:
            for _ in range(TRIES):
                found = self._links.removable(repo, digest, caller)
                self._refuse_if_named(repo, digest)
                change.made = True
                with suppress(RecordChanged):
                    waiting = {digest: _Waiting(found.record, self._links.let_wait(repo, found, steps))}
                    with self._back_on_errors(repo, waiting):
                        self._refuse_if_named(repo, digest)
                        self._links.remove(repo, waiting[digest].link, steps)
                    self._unlink(repo, waiting)
                    return
        raise StoreError(f"the link of {repo} to {digest} was changed all the time")

    def delete_blobs(self, repo: Repo, digests: Collection[Digest], caller: str) -> None:
        """Like `delete_blob` for several blobs, which reads each manifest as often as for one. Blobs that a manifest of
        the repository names, or that it does not have, are passed over.
        """
        left: Collection[Digest] = digests
        with self._changing(repo) as change:
            for _ in range(TRIES):
                left = self._remove_unnamed(repo, left, caller, change)
                if not left:
                    return
        raise StoreError(f"the links of {repo} to {len(left)} blobs were changed all the time")

    def _remove_unnamed(
        self, repo: Repo, digests: Collection[Digest], caller: str, change: _Change
    ) -> Collection[Digest]:
        """Returns those whose links were changed meanwhile."""
        catalog, waiting = self._parts.catalog, dict[Digest, _Waiting]()
        named = self._named(repo, digests, catalog.manifest_digests(repo))
        for digest in digests:
            if digest not in named and (found := self._let_wait(repo, digest, caller)) is not None:
                change.made = True
                waiting[digest] = found
        with self._back_on_errors(repo, waiting):
            needed = self._named(repo, waiting, catalog.manifest_digests(repo))
        self._put_links_back(repo, {digest: waiting.pop(digest) for digest in needed})
        removed: list[Digest] = []
        try:
            for digest, each in waiting.items():
                if self._remove(repo, each):
                    removed.append(digest)
        finally:
            # also if another one cannot be removed: what is gone must count no more
            self._unlink(repo, removed)
        return waiting.keys() - removed

    def _let_wait(self, repo: Repo, digest: Digest, caller: str) -> _Waiting | None:
        """None if the repository has no such link."""
        for _ in range(TRIES):
            try:
                found = self._links.removable(repo, digest, caller)
            except BlobUnknown:
                return None
            with suppress(RecordChanged):
                return _Waiting(found.record, self._links.let_wait(repo, found))
        raise StoreError(f"the link of {repo} to {digest} was changed all the time")

    def _remove(self, repo: Repo, waiting: _Waiting) -> bool:
        """False if somebody relies on the link again."""
        with suppress(RecordChanged):
            self._links.remove(repo, waiting.link)
            return True
        return False

    def _put_links_back(self, repo: Repo, waiting: Mapping[Digest, _Waiting]) -> None:
        for each in waiting.values():
            if each.link.record != each.before:
                with suppress(RecordChanged):
                    self._parts.records.put_link(repo, each.before, expect=each.link.version)

    @contextmanager
    def _back_on_errors(self, repo: Repo, waiting: Mapping[Digest, _Waiting]) -> Iterator[None]:
        """Lets the links no longer wait if it cannot be said inside that no manifest needs them."""
        try:
            yield
        except BaseException:
            self._put_links_back(repo, waiting)
            raise

    def _unlink(self, repo: Repo, digests: Collection[Digest]) -> None:
        """Notes that blobs are gone, except those that a deleted manifest names, which may come back."""
        try:
            kept = self._named(repo, digests, self._parts.records.deleted_manifests(repo))
        except StoreError:
            # one that cannot be read may name any of them
            return
        for digest in {*digests} - kept:
            self._parts.accounts.unlink(repo, digest)

    def _named(self, repo: Repo, digests: Collection[Digest], manifests: Iterable[Digest]) -> set[Digest]:
        """Returns those of these blobs that one of the manifests names. Raises `StoreError` if one cannot be read: it
        may name any of them.
        """
        named: set[Digest] = set()
        for _, names in self._names(repo, manifests) if digests else ():
            named.update(name for name in names if name in digests)
        return named

    def _refuse_if_named(self, repo: Repo, digest: Digest) -> None:
        for by, names in self._names(repo, self._parts.catalog.manifest_digests(repo)):
            if digest in names:
                raise BlobReferenced(f"the manifest {by} of {repo} names {digest}; delete the manifest first")

    def _names(self, repo: Repo, manifests: Iterable[Digest]) -> Iterator[tuple[Digest, Collection[Digest]]]:
        """Yields those of these that are manifests, with what each names. Raises `StoreError` if one cannot be read."""
        for each in manifests:
            manifest = manifest_of_bytes(self._parts.contents, each)
            if manifest is not None:
                yield each, {blob.digest for blob in (*manifest.blobs, *manifest.manifests)}
            elif not has_blob(self._parts.contents, each):
                raise StoreError(f"the manifest {repo}@{each} is missing: nobody can say what it names")

    @contextmanager
    def _changing(self, repo: Repo) -> Iterator[_Change]:
        """What is done inside is durable afterwards, and every process sees it, also if it fails in the middle."""
        change = _Change()
        try:
            with self._parts.noted(repo, lambda: change.made):
                yield change
            change.announced.done(written=change.tags)
        finally:
            change.announced.end(change.tags)


def _of_tag(repo: Repo, deleted: DeletedTag, version: Version) -> HostedChange:
    kind, generation = ChangeKind.DELETE_TAG, deleted.generation
    return HostedChange(
        kind, repo, deleted.by, deleted.digest, (deleted.tag,), version=str(version), generation=generation
    )


def _of_manifest(kind: ChangeKind, repo: Repo, record: DeletedManifest, caller: str, version: str = "") -> HostedChange:
    return HostedChange(kind, repo, caller, record.digest, record.tags, record.media_type, record.size, version=version)

"""Deletions by operators: a whole image, a whole repository, and at once if a secret has leaked.

    a tag           the tag alone, like a client's deletion
    an image        its manifest with all its tags, and the manifests of its platforms that nothing else needs
    a repository    all its images and tags

Without haste, everything can be undeleted for a while, and the collector frees the bytes later. At once (`erase`):

    manifests ──> their blobs that no other manifest of the repository names: links become marks
              ──> bytes that no hosted repository has any more ── queue ── looked for again ── collect ──> gone

Between the two looks, whoever makes a link takes the bytes out of the queue first, and `collect` then fails: so bytes
that somebody pushes at the same moment stay. What stays is reported, with the repositories that have it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field

from mirror.errors import BlobUnknown, Denied, ManifestUnknown, RecordChanged, RecordDamaged, StoreError
from mirror.graph.manifests import manifest_of_bytes
from mirror.hosting.damaged_records import damaged_deleted_tag, deletion_or_remade, has_manifest
from mirror.hosting.deleting import Deleting
from mirror.hosting.parts import HostedParts
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted_records import DeletedManifest, DeletedTag, LinkState, QueuedBlob
from mirror.ports import OWN_WORK, Steps


@dataclass(frozen=True, slots=True)
class DeletionPlan:
    """What a deletion removes from a repository: tags, and manifests with their children, parents first. `damaged`: the
    record of the tag is, so nobody knows what could be undeleted.
    """

    repo: Repo
    tags: tuple[str, ...]
    manifests: tuple[Digest, ...]
    damaged: bool = False


@dataclass(slots=True)
class Erased:
    """What was erased. `blobs` are the digests whose bytes are gone, with their sizes. `elsewhere` are those that stay,
    with the repositories that have them. `busy` stay because somebody pushed them at the same moment.
    """

    blobs: dict[Digest, int] = field(default_factory=dict)
    elsewhere: dict[Digest, tuple[Repo, ...]] = field(default_factory=dict)
    busy: list[Digest] = field(default_factory=list)


@dataclass(slots=True)
class Undeleted:
    """What came back: `manifests`, with their tags. `left` says of each tag that did not come back why."""

    manifests: list[Digest] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def add(self, more: Undeleted) -> None:
        """Takes in what else came back."""
        self.manifests += more.manifests
        self.left += more.left


class OperatorDeletions:
    """Deletes and undeletes for operators. All calls block, and raise `StoreError` if something cannot be read: then
    nothing was deleted yet, unless the message says so.
    """

    def __init__(
        self, parts: HostedParts, deleting: Deleting, registries: Collection[str], *, threads: Executor | None = None
    ) -> None:
        """`registries` are the names of all hosted registries. `threads` are those in which an event loop makes these
        calls; None: its own.
        """
        self._parts = parts
        self._deleting = deleting
        self._registries = tuple(registries)
        self.threads = threads

    def __repr__(self) -> str:
        return f"<OperatorDeletions {', '.join(self._registries)}>"

    # ------------------------------------------------------------------------------------------------------- plans

    def plan_tag(self, repo: Repo, tag: str, *, force: bool = False) -> DeletionPlan:
        """The deletion of a tag alone; with `force`, also of one whose manifest was lost. Of a tag whose record, or
        that of its deletion, is damaged, that record goes. Raises `ManifestUnknown`.
        """
        damaged = False
        try:
            if not force or self._parts.catalog.get_tag(repo, tag) is None:
                self.digest_of(repo, tag)
        except RecordDamaged:
            damaged = True
        except ManifestUnknown:
            if damaged_deleted_tag(self._parts.records, repo, tag) is None:
                raise
            damaged = True
        return DeletionPlan(repo, (tag,), (), damaged)

    def digest_of(self, repo: Repo, tag: str) -> Digest:
        """What a tag points to. Raises `ManifestUnknown`."""
        record = self._parts.catalog.get_tag(repo, tag)
        if record is None or not has_manifest(self._parts.catalog, repo, record.digest):
            raise ManifestUnknown(f"{repo}:{tag} is not here")
        return record.digest

    def plan_image(self, repo: Repo, digest: Digest) -> DeletionPlan:
        """The deletion of an image, also of a deleted one that is still kept. Raises `ManifestUnknown`."""
        kept = deletion_or_remade(self._parts, repo, digest) is not None
        if not has_manifest(self._parts.catalog, repo, digest) and not kept:
            raise ManifestUnknown(f"{repo}@{digest} is not here")
        children = {each: self._children(each) for each in self._manifests(repo, kept=kept)}
        parents: dict[Digest, set[Digest]] = {each: set() for each in children}
        for parent, named in children.items():
            for child in named:
                parents.setdefault(child, set()).add(parent)
        tags = dict(self._tags(repo))
        family = dict.fromkeys([digest])
        waiting = [digest]
        while waiting:
            for child in children.get(waiting.pop(), ()):
                needed = child in tags.values() or child in family or not parents[child] <= family.keys()
                if child in children and not needed:
                    family[child] = None
                    waiting.append(child)
        pointing = tuple(tag for tag, root in tags.items() if root == digest)
        return DeletionPlan(repo, pointing, tuple(family))

    def plan_repository(self, repo: Repo, *, kept: bool) -> DeletionPlan:
        """The deletion of everything in a repository; of deleted images that are kept as well if `kept`. Raises
        `ManifestUnknown` if there is nothing.
        """
        manifests = tuple(sorted(self._manifests(repo, kept=kept), key=lambda each: not self._children(each)))
        tags = tuple(self._parts.catalog.tags(repo))
        if not manifests and not tags and not (kept and any(True for _ in self._parts.records.linked(repo))):
            raise ManifestUnknown(f"{repo} has nothing here")
        return DeletionPlan(repo, tags, manifests)

    def size(self, plan: DeletionPlan) -> int:
        """The bytes of everything that the manifests of a plan are or name."""
        sizes: dict[Digest, int] = {}
        for each in plan.manifests:
            manifest = manifest_of_bytes(self._parts.contents, each)
            if manifest is not None:
                sizes[each] = len(manifest.content)
                sizes |= {blob.digest: max(0, blob.size) for blob in manifest.blobs if not blob.foreign}
        return sum(sizes.values())

    def _manifests(self, repo: Repo, *, kept: bool) -> list[Digest]:
        manifests = list(self._parts.catalog.manifest_digests(repo))
        return list(dict.fromkeys([*manifests, *(self._parts.records.deleted_manifests(repo) if kept else ())]))

    def _children(self, digest: Digest) -> tuple[Digest, ...]:
        manifest = manifest_of_bytes(self._parts.contents, digest)
        return tuple(child.digest for child in manifest.manifests) if manifest else ()

    def _tags(self, repo: Repo) -> Iterator[tuple[str, Digest]]:
        """Yields each tag with what it points to, without damaged ones."""
        for tag in self._parts.catalog.tags(repo):
            with suppress(RecordDamaged):
                record = self._parts.catalog.get_tag(repo, tag)
                if record is not None:
                    yield tag, record.digest

    # -------------------------------------------------------------------------------------------------- deletions

    def check(self, plan: DeletionPlan, *, force: bool = False) -> None:
        """Returns if a plan may be done. `force`: immutable tags may go. Raises `TagImmutable`, `Denied` if a tag is
        frozen.
        """
        self._deleting.check(plan.repo, plan.tags, plan.manifests, force=force)

    def delete(
        self, plan: DeletionPlan, caller: str, *, keep: bool, force: bool = False, steps: Steps = OWN_WORK
    ) -> None:
        """Deletes what a plan names; what is gone already is passed over. `keep`: it can be undeleted. Raises like
        `check`: then nothing was deleted, unless a tag came meanwhile; and `StaleRequest`.
        """
        self.check(plan, force=force)
        steps.go_on(after_long_work=True)
        for digest in plan.manifests:
            with suppress(ManifestUnknown):
                self._deleting.delete_manifest(plan.repo, digest, caller, keep=keep, force=force, steps=steps)
        for tag in plan.tags:
            with suppress(ManifestUnknown):
                self._deleting.delete_tag(plan.repo, tag, caller, keep=keep, force=force, steps=steps)

    def erase(
        self,
        plan: DeletionPlan,
        caller: str,
        *,
        everything: bool = False,
        force: bool = False,
        steps: Steps = OWN_WORK,
    ) -> Erased:
        """Deletes what a plan names so that nothing can be undeleted, and the bytes that no hosted repository has any
        more. `everything`: also what the repository has besides, such as uploads without a manifest. Raises like
        `delete`.
        """
        repo, records = plan.repo, self._parts.records
        named = set(plan.manifests)
        for each in plan.manifests:
            manifest = manifest_of_bytes(self._parts.contents, each)
            named.update(blob.digest for blob in (manifest.blobs if manifest else ()) if not blob.foreign)
        if everything:
            named.update(records.linked(repo))
        self.delete(plan, caller, keep=False, force=force, steps=steps)
        erased = Erased()
        try:
            for each in plan.manifests:
                records.drop_deleted_manifest(repo, each)
            self._drop_notes(repo, plan.manifests)
            # what another manifest of the repository names stays, and is reported
            self._deleting.delete_blobs(repo, named, caller)
            for digest in sorted(named):
                self._collect(digest, erased)
            self._parts.settle(repo)
        except StoreError as error:
            raise StoreError(f"deleted from {repo}, but bytes stay: {error}; run the same again") from error
        if left := self._parts.blobs.free_collected(at_once=True):
            raise StoreError(
                f"deleted from {repo}, but the bytes of {left} blobs stay in the bucket until its next sweep"
            )
        return erased

    def _drop_notes(self, repo: Repo, manifests: Collection[Digest]) -> None:
        """Drops the records of deleted tags that point to these manifests: they could not be undeleted."""
        for tag in self._parts.records.deleted_tags(repo):
            # a damaged one cannot be undeleted either
            with suppress(RecordDamaged):
                deleted = self._parts.records.deleted_tag(repo, tag)
                if deleted is not None and deleted.record.digest in manifests:
                    self._parts.records.drop_deleted_tag(repo, tag)

    def _collect(self, digest: Digest, erased: Erased) -> None:
        blobs = self._parts.blobs
        try:
            blobs.hosted(digest)
        except BlobUnknown:
            return
        if holders := self.holders(digest):
            erased.elsewhere[digest] = holders
            return
        try:
            waiting = blobs.queued(digest)
            version = waiting.version if waiting else blobs.queue(QueuedBlob(digest, self._parts.now()))
            if holders := self.holders(digest):
                erased.elsewhere[digest] = holders
                with suppress(BlobUnknown):
                    blobs.rescue(digest)
                return
            erased.blobs[digest] = blobs.collect(digest, version)
        except RecordChanged:
            erased.busy.append(digest)

    def holders(self, digest: Digest) -> tuple[Repo, ...]:
        """The hosted repositories that have this content, as a blob or as a manifest, deleted ones that are kept
        included, or may have it because a record is damaged; sorted. Reads a few files for each repository.
        """
        return tuple(sorted(repo for repo in self.repositories() if self._has(repo, digest)))

    def _has(self, repo: Repo, digest: Digest) -> bool:
        records, catalog = self._parts.records, self._parts.catalog
        try:
            link = records.link(repo, digest)
            if link is not None and link.record.state is not LinkState.REMOVED:
                return True
            if catalog.get_manifest(repo, digest) is not None:
                return True
            return records.deleted_manifest(repo, digest) is not None
        except RecordDamaged:
            return True

    def repositories(self) -> Iterable[Repo]:
        """All hosted repositories."""
        for registry in self._registries:
            yield from self._parts.records.repositories(registry)

    # ------------------------------------------------------------------------------------------------- undeletions

    def deleted(self, wanted: Callable[[Repo], bool]) -> Iterator[tuple[Repo, DeletedManifest | DeletedTag]]:
        """Yields what can be undeleted in these repositories, in no order. Expired records may be among it, and damaged
        ones of manifests, without tags, as if they were deleted now.
        """
        records = self._parts.records
        for repo in filter(wanted, self.repositories()):
            for digest in records.deleted_manifests(repo):
                if (manifest := deletion_or_remade(self._parts, repo, digest)) is not None:
                    yield repo, manifest.record
            for tag in records.deleted_tags(repo):
                with suppress(RecordDamaged):
                    if (deleted := records.deleted_tag(repo, tag)) is not None:
                        yield repo, deleted.record

    def undelete_tag(self, repo: Repo, tag: str, caller: str, *, steps: Steps = OWN_WORK) -> Undeleted:
        """Brings back a deleted tag, with its image if that was deleted as well. Raises like `Deleting`."""
        records = self._parts.records
        deleted = records.deleted_tag(repo, tag)
        if deleted is not None and has_manifest(self._parts.catalog, repo, deleted.record.digest):
            self._deleting.undelete_tag(repo, tag, caller, steps=steps)
            return Undeleted()
        pointed_to = deleted.record.digest if deleted is not None else None
        # a damaged record is an error: it may be that of the image to which the tag pointed last
        manifests = [records.deleted_manifest(repo, digest) for digest in records.deleted_manifests(repo)]
        of_tag = [
            each.record
            for each in manifests
            if each is not None and (tag in each.record.tags or each.record.digest == pointed_to)
        ]
        if not of_tag:
            raise ManifestUnknown(f"{repo} has no deleted tag {tag}")
        steps.go_on(after_long_work=True)
        latest = max(of_tag, key=lambda record: record.deleted_at)
        back = self.undelete_image(repo, latest.digest, caller, steps=steps)
        if deleted is not None and tag not in latest.tags:
            self._deleting.undelete_tag(repo, tag, caller, steps=steps)
        return back

    def undelete_image(self, repo: Repo, digest: Digest, caller: str, *, steps: Steps = OWN_WORK) -> Undeleted:
        """Brings back a deleted image, with its tags and with the manifests of its platforms that were deleted. Raises
        like `Deleting`.
        """
        back = Undeleted()
        for child in self._children(digest):
            if child != digest and deletion_or_remade(self._parts, repo, child) is not None:
                back.add(self.undelete_image(repo, child, caller, steps=steps))
        left = self._deleting.undelete_manifest(repo, digest, caller, steps=steps)
        back.add(Undeleted([digest], list(left.values())))
        return back

    def undelete_repository(self, repo: Repo, caller: str, *, steps: Steps = OWN_WORK) -> Undeleted:
        """Brings back everything that was deleted in a repository and can be undeleted. Raises `ManifestUnknown` if
        there is nothing, and like `Deleting`.
        """
        found: Sequence[DeletedManifest | DeletedTag] = [
            record for _, record in self.deleted(lambda each: each == repo)
        ]
        if not found:
            raise ManifestUnknown(f"{repo} has nothing that was deleted and can be undeleted")
        steps.go_on(after_long_work=True)
        back = Undeleted()
        # newest first: of two images that had the same tag, the one that had it last gets it back
        for record in sorted(found, key=lambda record: -record.deleted_at):
            if isinstance(record, DeletedManifest) and record.digest not in back.manifests:
                back.add(self.undelete_image(repo, record.digest, caller, steps=steps))
        for record in found:
            if isinstance(record, DeletedTag):
                with suppress(ManifestUnknown):
                    self._undelete_absent_tag(repo, record.tag, caller, back, steps)
        return back

    def _undelete_absent_tag(self, repo: Repo, tag: str, caller: str, back: Undeleted, steps: Steps) -> None:
        if self._parts.catalog.get_tag(repo, tag) is not None:
            back.left.append(f"the tag {repo}:{tag} exists")
            return
        try:
            self._deleting.undelete_tag(repo, tag, caller, steps=steps)
        except Denied as error:
            back.left.append(str(error))

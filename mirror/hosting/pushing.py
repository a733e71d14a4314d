"""The PUT of a manifest into a hosted repository. `placing.py` has the order of the steps that write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from mirror.errors import RecordChanged
from mirror.hosting.damaged_records import has_manifest
from mirror.hosting.deleting import Deleting
from mirror.hosting.parts import HostedParts
from mirror.hosting.placing import PlacedTag, Placing
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.oci.reference import Reference, Repo
from mirror.policy.events.changes import ChangeKind, HostedChange
from mirror.policy.hosted.push_checks import HostedRules, requirements
from mirror.policy.records import ManifestRecord, TagRecord
from mirror.ports import OWN_WORK, Announcement, Steps


@dataclass(frozen=True, slots=True)
class ManifestPut:
    """A manifest that a client pushes: under its digest or a tag (`reference`), and under more `tags`."""

    manifest: Manifest
    reference: Reference
    tags: tuple[str, ...] = ()

    @property
    def all_tags(self) -> tuple[str, ...]:
        """The tags that shall point to the manifest, each once."""
        named = () if isinstance(self.reference, Digest) else (self.reference,)
        return tuple(dict.fromkeys((*named, *self.tags)))


class Pushing:
    """Pushes of manifests into all hosted repositories."""

    def __init__(
        self,
        parts: HostedParts,
        placing: Placing,
        deleting: Deleting,
        *,
        repeated: Callable[[Manifest], None] = lambda manifest: None,
    ) -> None:
        """`repeated` is called, in any thread, with a manifest that was here already, under the same tags. Raises
        nothing.
        """
        self._parts = parts
        self._placing = placing
        self._deleting = deleting
        self._repeated = repeated

    def __repr__(self) -> str:
        return "<Pushing>"

    def put(
        self,
        repo: Repo,
        rules: HostedRules,
        put: ManifestPut,
        caller: str,
        *,
        may_overwrite: bool,
        steps: Steps = OWN_WORK,
    ) -> tuple[str, ...]:
        """Blocking: stores the manifest and its tags; all is durable on return. Returns the tags that were moved from
        another manifest.

        Raises `ManifestBlobUnknown`, `ManifestInvalid`, `QuotaExceeded`; `Denied` if a tag would move and the caller
        may not overwrite; `TagImmutable`; `ManifestUnknown` if the manifest was deleted meanwhile; `StaleRequest`;
        `StoreError`.
        """
        manifest, digest = put.manifest, put.manifest.digest
        self.check_tags(repo, put.all_tags, digest, may_overwrite=may_overwrite)
        children = requirements(manifest, sparse=rules.sparse_indexes).manifests
        self._placing.require_manifests(repo, children)
        announced = self._parts.events.begin(ChangeKind.PUSH, repo, lambda: self._describe(repo, put, caller))
        written: list[PlacedTag] = []
        try:
            with self._parts.noted(repo):
                self._store(repo, rules, put, children, caller, announced, written, steps, may_overwrite=may_overwrite)
            moved = {placed.record.tag: placed.moved_from for placed in written if placed.moved_from}
            announced.done(moved, {placed.record.tag: placed.record.generation for placed in written})
        finally:
            announced.end([placed.record.tag for placed in written])
        return tuple(moved)

    def _describe(self, repo: Repo, put: ManifestPut, caller: str) -> HostedChange:
        catalog, manifest = self._parts.catalog, put.manifest
        tags = {tag: catalog.get_tag(repo, tag) for tag in put.all_tags}
        return HostedChange(
            ChangeKind.PUSH,
            repo,
            caller,
            manifest.digest,
            put.all_tags,
            manifest.media_type,
            len(manifest.content),
            had=has_manifest(catalog, repo, manifest.digest),
            before={tag: record.digest for tag, record in tags.items() if record},
        )

    def check_tags(self, repo: Repo, tags: Iterable[str], digest: Digest, *, may_overwrite: bool) -> None:
        """Blocking: returns if the caller may let these tags point to a manifest. Raises `Denied`, `TagImmutable`,
        `StoreError`.
        """
        for tag in tags:
            self._placing.check_tag(repo, tag, digest, may_overwrite=may_overwrite)

    def _store(
        self,
        repo: Repo,
        rules: HostedRules,
        put: ManifestPut,
        children: Sequence[Digest],
        caller: str,
        announced: Announcement,
        written: list[PlacedTag],
        steps: Steps,
        *,
        may_overwrite: bool,
    ) -> None:
        """Adds the tags to `written` as they are."""
        manifest, digest, size = put.manifest, put.manifest.digest, len(put.manifest.content)
        deleted = None
        was_here = has_manifest(self._parts.catalog, repo, digest)
        if not was_here:
            deleted = self._deleting.drop_stale_tags(repo, digest)
        record = ManifestRecord(digest, manifest.media_type, size, self._parts.now())
        self._placing.put_manifest(
            repo, manifest, record, caller, children=children, sparse=rules.sparse_images, steps=steps
        )
        with announced.turn():
            for tag in put.all_tags:
                fresh = TagRecord(tag, digest, manifest.media_type, size, self._parts.now(), by=caller)
                written.append(self._placing.put_tag(repo, fresh, may_overwrite=may_overwrite, steps=steps))
        self._placing.check_still_there(repo, digest, written, children)
        if deleted is not None:
            with suppress(RecordChanged):
                self._parts.records.drop_deleted_manifest(repo, digest, expect=deleted.version)
        if was_here and all(placed.before == digest for placed in written):
            self._repeated(manifest)

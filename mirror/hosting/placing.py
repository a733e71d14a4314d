"""Gives a hosted repository a manifest and its tags, in the order that a crash and a collector may interrupt anywhere:

    links that the manifest needs ──> bytes ──> referrers entry ──> record of the manifest ──> the links again ──> tags
                                                                                                 └─ one has gone: the
                                                                                                    record is dropped

A collector drops a link only if no manifest named it in a walk that began after the link was queued. So either the walk
meets the record, or the second look meets the missing or queued link. A tag is written last, by compare-and-set. After
that the push looks for a deletion of its manifest: if there is one, it writes the record anew, so that the deletion
looks again, or finds the record gone, and then the tag goes as well.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from mirror.errors import (
    BlobUnknown,
    Denied,
    ManifestBlobUnknown,
    ManifestUnknown,
    RecordChanged,
    RecordDamaged,
    StoreError,
)
from mirror.graph.referrers import referrer_descriptor
from mirror.hosting.damaged_records import has_manifest, manifest_or_remade
from mirror.hosting.immutable_images import ImmutableImages
from mirror.hosting.links import TRIES, Links
from mirror.hosting.parts import HostedParts
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, Manifest
from mirror.oci.reference import Repo
from mirror.policy.access_rules import Action
from mirror.policy.history import AgeRule
from mirror.policy.hosted.push_checks import check_size, requirements, tag_action
from mirror.policy.hosted_records import next_generation
from mirror.policy.records import ManifestRecord, TagRecord
from mirror.ports import ABSENT, OWN_WORK, Steps, Version

_MAY_NOT_OVERWRITE: Final = "and the rules do not let you overwrite it"


@dataclass(frozen=True, slots=True)
class PlacedTag:
    """A tag that was written: its record and the version, and to what it pointed `before`; None: to nothing that the
    repository has.
    """

    record: TagRecord
    version: Version
    before: Digest | None

    @property
    def moved_from(self) -> Digest | None:
        """The other manifest to which it pointed; None if there was none."""
        return None if self.before == self.record.digest else self.before


class Placing:
    """Writes manifests and tags of hosted repositories. All calls block, and raise `StoreError` if a record cannot be
    read. Nothing is durable before `HostedParts.flush`.
    """

    def __init__(self, parts: HostedParts, links: Links) -> None:
        self._parts = parts
        self._links = links
        self._immutable = ImmutableImages(parts)

    def __repr__(self) -> str:
        return "<Placing>"

    # ----------------------------------------------------------------------------------------------------- manifests

    def put_manifest(
        self,
        repo: Repo,
        manifest: Manifest,
        record: ManifestRecord,
        caller: str,
        *,
        children: Sequence[Digest] = (),
        sparse: bool = False,
        steps: Steps = OWN_WORK,
    ) -> None:
        """Gives the repository a manifest. Of the manifests that it names, `children` must be there.

        Raises `ManifestBlobUnknown` if the repository has not all blobs that the manifest needs, for this caller, and
        it may not be `sparse`, or not all `children`; `ManifestInvalid` if it gives blobs other sizes than they have;
        `QuotaExceeded`; `StaleRequest`.
        """
        needed = requirements(manifest, sparse=True)
        for each in needed.embedded:
            self._put_embedded(repo, each)
        missing = self._keep_links(repo, needed.blobs, caller)
        if missing and not sparse:
            raise _unknown(repo, missing)
        self._parts.blobs.put(manifest.digest, manifest.content)
        self._parts.accounts.link(repo, manifest.digest, len(manifest.content))
        subject = manifest.subject.digest if manifest.subject else None
        if subject:
            self._parts.records.put_referrer(repo, subject, referrer_descriptor(manifest))
        is_new = not has_manifest(self._parts.catalog, repo, manifest.digest)
        version = self._parts.catalog.put_manifest(repo, record, expect=steps.expect(None))
        try:
            kept = [blob for blob in (*needed.blobs, *needed.embedded) if blob.digest not in missing]
            if lost := self._keep_links(repo, kept, caller):
                raise _unknown(repo, lost)
            # a collector that has dropped a child since looks for indexes that name it, and brings it back
            self.require_manifests(repo, children)
            # a collector may have queued the bytes before the record was written
            self._parts.blobs.put(manifest.digest, manifest.content)
        except BaseException:
            if is_new:
                with suppress(RecordChanged):
                    self._parts.catalog.drop_manifest(repo, manifest.digest, expect=version)
                    self._parts.accounts.unlink(repo, manifest.digest)
            raise
        if subject:
            # a collector may have dropped the entry while there was no record
            self._parts.records.put_referrer(repo, subject, referrer_descriptor(manifest))

    def _put_embedded(self, repo: Repo, blob: Descriptor) -> None:
        if blob.data is not None:
            self._parts.blobs.put(blob.digest, blob.data)
            self._links.make(repo, blob.digest, len(blob.data))

    def _keep_links(self, repo: Repo, blobs: Sequence[Descriptor], caller: str) -> list[Digest]:
        """Returns the digests of those that the repository does not have for this caller."""

        def keep(blob: Descriptor) -> bool:
            try:
                check_size(blob, self._links.keep(repo, blob.digest, caller).size)
            except BlobUnknown:
                return False
            return True

        kept = [*self._parts.at_once(keep, blobs)]
        return [blob.digest for blob, is_kept in zip(blobs, kept, strict=True) if not is_kept]

    def require_manifests(self, repo: Repo, digests: Sequence[Digest]) -> None:
        """Raises `ManifestBlobUnknown` if the repository does not have all these manifests."""
        found = [*self._parts.at_once(lambda digest: has_manifest(self._parts.catalog, repo, digest), digests)]
        missing = [digest for digest, is_here in zip(digests, found, strict=True) if not is_here]
        if missing:
            raise _unknown(repo, missing)

    # ---------------------------------------------------------------------------------------------------------- tags

    def check_tag(self, repo: Repo, tag: str, digest: Digest, *, may_overwrite: bool) -> None:
        """Returns if the caller may let the tag point to a manifest. Raises `Denied`, `TagImmutable`."""
        was = self._parts.catalog.get_tag(repo, tag)
        self._check_move(repo, tag, digest, was, None if may_overwrite else _MAY_NOT_OVERWRITE)

    def put_tag(self, repo: Repo, fresh: TagRecord, *, may_overwrite: bool, steps: Steps = OWN_WORK) -> PlacedTag:
        """Lets a tag point to a manifest, by the caller `fresh.by`. The record is written anew even if the tag points
        there already: otherwise a deletion that runs meanwhile could drop it. Raises `Denied`, `TagImmutable`,
        `StaleRequest`.
        """
        return self._put_tag(repo, fresh, None if may_overwrite else _MAY_NOT_OVERWRITE, steps)

    def put_absent_tag(self, repo: Repo, fresh: TagRecord, steps: Steps = OWN_WORK) -> PlacedTag:
        """Like `put_tag`, for a tag that points to nothing else. Raises `Denied` if it does, or is frozen at something
        else.
        """
        return self._put_tag(repo, fresh, "and points to another image now", steps)

    def _put_tag(self, repo: Repo, fresh: TagRecord, refusal: str | None, steps: Steps) -> PlacedTag:
        for _ in range(TRIES):
            found = self._parts.catalog.tag(repo, fresh.tag)
            was = found.record if found else None
            now = self._check_move(repo, fresh.tag, fresh.digest, was, refusal)
            record = self._record(repo, fresh, was if now == fresh.digest else None, was)
            expected = steps.expect(found.version if found else ABSENT)
            with suppress(RecordChanged):
                version = self._parts.catalog.put_tag(repo, record, expect=expected)
                # not before: of two pushes that race, only the one that moved the tag may write the history
                self._parts.histories.record_move(repo, was, fresh, AgeRule())
                return PlacedTag(record, version, now)
        raise StoreError(f"the tag {repo}:{fresh.tag} was changed all the time")

    def _record(self, repo: Repo, fresh: TagRecord, same: TagRecord | None, was: TagRecord | None) -> TagRecord:
        """The record to write. `same` is the one before if the tag does not move, `was` the one before anyway."""
        if same is not None:
            return replace(fresh, moved_at=same.tagged_at, generation=same.generation, by=same.by)
        before = [was.generation] if was else self._generations(repo, fresh.tag)
        return replace(fresh, moved_at=fresh.fetched_at, generation=next_generation(fresh.fetched_at, *before))

    def _generations(self, repo: Repo, tag: str) -> list[int]:
        """What is known of earlier generations of a tag that is absent."""
        before = [next_generation(seen.last_seen) for seen in self._parts.catalog.get_history(repo, tag)[-1:]]
        # a damaged record says nothing; the clock will have gone on
        with suppress(RecordDamaged):
            if deleted := self._parts.records.deleted_tag(repo, tag):
                before.append(deleted.record.generation)
        return before

    def _check_move(
        self, repo: Repo, tag: str, digest: Digest, was: TagRecord | None, refusal: str | None
    ) -> Digest | None:
        """Returns what the tag points to; None if to nothing that the repository has. Raises `Denied`, `TagImmutable`
        if it may not point to `digest`. `refusal` says why a tag may not be moved that may otherwise; None: it may.
        """
        self.check_freeze(repo, tag, digest)
        now = was.digest if was and has_manifest(self._parts.catalog, repo, was.digest) else None
        moves = tag_action(digest, now) is Action.OVERWRITE
        if now is not None and moves:
            self._immutable.check_move(repo, tag, now)
        elif now is None and was is not None and was.digest != digest:
            self._immutable.check_stale(repo, tag, was.digest)
        if moves and refusal:
            raise Denied(f"the tag {repo}:{tag} exists, {refusal}")
        return now

    def check_freeze(self, repo: Repo, tag: str, digest: Digest | None) -> None:
        """Returns if the tag is not frozen, or frozen at this digest. Raises `Denied`."""
        freeze = self._parts.histories.frozen(repo, tag)
        if freeze is not None and freeze.digest != digest:
            raise Denied(f"the tag {repo}:{tag} is frozen at {freeze.digest}; `mirror unfreeze` ends that")

    def check_still_there(
        self,
        repo: Repo,
        digest: Digest,
        tags: Sequence[PlacedTag],
        children: Collection[Digest] = (),
        *,
        anew: bool = False,
    ) -> None:
        """To be called after these tags were written: drops them if the manifest was deleted meanwhile, or, if one of
        them is immutable and the manifest has `children` that must be there, one that it names, however deep. Raises
        `ManifestUnknown` or `ManifestBlobUnknown` then, and `StoreError`.

        If a deletion of one of them is under way, or if `anew`, the manifest's record is written anew.
        """
        records = [placed.record for placed in tags]
        is_immutable = self._immutable.any_of(repo, (record.tag for record in records))
        needed = self._immutable.family(repo, records[0]) if is_immutable else (digest,)
        gone = [each for each in needed if not self._confirm(repo, each, anew=anew)]
        # without children, what the manifest names may be missing
        if not gone or not (children or digest in gone):
            return
        for placed in tags:
            with suppress(RecordChanged):
                self._parts.catalog.drop_tag(repo, placed.record.tag, expect=placed.version)
        if digest in gone:
            raise ManifestUnknown(f"{repo}@{digest} was deleted while it was pushed")
        raise _unknown(repo, gone)

    def _confirm(self, repo: Repo, digest: Digest, *, anew: bool) -> bool:
        """True if the repository has the manifest, and no deletion that has not met the tags drops it any more."""
        for _ in range(TRIES):
            if not anew and not self._is_marked(repo, digest):
                return has_manifest(self._parts.catalog, repo, digest)
            found = manifest_or_remade(self._parts, repo, digest)
            if found is None:
                return False
            another = replace(found.record, nonce=found.record.nonce + 1)
            with suppress(RecordChanged):
                self._parts.catalog.put_manifest(repo, another, expect=found.version)
                return True
        raise StoreError(f"the manifest {repo}@{digest} was changed all the time")

    def _is_marked(self, repo: Repo, digest: Digest) -> bool:
        """True if there is a record of a deletion of the manifest, which may be under way."""
        try:
            return self._parts.records.deleted_manifest(repo, digest) is not None
        except RecordDamaged:
            return True


def _unknown(repo: Repo, digests: Sequence[Digest]) -> ManifestBlobUnknown:
    names = ", ".join(str(digest) for digest in digests[:5])
    more = f" and {len(digests) - 5} more" if len(digests) > 5 else ""
    return ManifestBlobUnknown(f"{repo} does not have {names}{more}, which the manifest names", [*map(str, digests)])

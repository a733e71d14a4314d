"""What the records of a hosted repository say about a change that may have been interrupted."""

from __future__ import annotations

from collections.abc import Collection

from mirror.errors import RecordDamaged
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.events.changes import ChangeKind, HostedChange, SeenChange, seen_tags
from mirror.policy.hosted_records import LinkState
from mirror.policy.records import TagRecord
from mirror.ports import BlobLinks, Catalog, Version, Versioned


def look(
    catalog: Catalog, links: BlobLinks, change: HostedChange, written: Collection[str] | None = None
) -> SeenChange:
    """Blocking: what of the change is there. `written` as in `seen_tags`. A damaged record of a tag points to nothing.
    Raises `StoreError`.
    """
    repo, digest = change.repo, change.digest
    if change.kind is ChangeKind.DELETE_TAG or digest is None:
        return _deleted_tag(catalog, change)
    if change.kind is ChangeKind.MOUNT:
        link = links.link(repo, digest)
        return SeenChange(link is not None and link.record.state is LinkState.LINKED)
    if change.kind is ChangeKind.DELETE:
        return _deleted_manifest(catalog, change, digest)
    found = {tag: _tag(catalog, repo, tag) for tag in change.tags}
    now = {tag: each.record.digest if each else None for tag, each in found.items()}
    moved, certain = seen_tags(change, now, written)
    generations = {
        tag: each.record.generation for tag, each in found.items() if each is not None and each.record.digest == digest
    }
    return SeenChange(_has_manifest(catalog, repo, digest), moved, certain, generations)


def _deleted_tag(catalog: Catalog, change: HostedChange) -> SeenChange:
    tag = _tag(catalog, change.repo, change.tags[0])
    if tag is None or not _has_manifest(catalog, change.repo, tag.record.digest):
        return SeenChange(False)
    return SeenChange(True, change.tags) if _is_same(tag.version, change) else SeenChange(False, certain=False)


def _deleted_manifest(catalog: Catalog, change: HostedChange, digest: Digest) -> SeenChange:
    try:
        found = catalog.manifest(change.repo, digest)
    except RecordDamaged:
        return SeenChange(True)
    if found is None:
        return SeenChange(False)
    return SeenChange(True) if _is_same(found.version, change) else SeenChange(False, certain=False)


def _is_same(version: Version, change: HostedChange) -> bool:
    """Whether the record is still there that was to be deleted. One of another version was written before the deletion
    or after it.
    """
    return not change.version or str(version) == change.version


def _tag(catalog: Catalog, repo: Repo, tag: str) -> Versioned[TagRecord] | None:
    try:
        return catalog.tag(repo, tag)
    except RecordDamaged:
        return None


def _has_manifest(catalog: Catalog, repo: Repo, digest: Digest) -> bool:
    try:
        return catalog.get_manifest(repo, digest) is not None
    except RecordDamaged:
        return True

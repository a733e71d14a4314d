"""Records of hosted repositories that exist but cannot be parsed: what can still be said without them.

    manifest record      its name says which manifest the repository has; the bytes, which match their digest, say the
                         rest. It is as good as a sound one, and a push or a deletion replaces it.
    deletion record      the same, except that nobody can say which tags the manifest had, nor since when it is deleted
    link                 it may be a right to the blob, or the mark that a client has deleted it. For a pusher, it is no
                         right: a client that uploads the blob, or mounts it by name, replaces it. For anybody else, it
                         is an error.
    tag, deleted tag     nobody can say what it points to: it stays until somebody deletes it
    referrers entry      the manifest that it is about says the same

A record that the disk cannot read now is something else: it raises `StoreError`, and nothing is decided without it.
"""

from __future__ import annotations

from contextlib import suppress

from mirror.errors import BlobDamaged, RecordDamaged
from mirror.graph.manifests import manifest_of_bytes
from mirror.hosting.parts import HostedParts, PulledParts
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST, Manifest
from mirror.oci.reference import Repo
from mirror.policy.hosted_records import DeletedManifest
from mirror.policy.records import ManifestRecord
from mirror.ports import Deletions, ManifestRecords, Version, Versioned


def has_manifest(catalog: ManifestRecords, repo: Repo, digest: Digest) -> bool:
    """Blocking: True if the repository has a record of the manifest, also a damaged one. Raises `StoreError`."""
    try:
        return catalog.get_manifest(repo, digest) is not None
    except RecordDamaged:
        return True


def manifest_or_remade(
    parts: HostedParts | PulledParts, repo: Repo, digest: Digest
) -> Versioned[ManifestRecord] | None:
    """Blocking: returns the record of a manifest; in place of a damaged one, a record made from the manifest's bytes,
    with the version of the damaged one. Its time is now. Raises `StoreError`.

    Without the bytes the size is 0: the manifest cannot be pulled then, only deleted or pushed.
    """
    try:
        return parts.catalog.manifest(repo, digest)
    except RecordDamaged as damaged:
        return Versioned(_remade(parts, digest), Version(damaged.version))


def deletion_or_remade(parts: HostedParts, repo: Repo, digest: Digest) -> Versioned[DeletedManifest] | None:
    """Blocking: like `manifest_or_remade`, for a deleted manifest. A record that is made has no tags."""
    try:
        return parts.records.deleted_manifest(repo, digest)
    except RecordDamaged as damaged:
        record = DeletedManifest.of(_remade(parts, digest), parts.now(), "")
        return Versioned(record, Version(damaged.version))


def damaged_deleted_tag(records: Deletions, repo: Repo, tag: str) -> Version | None:
    """Blocking: returns the version of the record of a deleted tag if it is damaged; None if it is sound or absent.
    Raises `StoreError`.
    """
    try:
        records.deleted_tag(repo, tag)
    except RecordDamaged as damaged:
        return Version(damaged.version)
    return None


def _remade(parts: HostedParts | PulledParts, digest: Digest) -> ManifestRecord:
    manifest: Manifest | None = None
    # bytes that do not match their digest say nothing
    with suppress(BlobDamaged):
        manifest = manifest_of_bytes(parts.contents, digest)
    if manifest is None:
        return ManifestRecord(digest, OCI_MANIFEST, 0, parts.now())
    return ManifestRecord(digest, manifest.media_type, len(manifest.content), parts.now())

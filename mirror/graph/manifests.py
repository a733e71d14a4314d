"""Stored manifests: the one place that reads them back.

    record of the repository ── there is none ───────────────────────────> None
       │                     ├─ cannot be read at this moment ───────────> StoreError
       │                     └─ makes no sense ──────────────────────────> RecordDamaged
       v
    bytes in the store ─────── there are none ───────────────────────────> None
       │                     ├─ cannot be read at this moment ───────────> StoreError, of EIO BlobUnreadable
       │                     └─ are not those of their digest ───────────> BlobDamaged
       v
    parsed ─────────────────── is no manifest, or larger than any may be ─> None
       └──────────────────────────────────────────────────────────────────> StoredManifest

So None means for certain that there is no such manifest. "Cannot be read" means that the manifest may be there and may
name anything: whoever deletes, evicts, grants, or decides what a tag answers lets the error pass. Damaged bytes are
known to be wrong: they name nothing, nobody can pull them, and the repository layer sets them aside (`stored.py`). They
raise all the same, so that a caller that can wait for a repair does.

What is only shown to people may be shown without what cannot be read; such a caller says so with `for_display`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from mirror import telemetry
from mirror.errors import BlobDamaged, BlobUnknown, RecordDamaged, StoreError
from mirror.oci.digest import Digest
from mirror.oci.manifest import LARGEST, Manifest, ManifestMalformed, read_manifest
from mirror.oci.reference import Repo
from mirror.policy.records import ManifestRecord
from mirror.ports import BlobStore, Catalog

__all__ = [
    "StoredManifest",
    "embedded_blob",
    "for_display",
    "has_blob",
    "manifest_of_bytes",
    "read_stored",
    "sound_manifest",
    "stored_manifest",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest whose bytes are here, and the record by which the repository has it."""

    record: ManifestRecord
    manifest: Manifest


def read_stored(store: BlobStore, catalog: Catalog, repo: Repo, digest: Digest) -> StoredManifest | None:
    """Blocking: the manifest with its record, as far as this repository has it.

    Raises `StoreError` if that cannot be told (`RecordDamaged`, `BlobUnreadable`, `BlobDamaged`; see above).
    """
    record = catalog.get_manifest(repo, digest)
    manifest = None if record is None else manifest_of_bytes(store, digest, record.media_type)
    return None if record is None or manifest is None else StoredManifest(record, manifest)


def stored_manifest(store: BlobStore, catalog: Catalog, repo: Repo, digest: Digest) -> Manifest | None:
    """Blocking: the manifest alone. Raises like `read_stored`."""
    stored = read_stored(store, catalog, repo, digest)
    return stored.manifest if stored else None


def sound_manifest(store: BlobStore, catalog: Catalog, repo: Repo, digest: Digest) -> Manifest | None:
    """Blocking: the same, and None for damaged bytes, which nobody can pull. Raises `StoreError` for all else."""
    try:
        return stored_manifest(store, catalog, repo, digest)
    except BlobDamaged:
        return None


def manifest_of_bytes(store: BlobStore, digest: Digest, media_type: str | None = None) -> Manifest | None:
    """Blocking: the manifest whose bytes are here for any repository. `media_type` is what it was served as.

    Raises `StoreError` if that cannot be told (`BlobUnreadable`, `BlobDamaged`).
    """
    try:
        # first its size: the digest may be that of a layer
        if store.stat(digest).size > LARGEST:
            return None
        return read_manifest(store.read(digest, LARGEST), media_type, algorithm=digest.algorithm)
    except (BlobUnknown, ManifestMalformed):
        return None


def embedded_blob(store: BlobStore, catalog: Catalog, repo: Repo, digest: Digest) -> bytes | None:
    """Blocking, a file or two for each manifest of the repository: the bytes of a blob that one of them embeds. Damaged
    manifests are passed over. Raises `StoreError`.
    """
    for each in catalog.manifest_digests(repo):
        try:
            manifest = sound_manifest(store, catalog, repo, each)
        except RecordDamaged:
            continue
        for blob in manifest.blobs if manifest else ():
            if blob.digest == digest and blob.data is not None:
                return blob.data
    return None


def has_blob(store: BlobStore, digest: Digest) -> bool:
    """Whether the blob's bytes are here, for any repository. Quick. Raises `StoreError` if that cannot be told."""
    try:
        store.stat(digest)
    except BlobUnknown:
        return False
    return True


def for_display(read: Callable[[], T | None], what: object) -> T | None:
    """What `read` returns, or None if it cannot be read; that is logged. `what` is being read, for the log.

    Only for lists and explanations: never to decide what goes, who may have something, or what a tag answers.
    """
    try:
        return read()
    except StoreError as error:
        telemetry.log.warning("left out what cannot be read", what=str(what), reason=str(error))
        return None

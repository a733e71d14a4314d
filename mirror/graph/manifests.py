"""Reads stored manifests back from the disk; no other module does.

    record of the repository ── does not exist ──────────────────────────> None
       │                     ├─ cannot be read at the moment ────────────> StoreError
       │                     └─ does not parse ──────────────────────────> RecordDamaged
       v
    bytes in the store ─────── do not exist ─────────────────────────────> None
       │                     ├─ cannot be read at the moment ────────────> StoreError; on EIO BlobUnreadable
       │                     └─ do not match their digest ───────────────> BlobDamaged
       v
    parsed ─────────────────── is no manifest, or exceeds the size limit ─> None
       └──────────────────────────────────────────────────────────────────> StoredManifest

So None means for certain that there is no such manifest. "Cannot be read" means that the manifest may exist and may
name anything: a caller that deletes, evicts, grants, or decides what a tag answers must not catch the error. Damaged
bytes are known to be wrong: they name nothing, no client can pull them, and `graph/damage.py` sets them aside. They
raise `BlobDamaged` all the same, so that a caller that can wait for a repair does so.

A caller that only shows manifests to people may leave out what cannot be read; it uses `for_display`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from mirror import telemetry
from mirror.errors import BlobDamaged, BlobUnknown, RecordDamaged, StoreError
from mirror.oci.digest import HEX_LENGTHS, Digest
from mirror.oci.manifest import LARGEST, Descriptor, Manifest, ManifestMalformed, read_manifest
from mirror.oci.reference import Reference, Repo
from mirror.policy.records import ManifestRecord, TagRecord
from mirror.ports import Blobs, Catalog

T = TypeVar("T")

#: How many hex digits `mentioned_in` keeps of a digest: enough to tell which manifests are worth reading.
_KEPT: Final = 16
_MENTION: Final = re.compile(b"(?:%s):([0-9a-f]{%d})" % ("|".join(HEX_LENGTHS).encode(), _KEPT))
#: A character of ASCII as JSON may write it instead (RFC 8259, section 7): digests consist of nothing else.
_ESCAPED: Final = re.compile(rb"\\u00([0-7][0-9a-fA-F])")


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest whose bytes are here, and the repository's record of it."""

    record: ManifestRecord
    manifest: Manifest


def read_stored(store: Blobs, catalog: Catalog, repo: Repo, digest: Digest) -> StoredManifest | None:
    """Blocking: returns the manifest with its record, or None if this repository does not have it.

    Raises `StoreError` if that is not certain (`RecordDamaged`, `BlobUnreadable`, `BlobDamaged`; see above).
    """
    record = catalog.get_manifest(repo, digest)
    manifest = None if record is None else manifest_of_bytes(store, digest, record.media_type)
    return None if record is None or manifest is None else StoredManifest(record, manifest)


def stored_manifest(store: Blobs, catalog: Catalog, repo: Repo, digest: Digest) -> Manifest | None:
    """Blocking: returns the manifest without its record, or None. Raises the same errors as `read_stored`."""
    stored = read_stored(store, catalog, repo, digest)
    return stored.manifest if stored else None


def sound_manifest(store: Blobs, catalog: Catalog, repo: Repo, digest: Digest) -> Manifest | None:
    """Blocking: like `stored_manifest`, but returns None if the bytes are damaged: no client can pull them. All other
    errors are raised as `StoreError`.
    """
    try:
        return stored_manifest(store, catalog, repo, digest)
    except BlobDamaged:
        return None


def stored_descriptor(catalog: Catalog, repo: Repo, reference: Reference) -> Descriptor | None:
    """Blocking: returns what a reference points to by the repository's records, or None if it has no such record.
    Freezes and the minimum age are not applied. Raises `StoreError`, `RecordDamaged`.
    """
    if isinstance(reference, Digest):
        record: ManifestRecord | TagRecord | None = catalog.get_manifest(repo, reference)
    else:
        record = catalog.get_tag(repo, reference)
    return record.descriptor if record else None


def here_since(catalog: Catalog, repo: Repo) -> Callable[[Digest], float | None]:
    """Returns a function for `choose`: when a manifest came into the repository (epoch seconds), None if it is not here
    or its record is damaged. Then the first sighting counts, which is no earlier. Blocking; raises `StoreError`.
    """

    def fetched_at(digest: Digest) -> float | None:
        try:
            record = catalog.get_manifest(repo, digest)
        except RecordDamaged:
            return None
        return record.fetched_at if record else None

    return fetched_at


def manifest_of_bytes(store: Blobs, digest: Digest, media_type: str | None = None) -> Manifest | None:
    """Blocking: returns the manifest if its bytes are in the store, for whichever repository; None if they are not or
    are no manifest. `media_type` is the media type under which it was served.

    Raises `StoreError` if its bytes cannot be read (`BlobUnreadable`) or are damaged (`BlobDamaged`).
    """
    try:
        # the size is checked before anything is read: the digest may be that of a layer
        if store.stat(digest).size > LARGEST:
            return None
        return read_manifest(store.read(digest, LARGEST), media_type, algorithm=digest.algorithm)
    except (BlobUnknown, ManifestMalformed):
        return None


def mentioned_in(store: Blobs, digest: Digest) -> bytes:
    """Blocking: returns the beginnings, as `beginning` gives them, of all digests in the bytes of a manifest. Costs one
    file and no parsing, a tenth of `read_stored`. The manifest may name any of these digests, and names no others.

    Raises `BlobUnknown`, `BlobDamaged` (also if there are more bytes than a manifest may have), `StoreError`.
    """
    content = store.read(digest, LARGEST)
    if rb"\u" in content:
        content = _ESCAPED.sub(lambda found: bytes((int(found[1], 16),)), content)
    return bytes.fromhex(b"".join(_MENTION.findall(content)).decode())


def beginning(digest: Digest) -> bytes:
    """The beginning of a digest, to be looked for in what `mentioned_in` returns."""
    return bytes.fromhex(digest.hex[:_KEPT])


def certain_manifest(store: Blobs, repo: Repo, digest: Digest, media_type: str | None = None) -> Manifest | None:
    """Blocking: like `manifest_of_bytes`, for a manifest that the repository has; None if its bytes are no manifest,
    and so name nothing. Raises `StoreError` also if there are no bytes: it may name anything.
    """
    manifest = manifest_of_bytes(store, digest, media_type)
    if manifest is None and not has_blob(store, digest):
        raise StoreError(f"the manifest {repo}@{digest} is missing")
    return manifest


def has_blob(store: Blobs, digest: Digest) -> bool:
    """True if the store has the blob, for whichever repository. Fast. Raises `StoreError` if that is not certain."""
    try:
        store.stat(digest)
    except BlobUnknown:
        return False
    return True


def for_display(read: Callable[[], T | None], what: object) -> T | None:
    """Returns what `read` returns, or None if it raises `StoreError`, which is logged. `what` is the thing that is
    read, for the log.

    Only for lists and explanations. It must never decide what is deleted, who may access content, or what a tag
    answers.
    """
    try:
        return read()
    except StoreError as error:
        telemetry.log.warning("unreadable record left out", what=str(what), reason=str(error))
        return None

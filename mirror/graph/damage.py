"""What a repository has on disk, looked at once more before it is believed: a damaged file is set aside, not served."""

from __future__ import annotations

from mirror import telemetry
from mirror.errors import BlobDamaged, BlobUnknown, BlobUnreadable, StoreError
from mirror.graph.manifests import StoredManifest, read_stored
from mirror.oci.digest import Digest, hasher
from mirror.oci.manifest import INDEXES
from mirror.oci.reference import Repo
from mirror.ports import BlobInfo, BlobReader, BlobStore, Catalog

__all__ = ["doubt", "hashes_to", "indexes_naming", "is_right", "manifest_to_serve", "set_aside"]


def manifest_to_serve(store: BlobStore, catalog: Catalog, repo: Repo, digest: Digest) -> StoredManifest | None:
    """Blocking: the manifest, if this repository has it and its bytes are right. One that is damaged is set aside, and
    absent from then on.

    Raises `StoreError` if it cannot be told whether it is here, `BlobUnreadable` if the disk does not give it.
    """
    try:
        return read_stored(store, catalog, repo, digest)
    except BlobDamaged:
        doubt(store, digest)
        return None


def indexes_naming(store: BlobStore, catalog: Catalog, repo: Repo, digest: Digest) -> list[Digest]:
    """Blocking: the indexes of this repository that are here and name this manifest. Raises `StoreError`."""
    found = []
    for record in catalog.manifests(repo):
        stored = manifest_to_serve(store, catalog, repo, record.digest) if record.media_type in INDEXES else None
        if stored and any(child.digest == digest for child in stored.manifest.manifests):
            found.append(record.digest)
    return found


def set_aside(store: BlobStore, digest: Digest) -> None:
    """Blocking: read all of a blob, and take it out of service if it is damaged or the disk does not give it. Raises
    `StoreError`.

    The caller has found it damaged, but others may have found that too, and fetched it again since. And a cable that
    was loose for a moment must not empty a sealed mirror.
    """
    try:
        info, reader = store.open(digest)
    except BlobUnknown:
        return
    except BlobUnreadable as error:
        _put_aside(store, digest, None, error)
        return
    try:
        if not hashes_to(reader, digest):
            _put_aside(store, digest, reader, BlobDamaged(f"its {info.size} bytes are not what the digest names"))
    except BlobUnreadable as error:
        _put_aside(store, digest, reader, error)
    finally:
        reader.close()


def _put_aside(store: BlobStore, digest: Digest, seen: BlobReader | None, error: BlobDamaged | BlobUnreadable) -> None:
    if store.set_aside(digest, seen):
        telemetry.log.error("damaged blob set aside", digest=str(digest), reason=str(error))


def doubt(store: BlobStore, digest: Digest) -> None:
    """Blocking: the same for a blob that failed while it was sent, or was found damaged, if that is possible."""
    try:
        set_aside(store, digest)
    except StoreError as error:
        telemetry.log.error("could not set a blob aside", digest=str(digest), reason=str(error))


def is_right(store: BlobStore, info: BlobInfo) -> bool:
    """Blocking: whether the blob has this size and the bytes that its digest names. False also if it is gone, and if
    the file that the caller opened had another size: it was replaced since.

    Raises `BlobUnreadable`, `StoreError`: that the disk does not tell says nothing about the blob.
    """
    try:
        found, reader = store.open(info.digest)
    except BlobUnknown:
        return False
    try:
        return found.size == info.size and hashes_to(reader, info.digest)
    finally:
        reader.close()


def hashes_to(reader: BlobReader, digest: Digest) -> bool:
    """Blocking: whether these are the bytes that the digest names. Raises `BlobUnreadable`, `StoreError`."""
    hashing = hasher(digest)
    offset = 0
    while block := reader.pread(1 << 20, offset):
        hashing.update(block)
        offset += len(block)
    return hashing.hexdigest() == digest.hex

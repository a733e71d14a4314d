"""What a repository has on disk, looked at once more before it is believed: a damaged file is set aside, not served."""

from __future__ import annotations

from mirror import telemetry
from mirror.errors import BlobDamaged, BlobUnknown, StoreError
from mirror.oci.digest import Digest, hasher
from mirror.oci.manifest import INDEXES, LARGEST, Manifest, ManifestMalformed, read_manifest
from mirror.oci.reference import Repo
from mirror.ports import BlobStore, Catalog

__all__ = ["indexes_naming", "is_right", "set_aside", "stored_manifest"]


def stored_manifest(store: BlobStore, catalog: Catalog, repo: Repo, digest: Digest) -> Manifest | None:
    """Blocking: the manifest, if this repository has it and its bytes are right. Raises `StoreError`."""
    record = catalog.get_manifest(repo, digest)
    content = _content(store, digest) if record else None
    if record is None or content is None:
        return None
    try:
        return read_manifest(content, record.media_type, algorithm=digest.algorithm)
    except ManifestMalformed:
        return None


def indexes_naming(store: BlobStore, catalog: Catalog, repo: Repo, digest: Digest) -> list[Digest]:
    """Blocking: the indexes of this repository that are here and name this manifest. Raises `StoreError`."""
    found = []
    for record in catalog.manifests(repo):
        manifest = stored_manifest(store, catalog, repo, record.digest) if record.media_type in INDEXES else None
        if manifest and any(child.digest == digest for child in manifest.manifests):
            found.append(record.digest)
    return found


def _content(store: BlobStore, digest: Digest) -> bytes | None:
    try:
        if store.stat(digest).size > LARGEST:
            # somebody asks for a layer as if it were a manifest
            return None
        return store.read(digest, LARGEST)
    except BlobUnknown:
        return None
    except StoreError as error:
        set_aside(store, digest, error)
        return None


def set_aside(store: BlobStore, digest: Digest, error: StoreError) -> None:
    """Blocking: take a blob out of service if it is damaged; what could only not be read stays. Raises `StoreError`."""
    telemetry.log.error("damaged blob set aside", digest=str(digest), reason=str(error))
    if isinstance(error, BlobDamaged):
        store.set_aside(digest)


def is_right(store: BlobStore, digest: Digest) -> bool:
    """Blocking: whether the blob's bytes are those that its digest names."""
    try:
        _, reader = store.open(digest)
    except (BlobUnknown, StoreError):
        return False
    try:
        hashing = hasher(digest)
        offset = 0
        while block := reader.pread(1 << 20, offset):
            hashing.update(block)
            offset += len(block)
    except StoreError:
        return False
    finally:
        reader.close()
    return hashing.hexdigest() == digest.hex

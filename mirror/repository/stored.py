"""What a repository has on disk, looked at once more before it is believed: a damaged file is set aside, not served."""

from __future__ import annotations

from collections.abc import Callable

from mirror import telemetry
from mirror.errors import BlobDamaged, BlobUnknown, BlobUnreadable, StoreError
from mirror.oci.digest import Digest, hasher
from mirror.oci.manifest import INDEXES, LARGEST, Manifest, ManifestMalformed, read_manifest
from mirror.oci.reference import Repo
from mirror.ports import BlobInfo, BlobStore, Catalog

__all__ = ["doubt", "indexes_naming", "is_right", "set_aside", "stored_manifest"]


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
    except (BlobDamaged, BlobUnreadable) as error:
        _if_possible(set_aside, store, digest, error)
        return None
    except StoreError as error:
        # this time it could not be looked at, for want of descriptors perhaps; that says nothing about it
        telemetry.log.warning("could not read a blob", digest=str(digest), reason=str(error))
        return None


def set_aside(store: BlobStore, digest: Digest, error: BlobDamaged | BlobUnreadable) -> None:
    """Blocking: take a blob that is damaged, or that the disk does not give, out of service. Raises `StoreError`.

    It is looked at once more: others may have met it too, and what has come in its place since is good.
    """
    try:
        if _hash(store, digest)[1] == digest.hex:
            return
    except BlobUnknown:
        return
    except BlobUnreadable as unreadable:
        error = unreadable
    _put_aside(store, digest, error)


def _put_aside(store: BlobStore, digest: Digest, error: BlobDamaged | BlobUnreadable) -> None:
    telemetry.log.error("damaged blob set aside", digest=str(digest), reason=str(error))
    store.set_aside(digest)


def _if_possible(
    put: Callable[[BlobStore, Digest, BlobDamaged | BlobUnreadable], None],
    store: BlobStore,
    digest: Digest,
    error: BlobDamaged | BlobUnreadable,
) -> None:
    try:
        put(store, digest, error)
    except StoreError as refused:
        telemetry.log.error("could not set a blob aside", digest=str(digest), reason=str(refused))


def doubt(store: BlobStore, digest: Digest) -> None:
    """Blocking: read all of a blob that failed while it was sent, and take it out of service if it is not right. One
    that can be read the second time stays: a cable that was loose for a moment must not empty a sealed mirror.
    """
    try:
        right = _hash(store, digest)[1] == digest.hex
    except BlobUnknown:
        return
    except BlobUnreadable as error:
        _if_possible(_put_aside, store, digest, error)
    except StoreError as error:
        telemetry.log.warning("could not read a blob", digest=str(digest), reason=str(error))
    else:
        if not right:
            _if_possible(_put_aside, store, digest, BlobDamaged(f"its bytes are not {digest}"))


def is_right(store: BlobStore, info: BlobInfo) -> bool:
    """Blocking: whether the blob has this size and the bytes that its digest names; False, too, where it is gone
    meanwhile. Who has opened a blob of another size has not opened the one that is right.

    Raises `BlobUnreadable`, `StoreError`: that the disk does not tell says nothing about the blob.
    """
    try:
        return _hash(store, info.digest) == (info.size, info.digest.hex)
    except BlobUnknown:
        return False


def _hash(store: BlobStore, digest: Digest) -> tuple[int, str]:
    """Blocking: how many bytes there are, and their hash in hexadecimal. Raises `BlobUnknown`, `BlobUnreadable`,
    `StoreError`.
    """
    _, reader = store.open(digest)
    try:
        hashing = hasher(digest)
        offset = 0
        while block := reader.pread(1 << 20, offset):
            hashing.update(block)
            offset += len(block)
    finally:
        reader.close()
    return offset, hashing.hexdigest()

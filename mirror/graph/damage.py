"""Checks of stored content against its digest: a damaged file is set aside (quarantined) instead of served."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from mirror import telemetry
from mirror.aio.threads import uninterrupted
from mirror.aio.token_bucket import TokenBucket
from mirror.errors import BlobDamaged, BlobUnknown, BlobUnreadable, StoreError
from mirror.graph.manifests import StoredManifest, manifest_of_bytes, read_stored
from mirror.graph.walk import damaged_may_be_missing, walk
from mirror.oci.digest import Digest, hasher
from mirror.oci.manifest import INDEXES, Manifest
from mirror.oci.reference import Repo
from mirror.ports import BlobInfo, BlobReader, Blobs, Catalog, HostedBlobs, RepairableBlobs, SupportsReadOnce

#: Bytes in one read.
_PIECE: Final = 1 << 20


def manifest_to_serve(store: RepairableBlobs, catalog: Catalog, repo: Repo, digest: Digest) -> StoredManifest | None:
    """Blocking: returns the manifest if this repository has it and its bytes match the digest, else None. A damaged
    manifest is set aside and is absent from then on.

    Raises `StoreError` if it is not certain whether the manifest is here, and `BlobUnreadable` if the disk cannot read
    its bytes.
    """
    try:
        return read_stored(store, catalog, repo, digest)
    except BlobDamaged:
        try_set_aside(store, digest)
        return None


def bytes_to_serve(store: RepairableBlobs, digest: Digest, media_type: str) -> Manifest | None:
    """Blocking: like `manifest_to_serve`, for a manifest whose record the caller has read, or made."""
    try:
        return manifest_of_bytes(store, digest, media_type)
    except BlobDamaged:
        try_set_aside(store, digest)
        return None


def indexes_naming(store: RepairableBlobs, catalog: Catalog, repo: Repo, digest: Digest) -> list[Digest]:
    """Blocking: returns the indexes of this repository that are here and name this manifest. Raises `StoreError`."""

    def read(repo: Repo, index: Digest) -> StoredManifest | None:
        record = catalog.get_manifest(repo, index)
        return manifest_to_serve(store, catalog, repo, index) if record and record.media_type in INDEXES else None

    return [
        index
        for _, index, stored in walk(catalog, read, damaged_may_be_missing, [repo])
        if any(child.digest == digest for child in stored.manifest.manifests)
    ]


def set_aside(store: RepairableBlobs, digest: Digest) -> None:
    """Blocking: reads the whole blob, and takes it out of service if it is damaged or cannot be read. Raises
    `StoreError`.

    The caller has already found the blob damaged. It is read again because another worker may have found that too and
    fetched the blob again since, and because a brief fault, such as a loose cable, must not empty a sealed mirror.
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


def _put_aside(
    store: RepairableBlobs, digest: Digest, seen: BlobReader | None, error: BlobDamaged | BlobUnreadable
) -> None:
    if store.set_aside(digest, seen):
        telemetry.log.error("damaged blob set aside", digest=str(digest), reason=str(error))
        telemetry.notice(telemetry.Notice.BLOB_DAMAGED, digest=str(digest), reason=str(error))


def try_set_aside(store: RepairableBlobs, digest: Digest) -> None:
    """Blocking: like `set_aside`, for a blob that could not be sent or was found damaged. A `StoreError` is logged
    instead of raised.
    """
    try:
        set_aside(store, digest)
    except StoreError as error:
        telemetry.log.error("damaged blob cannot be set aside", digest=str(digest), reason=str(error))


def restore_hosted(cache: Blobs, hosted: HostedBlobs) -> int:
    """Blocking: gives damaged hosted blobs their names again, if the cache has sound files of them, as after a pull.
    Returns how many are still damaged. Raises `StoreError` if they cannot be listed.
    """
    damaged = hosted.damaged()
    restored = 0
    for blob in damaged:
        # an error with one is no reason to leave out the others
        with suppress(BlobUnknown, StoreError):
            if is_sound(cache, cache.stat(blob.digest)):
                hosted.adopt(blob.digest)
                restored += 1
                telemetry.log.info("damaged blob repaired", digest=str(blob.digest))
    return len(damaged) - restored


def is_sound(store: Blobs, info: BlobInfo) -> bool:
    """Blocking: True if the stored blob has the size in `info` and its bytes match the digest. False also if the blob
    is gone, or if the file that the caller opened had another size: it was replaced since.

    Raises `BlobUnreadable` or `StoreError` if the disk cannot be read: that does not mean that the blob is damaged.
    """
    try:
        present, reader = store.open(info.digest)
    except BlobUnknown:
        return False
    try:
        return present.size == info.size and hashes_to(reader, info.digest)
    finally:
        reader.close()


def hashes_to(reader: BlobReader, digest: Digest) -> bool:
    """Blocking: True if the bytes of `reader` match the digest. Raises `BlobUnreadable`, `StoreError`."""
    hashing = hasher(digest)
    offset = 0
    while block := reader.pread(_PIECE, offset):
        hashing.update(block)
        offset += len(block)
    return hashing.hexdigest() == digest.hex


async def hashes_to_slowly(
    reader: BlobReader,
    digest: Digest,
    pace: TokenBucket,
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
    read: Callable[[int], None] = lambda _size: None,
) -> bool:
    """True if the bytes of `reader` match the digest; they are read in the background, at the rate of `pace`. `clock`
    counts seconds. `read` is called with the size of each piece in bytes. Raises `BlobUnreadable`, `StoreError`.
    """
    hashing, offset = hasher(digest), 0
    # to its end, even if cancelled: the file descriptor must not be closed, and perhaps reused, while the thread reads
    # from it
    while size := await uninterrupted(asyncio.to_thread(_hash_piece, reader, offset, hashing.update)):
        offset += size
        read(size)
        if (wait := pace.take(size, clock())) > 0:
            await sleep(wait)
    return hashing.hexdigest() == digest.hex


def _hash_piece(reader: BlobReader, offset: int, update: Callable[[bytes], None]) -> int:
    """Blocking: passes one piece of a blob to `update`. Returns its size in bytes; 0 at the end."""
    read = reader.pread_once if isinstance(reader, SupportsReadOnce) else reader.pread
    piece = read(_PIECE, offset)
    update(piece)
    return len(piece)

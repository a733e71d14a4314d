"""Reads blobs whose bytes are objects of a bucket: which object has them, and whether it is what it should be.

    source() ── the object that has the blob ──> open it ──┬─ its size is right ──> its bytes
       ^                                                   └─ gone, or another size ── twice ──> `lost`: out of service
       └──────── once more: another object may have replaced it ──────┘

A store may answer late or from an old copy. So nothing is put out of service that was found wrong only once.
"""

from __future__ import annotations

from typing import Final

from mirror.errors import BlobDamaged, BlobUnknown, BucketUnavailable, UpstreamError, UpstreamInvalid
from mirror.oci.digest import Digest, hasher
from mirror.ports import BlobObject, BlobObjects, Body, ObjectReader

#: How often a blob's object is looked up until one can be opened: it may be replaced by another one meanwhile.
_TRIES: Final = 4
#: How often an object is read whose body breaks off.
_READS: Final = 3
_BLOCK: Final = 1 << 20


def open_blob(
    bucket: ObjectReader, objects: BlobObjects, digest: Digest, start: int = 0, stop: int | None = None
) -> tuple[BlobObject, Body]:
    """Blocking: opens the object that has a blob, from `start` up to `stop` (None: to its end). Raises `BlobUnknown` if
    there certainly is none, `BlobDamaged` if the object was found gone or of another size, twice, and is out of service
    now; `StoreError`, `UpstreamError`.
    """
    suspect = None
    for _ in range(_TRIES):
        found = objects.source(digest)
        if found is None:
            raise BlobUnknown(f"the bucket does not have {digest}")
        opened = _open(bucket, found, start, stop)
        if not isinstance(opened, str):
            return found, opened
        if found == suspect and objects.lost(found, opened):
            raise BlobDamaged(f"{digest} is lost: {opened}")
        suspect = found
    raise _never_still(digest)


def read_blob(bucket: ObjectReader, objects: BlobObjects, digest: Digest, limit: int) -> bytes:
    """Blocking: returns the verified content of a small blob. Raises like `open_blob`, and `BlobDamaged` if it has more
    than `limit` bytes, or if it was read twice and did not match: then its object is out of service now.
    """
    suspect = None
    for _ in range(_TRIES):
        found, content = _read(bucket, objects, digest, limit)
        if digest.matches(content):
            return content
        reason = f"the {len(content)} bytes of its object {found.key} do not match the digest"
        if found == suspect and objects.lost(found, reason):
            raise BlobDamaged(f"{digest} is lost: {reason}")
        suspect = found
    raise _never_still(digest)


def _read(bucket: ObjectReader, objects: BlobObjects, digest: Digest, limit: int) -> tuple[BlobObject, bytes]:
    for more_reads in reversed(range(_READS)):
        found, body = open_blob(bucket, objects, digest)
        try:
            if body.size is not None and body.size > limit:
                raise BlobDamaged(f"{digest} has {body.size} bytes, more than the {limit} expected")
            buffer = memoryview(bytearray(limit + 1 if body.size is None else body.size + 1))
            content, received = bytearray(), body.readinto(buffer)
            while received and len(content) <= limit:
                content += buffer[:received]
                received = body.readinto(buffer)
            return found, bytes(content)
        except UpstreamError as error:
            if not more_reads:
                raise BucketUnavailable(f"reading {digest}: {error}") from error
        finally:
            body.abort()
    raise _never_still(digest)


def object_matches(bucket: ObjectReader, found: BlobObject) -> bool:
    """Blocking: reads an object whole; True if its bytes match the digest. Raises `StoreError`, `UpstreamError`."""
    body = _open(bucket, found)
    if isinstance(body, str):
        return False
    hashing, buffer = hasher(found.digest), memoryview(bytearray(_BLOCK))
    try:
        while received := body.readinto(buffer):
            hashing.update(buffer[:received])
    finally:
        body.abort()
    return hashing.hexdigest() == found.digest.hex


def _open(bucket: ObjectReader, found: BlobObject, start: int = 0, stop: int | None = None) -> Body | str:
    """The bytes of a blob's object from `start` up to `stop` (None: to its end), or why the object is not what it
    should be.
    """
    try:
        body = bucket.open(found.key, start, stop)
    except UpstreamInvalid:
        # it ends before `start`
        info = bucket.head(found.key)
        if info is not None and info.size == found.size:
            raise
        return f"its object {found.key} has {info.size} bytes, not {found.size}" if info else _gone(found)
    if body is None:
        return _gone(found)
    if found.size >= 0 and body.size not in (None, found.size):
        body.abort()
        return f"its object {found.key} has {body.size} bytes, not {found.size}"
    return body


def _gone(found: BlobObject) -> str:
    return f"its object {found.key} is gone"


def _never_still(digest: Digest) -> BucketUnavailable:
    return BucketUnavailable(f"the object of {digest} was replaced all the time")

"""All contents of a store that keeps hosted blobs in a bucket: what the disk has, and what the bucket has besides.

    on the disk ──────────────────────────────────────────────────────────> that file
    not there, or cannot be read ── in the bucket ──┬─ read() ──> verified, put on the disk
                                                    └─ open() ──> fetched whole onto the disk, verified
                                 └─ the bucket certainly has none ────────> `BlobUnknown`, or what the disk said

A file on the disk may be a cached blob or a copy of a hosted one: both are evicted. What is hosted, and therefore
cannot be absent by an error of the disk, is in the states of the bucket. While the bucket does not answer, nothing is
absent: every call raises `StoreError` then.

Threads that call this fetch themselves: they join no flight, which would need the event loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

from mirror import telemetry
from mirror.errors import BlobDamaged, BlobUnknown, BlobUnreadable, BucketUnavailable, StoreError, UpstreamError
from mirror.graph.blob_in_bucket import object_matches, open_blob, read_blob
from mirror.graph.damage import try_set_aside
from mirror.oci.digest import Digest
from mirror.ports import BlobInfo, BlobObject, BlobObjects, BlobReader, BlobStore, Ingest, ObjectReader

#: How often the bytes of a blob are asked for whose object breaks off without a byte, or that come out wrong.
_TRIES: Final = 3
#: Seconds between two looks at a blob that another process fetches.
_LOOK: Final = 0.05


class TieredContents:
    """`RepairableBlobs` of the disk and of the bucket. May be used from any thread."""

    def __init__(
        self,
        cache: BlobStore,
        bucket: ObjectReader,
        objects: BlobObjects,
        *,
        stored: Callable[[BlobInfo], None] = lambda _: None,
        keeps: bool = True,
    ) -> None:
        """`objects` says what the bucket has, and asks it in every call. `stored` is called, in any thread, with each
        blob that was put on the disk. What is read is put there only if `keeps` is true.
        """
        self._cache = cache
        self._bucket = bucket
        self._objects = objects
        self._stored = stored
        self._keeps = keeps

    def __repr__(self) -> str:
        return f"<TieredContents {self._cache!r} {self._bucket!r}>"

    def passing(self) -> TieredContents:
        """Returns the same contents for one who reads much, and each blob once: nothing that is read stays on the
        disk.
        """
        return TieredContents(self._cache, self._bucket, self._objects, stored=self._stored, keeps=False)

    # ------------------------------------------------------------------------------------------------ reading

    def stat(self, digest: Digest) -> BlobInfo:
        try:
            return self._cache.stat(digest)
        except (BlobUnknown, StoreError) as error:
            found = self._objects.source(digest)
            if found is None:
                raise error.with_traceback(None) from None
        return BlobInfo(digest, found.size)

    def open(self, digest: Digest) -> tuple[BlobInfo, BlobReader]:
        for _ in range(_TRIES):
            try:
                return self._cache.open(digest)
            except (BlobUnknown, StoreError) as error:
                if isinstance(error, BlobUnreadable):
                    try_set_aside(self._cache, digest)
                if self._objects.source(digest) is None:
                    raise error.with_traceback(None) from None
            self._fetch(digest)
        # absent here says nothing of the bucket
        raise StoreError(f"{digest} is evicted as soon as it is fetched from the bucket, or cannot be read here")

    def read(self, digest: Digest, limit: int) -> bytes:
        try:
            return self._cache.read(digest, limit)
        except (BlobUnknown, StoreError) as error:
            if isinstance(error, (BlobDamaged, BlobUnreadable)):
                # examined again: perhaps it is only larger than the limit
                try_set_aside(self._cache, digest)
            if self._objects.source(digest) is None:
                raise error.with_traceback(None) from None
        try:
            content = read_blob(self._bucket, self._objects, digest, limit)
        except UpstreamError as error:
            raise _as_bucket_error(digest, error) from error
        self._keep(digest, content)
        return content

    def _keep(self, digest: Digest, content: bytes) -> None:
        if not self._keeps:
            return
        try:
            self._stored(self._cache.put(digest, content))
        except StoreError as error:
            telemetry.log.warning("no copy on the disk", digest=str(digest), reason=str(error))

    def walk(self) -> Iterable[BlobInfo]:
        """See `Blobs`: what is on the disk. What the bucket has is listed by nobody who reads contents."""
        return self._cache.walk()

    def set_aside(self, digest: Digest, seen: BlobReader | None) -> bool:
        """See `Repairs`: the file on the disk. An object of the bucket is put out of service by whoever reads it."""
        return self._cache.set_aside(digest, seen)

    # ----------------------------------------------------------------------------------------------- fetching

    def _fetch(self, digest: Digest) -> None:
        """Fetches a blob onto the disk, unless another process does. Raises `BlobUnknown`, `StoreError`."""
        while True:
            # nobody is sent these bytes before they are verified, so they belong to no registry
            ingest = self._cache.ingest(digest, "")
            try:
                if not ingest.try_lock():
                    time.sleep(_LOOK)
                elif self._has_copy(digest):
                    ingest.abort(keep=False)
                else:
                    self._fill(digest, ingest)
            finally:
                ingest.close()
            if self._has_copy(digest):
                return

    def _has_copy(self, digest: Digest) -> bool:
        try:
            self._cache.stat(digest)
        except BlobUnknown:
            return False
        return True

    def _fill(self, digest: Digest, ingest: Ingest) -> None:
        ingest.resume()
        for more_tries in reversed(range(_TRIES)):
            wrong = self._receive(digest, ingest)
            if wrong is None:
                break
            found, reason = wrong
            if not more_tries or (self._is_wrong(found) and self._objects.lost(found, reason)):
                ingest.abort(keep=False)
                raise BlobDamaged(f"{digest} arrives damaged: {reason}")
            # the first bytes may have been damaged on this disk
            ingest.restart()
        self._stored(ingest.commit())

    def _receive(self, digest: Digest, ingest: Ingest) -> tuple[BlobObject, str] | None:
        """Receives the rest of the blob, and verifies the whole. Returns the object that gave the last byte if it does
        not match, and what is wrong.
        """
        failures = 0
        while True:
            before = ingest.offset
            try:
                found, body = open_blob(self._bucket, self._objects, digest, before)
                try:
                    ingest.expect(body.size)
                    ingest.fill(body, lambda: None)
                    ingest.verify()
                except BlobDamaged as error:
                    return found, str(error)
                finally:
                    body.abort()
                return None
            except UpstreamError as error:
                failures = 0 if ingest.offset > before else failures + 1
                if failures == _TRIES:
                    raise _as_bucket_error(digest, error) from error

    def _is_wrong(self, found: BlobObject) -> bool:
        try:
            return not object_matches(self._bucket, found)
        except UpstreamError as error:
            raise _as_bucket_error(found.digest, error) from error


def _as_bucket_error(digest: Digest, error: UpstreamError) -> BucketUnavailable:
    return BucketUnavailable(f"reading {digest} from the bucket: {error}")

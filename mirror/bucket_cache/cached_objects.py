"""Which objects of the bucket have the bytes of cached blobs."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from mirror import telemetry
from mirror.bucket_cache.cached_keys import blob_key
from mirror.errors import IndexUnavailable
from mirror.oci.digest import Digest
from mirror.ports import BlobObject, BookedObject, Bucket, ObjectBook

#: The size, in the book, of an object whose bytes are wrong or gone, and which is kept all the same.
DAMAGED: Final = -1


class CachedObjects:
    """See `mirror.ports.BlobObjects`. May be used from any thread.

    An answer grants nothing: whoever asks knows already that the repository may serve the blob. An object that the book
    has may be gone: whoever reads it finds out, and goes on without it.

    If some repositories are sealed, an object that was found wrong stays: it may be the only copy, and the way to the
    mirror may be to blame. The book has it with `DAMAGED` instead of its size, so that the next import or pull of the
    blob writes it again.
    """

    def __init__(
        self,
        bucket: Bucket,
        book: ObjectBook,
        *,
        some_sealed: bool = False,
        others_write: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`others_write`: the book does not know all that is there, because other replicas write, too. `now` is in
        epoch seconds.
        """
        self._bucket = bucket
        self._book = book
        #: True if what is lost may have no other copy.
        self.some_sealed: Final = some_sealed
        self._others_write = others_write
        self._now = now

    def __repr__(self) -> str:
        return f"<CachedObjects {self._bucket!r}>"

    def source(self, digest: Digest) -> BlobObject | None:
        """See `BlobObjects`. Counts as a use. The bucket is asked only if the book may not be complete. A power cut, or
        a listing that was late, may have cost it some objects: where repositories are sealed, it is not believed.
        """
        key, is_complete = blob_key(digest), False
        with suppress(IndexUnavailable):
            size = self._book.find(digest)
            if size is not None:
                self._book.use({digest: self._now()})
                return BlobObject(digest, key, size)
            is_believed = not (self._others_write or self.some_sealed)
            is_complete = is_believed and self._book.completed_at() is not None
        return None if is_complete else self.certain(digest)

    def certain(self, digest: Digest) -> BlobObject | None:
        """Like `source`, but asks the bucket in every call. Raises `StoreError`."""
        key = blob_key(digest)
        found = self._bucket.head(key)
        with suppress(IndexUnavailable):
            if found is None:
                self._book.drop([digest])
            else:
                self._book.put([BookedObject(digest, found.size, self._now())])
        return None if found is None else BlobObject(digest, key, found.size)

    def lost(self, found: BlobObject, reason: str) -> bool:
        """See `BlobObjects`. The object is deleted: the next pull brings the blob again. If some repositories are
        sealed, it stays, and the operator decides.
        """
        if self.some_sealed:
            telemetry.log.error("cached object of bucket damaged", digest=str(found.digest), reason=reason)
            with suppress(IndexUnavailable):
                self._book.put([BookedObject(found.digest, DAMAGED, self._now())])
            return True
        telemetry.log.warning("cached object of bucket dropped", digest=str(found.digest), reason=reason)
        with suppress(IndexUnavailable):
            self._book.drop([found.digest])
        self._bucket.delete([found.key])
        return True


class CertainObjects:
    """`BlobObjects` for clients that are sent to the bucket, and could not go on without the object."""

    def __init__(self, objects: CachedObjects) -> None:
        self._objects = objects
        self.source = objects.certain
        self.lost = objects.lost

    def __repr__(self) -> str:
        return f"<CertainObjects {self._objects!r}>"

"""What a bucket has, if it is one blob."""

from __future__ import annotations

from mirror.errors import StoreError
from mirror.oci.digest import Digest
from mirror.ports import BlobObject

KEY = "blobs/object"


class OneObject:
    """`BlobObjects` that know one object, until it is lost."""

    def __init__(self, digest: Digest, size: int) -> None:
        self.found: BlobObject | None = BlobObject(digest, KEY, size)
        #: Why objects were lost.
        self.reasons: list[str] = []
        #: What `source` raises.
        self.trouble: StoreError | None = None

    def source(self, digest: Digest) -> BlobObject | None:
        """As the port."""
        if self.trouble:
            raise self.trouble
        return self.found if self.found and self.found.digest == digest else None

    def lost(self, found: BlobObject, reason: str) -> bool:
        """As the port."""
        if found != self.found:
            return False
        self.found = None
        self.reasons.append(reason)
        return True

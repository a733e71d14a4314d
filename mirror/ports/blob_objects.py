"""Which objects of a bucket have the bytes of blobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mirror.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class BlobObject:
    """An object of a bucket that has the bytes of a blob, `size` of them; -1 if that is not known."""

    digest: Digest
    key: str
    size: int


class BlobObjects(Protocol):
    """The objects of hosted blobs, or those of cached ones. All calls block.

    present ── source() ──> read ── gone, or wrong bytes ── lost() ──> none, until the bytes are put again
    """

    def source(self, digest: Digest) -> BlobObject | None:
        """The object to read now; None if there certainly is none. Raises `StoreError` if that cannot be said."""

    def lost(self, found: BlobObject, reason: str) -> bool:
        """Take an object out of service that the bucket does not have any more, or whose bytes do not match: the caller
        has looked twice. False if another object has replaced it since. Repeatable. Raises `StoreError`.
        """

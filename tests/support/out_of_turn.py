"""What is here of a growing blob out of turn, as a look at its files says."""

from __future__ import annotations

from mirror.oci.digest import Digest
from mirror.ports import BlobStore


def bytes_out_of_turn(store: BlobStore, digest: Digest, registry: str = "docker.io") -> int:
    """The bytes of the blob that came out of turn; 0 if there are none, or no longer any."""
    spans = store.spans(digest, registry, None)
    if spans is None:
        return 0
    try:
        return spans.count()
    finally:
        spans.close()

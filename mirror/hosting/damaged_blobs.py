"""Damaged hosted blobs, with the repositories that lack them: a push of the same content repairs each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.ports import HostedBlobs


@dataclass(frozen=True, slots=True)
class DamagedBlob:
    """A blob of `size` bytes that was found damaged at `at` (epoch seconds), and the repositories that have it."""

    digest: Digest
    size: int
    at: float
    repositories: tuple[Repo, ...]


class DamagedBlobs:
    """The damaged hosted blobs that wait to be repaired. All calls block, and raise `StoreError`."""

    def __init__(self, blobs: HostedBlobs, holders: Callable[[Digest], tuple[Repo, ...]]) -> None:
        """`holders` returns the hosted repositories that have a blob; it reads a few files for each repository."""
        self._blobs = blobs
        self._holders = holders

    def __repr__(self) -> str:
        return "<DamagedBlobs>"

    def count(self) -> int:
        """How many there are. Quick."""
        return len(self._blobs.damaged())

    def first(self, most: int) -> Sequence[DamagedBlob]:
        """Up to `most` of them, in the order of their digests. Those that no repository has are collected."""
        found = sorted(self._blobs.damaged(), key=lambda blob: blob.digest)[:most]
        return [DamagedBlob(each.digest, each.size, each.at, self._holders(each.digest)) for each in found]

"""Opens the blobs of hosted content that are in a bucket, and all contents of such a store."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from mirror.app.stored_records import BucketUse
from mirror.graph.tiered_contents import TieredContents
from mirror.ports import BlobInfo
from mirror.store.local.blobs import LocalStore
from mirror.store.objects.collected_keys import CollectedKeys
from mirror.store.objects.copied_files import CopiedFiles
from mirror.store.objects.digest_locks import DigestLocks
from mirror.store.objects.hosted_blobs import HostedObjects, PulledObjects
from mirror.store.objects.hosted_sweep import HostedSweep
from mirror.store.objects.local_copies import LocalCopies
from mirror.store.objects.record_tree import Reads
from mirror.store.objects.state_records import BlobStates, StateViews


class AddedCopies:
    """Passes on which blobs threads have put on the disk. Nobody is informed until the index is open."""

    def __init__(self) -> None:
        self.listener: Callable[[BlobInfo], None] = lambda _: None

    def __repr__(self) -> str:
        return f"<AddedCopies to {self.listener!r}>"

    def __call__(self, info: BlobInfo) -> None:
        self.listener(info)


@dataclass(frozen=True, slots=True)
class BucketBlobs:
    """The hosted blobs of a bucket. `files` are what the disk has of them, and the cache. `pulled` is for pulls: states
    are remembered while the bucket is down.
    """

    use: BucketUse
    files: CopiedFiles
    hosted: HostedObjects
    pulled: PulledObjects
    sweep: HostedSweep
    added: AddedCopies

    def contents(self) -> TieredContents:
        """All contents. The bucket is asked for what the disk does not have."""
        return TieredContents(self.files, self.use.bucket, self.hosted, stored=self.added)

    def shown(self) -> TieredContents:
        """All contents, for display and export: states are remembered, and nothing that is read stays on the disk."""
        remembered = PulledObjects(BlobStates(self.use.tree.view(Reads.REMEMBERED)), self.hosted)
        return TieredContents(self.files, self.use.bucket, remembered, stored=self.added, keeps=False)


def open_bucket_blobs(use: BucketUse, store: LocalStore, *, life: float = 0.0) -> BucketBlobs:
    """The hosted blobs of this bucket. `life` is how many seconds URLs are valid by which others read objects."""
    bucket, tree, added, files = use.bucket, use.tree, AddedCopies(), CopiedFiles(store)
    states = StateViews(BlobStates(tree), BlobStates(tree.view(Reads.REMEMBERED)))
    hosted = HostedObjects(
        bucket,
        states,
        LocalCopies(files, added),
        DigestLocks(store.layout, "push"),
        CollectedKeys(bucket, life=life),
    )
    pulled = PulledObjects(BlobStates(tree.view(Reads.LENIENT)), hosted)
    sweep = HostedSweep(bucket, states, hosted.lost, now=time.time, life=life)
    return BucketBlobs(use, files, hosted, pulled, sweep, added)

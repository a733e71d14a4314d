"""A process that hosts images in a bucket, without listeners: the real pushes, deletions, collection and sweep over the
real records and blobs, and what a client sees of them.

    process = HostingProcess(root, bucket, time)          # those with one `root` are on one machine
    process.push_image(image, "v1")
    process.pulled("v1")                                  # the image, read whole; None if there is no such tag
    process.tidy()                                        # rounds of collection and a sweep, until nothing waits
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mirror.collection.collection_report import CollectionReport
from mirror.collection.collection_round import collection_round
from mirror.collection.grace_clock import GraceClock
from mirror.errors import BucketUnavailable, MirrorError
from mirror.graph.tiered_contents import TieredContents
from mirror.hosting.deleting import Deleting
from mirror.hosting.links import Links
from mirror.hosting.parts import HostedParts
from mirror.hosting.placing import Placing
from mirror.hosting.pushing import ManifestPut, Pushing
from mirror.index.journal_memory import SqliteJournalMemory
from mirror.index.record_memory import SqliteRecordMemory
from mirror.intake.tag_history import TagHistories, TamperProofClock
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST, read_manifest
from mirror.oci.reference import Repo
from mirror.policy.hosted.collection import CollectionRules, RegistryRules
from mirror.policy.hosted.immutability import ImmutableTags
from mirror.policy.hosted.push_checks import HostedRules
from mirror.policy.hosted_records import LinkState
from mirror.ports import StoredObject
from mirror.store.hosted.upload_files import LocalUploads
from mirror.store.local.change_files import ChangeFiles
from mirror.store.local.layout import Layout
from mirror.store.objects.collected_keys import CollectedKeys
from mirror.store.objects.copied_files import CacheBesideCopies, CopiedFiles
from mirror.store.objects.digest_locks import DigestLocks
from mirror.store.objects.hosted_blobs import HostedObjects
from mirror.store.objects.hosted_sweep import HostedSweep
from mirror.store.objects.local_copies import LocalCopies
from mirror.store.objects.record_journals import BucketJournals
from mirror.store.objects.record_listing import RecordListing
from mirror.store.objects.record_tree import BucketTree, Reads
from mirror.store.objects.state_records import BlobStates, StateViews
from mirror.store.records.record_catalog import RecordCatalog
from mirror.store.records.repository_records import RepositoryRecords
from tests.support.hosted_world import Limited, MemoryFreezes
from tests.support.stepping_bucket import SteppingBucket
from tests.support.uploads_suite import opened, pushed

APP: Final = Repo("corp", "team/app")
CLIENT: Final = "user:a"
#: Seconds.
_GRACE: Final = 100.0
_KEEP: Final = 700.0
_DAY: Final = 86400.0
_LIMIT: Final = 1 << 20


class SiteTime:
    """The time of all machines and of the store. No two readings are the same."""

    def __init__(self, bucket: SteppingBucket) -> None:
        self._bucket = bucket
        self.passed = 0.0

    def steady(self) -> float:
        """Seconds of a clock that cannot be set."""
        self.passes(1e-4)
        return self.passed

    def wall(self) -> float:
        """Epoch seconds."""
        return 1_000_000_000.0 + self.steady()

    def passes(self, seconds: float) -> None:
        """Time goes by everywhere."""
        self.passed += seconds
        self._bucket.time += seconds


@dataclass(frozen=True)
class Image:
    """An image of a few layers."""

    layers: tuple[bytes, ...]

    @property
    def content(self) -> bytes:
        """The bytes of its manifest."""
        kind = "application/vnd.oci.image.layer.v1.tar"
        layers = [{"mediaType": kind, "digest": str(Digest.of(each)), "size": len(each)} for each in self.layers]
        return json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": layers}).encode()

    @property
    def digest(self) -> Digest:
        """That of its manifest."""
        return Digest.of(self.content)


class HostingProcess:
    """See above. `boot` names the boot of its machine; one with a `replica` is that replica of a cluster."""

    def __init__(
        self, root: Path, bucket: SteppingBucket, time: SiteTime, *, boot: str = "boot", replica: str = ""
    ) -> None:
        self.bucket = bucket
        self.time = time
        cache = CacheBesideCopies(Layout(root))
        self.files = CopiedFiles(cache)
        self.layout: Layout = cache.layout
        self.memory = SqliteRecordMemory(root / "bucket.sqlite", boot, steady=time.steady)
        self.journals: BucketJournals | None = None
        if replica:
            self.journals = BucketJournals(
                bucket,
                SqliteJournalMemory(root / "bucket.sqlite", boot, replica, steady=time.steady),
                replica,
                lambda _: None,
                ends=False,
                steady=time.steady,
                pause=lambda _: None,
            )
        self.tree = BucketTree(bucket, self.memory, journals=self.journals)
        self.states = BlobStates(self.tree)
        views = StateViews(self.states, BlobStates(self.tree.view(Reads.REMEMBERED)))
        # whoever waits for a process that cannot go on gives up at once
        locks = DigestLocks(self.layout, "push", clock=time.steady, sleep=time.passes)
        self.blobs = HostedObjects(
            bucket,
            views,
            LocalCopies(self.files),
            locks,
            CollectedKeys(bucket, clock=time.steady),
            now=time.wall,
            clock=time.steady,
        )
        self.uploads = LocalUploads(self.layout, self.blobs)
        self.catalog = RecordCatalog(self.tree)
        self.records = RepositoryRecords(self.tree, ChangeFiles(self.layout))
        self.sweeping = HostedSweep(bucket, views, self.blobs.lost, now=time.wall)
        self.parts = HostedParts(
            TieredContents(self.files, bucket, self.blobs, keeps=False),
            self.blobs,
            self.catalog,
            self.records,
            TagHistories(self.catalog, MemoryFreezes(), TamperProofClock(time.wall, time.steady)),
            Limited(),
            ImmutableTags(),
            _GRACE,
        )
        self.links = Links(self.parts)
        placing = Placing(self.parts, self.links)
        self.deleting = Deleting(self.parts, self.links, placing)
        self.pushing = Pushing(self.parts, placing, self.deleting)
        self._clock = GraceClock(time.wall, time.steady, _KEEP)
        self._rules = CollectionRules(_GRACE, {"corp": RegistryRules(_KEEP, False)}, ("docker.io",))

    def list_all(self) -> None:
        """As each server does when it starts. Raises `StoreError`."""
        begun = self.tree.begin_names()
        for _ in RecordListing(self.bucket, self.memory).steps():
            pass
        self.tree.end_names(begun)

    def close(self) -> None:
        """Let go of the files."""
        self.memory.close()

    # ----------------------------------------------------------------------------------------------- what clients do

    def upload(self, content: bytes) -> None:
        """A blob, by an upload session."""
        file = opened(self.uploads, pushed(self.uploads, content))
        try:
            info = file.publish(Digest.of(content))
        finally:
            file.close()
        self.links.make(APP, info.digest, info.size)
        self.parts.settle(APP)

    def put(self, image: Image, tag: str) -> None:
        """A manifest, whose layers are here."""
        put = ManifestPut(read_manifest(image.content), tag)
        self.pushing.put(APP, HostedRules(keep_deleted=_KEEP), put, CLIENT, may_overwrite=True)

    def push_image(self, image: Image, tag: str) -> None:
        """An image, with its layers."""
        for layer in image.layers:
            self.upload(layer)
        self.put(image, tag)

    def delete(self, image: Image, *, keep: bool = True) -> None:
        """A manifest with its tags."""
        self.deleting.delete_manifest(APP, image.digest, CLIENT, keep=keep)

    def delete_tag(self, tag: str) -> None:
        """A tag alone."""
        self.deleting.delete_tag(APP, tag, CLIENT, keep=True)

    def undelete(self, image: Image) -> None:
        """A manifest with its tags."""
        self.deleting.undelete_manifest(APP, image.digest, CLIENT)

    def delete_blob(self, content: bytes) -> None:
        """A blob that no manifest names."""
        self.deleting.delete_blob(APP, Digest.of(content), CLIENT)

    # --------------------------------------------------------------------------------------------- what clients see

    def has_image(self, image: Image) -> bool:
        """Whether the manifest can be pulled by its digest. Fails if not all of the image can."""
        if self.catalog.get_manifest(APP, image.digest) is None:
            return False
        assert self._bytes(image.digest) == image.content
        for layer in image.layers:
            assert self.has_blob(layer), "an image has lost a layer"
        return True

    def has_blob(self, content: bytes) -> bool:
        """Whether a blob can be pulled. Fails if its bytes are wrong, or gone while the repository has it."""
        link = self.links.find(APP, Digest.of(content))
        if link is None or link.state is not LinkState.LINKED:
            return False
        if self.blobs.source(Digest.of(content)) is None:
            # of an upload that died before it looked at the bytes again, for which its link stands
            return False
        assert self._bytes(Digest.of(content)) == content
        return True

    def _bytes(self, digest: Digest) -> bytes:
        """The bytes in the bucket, whatever the disk has."""
        found = self.blobs.source(digest)
        assert found is not None, f"{digest} is lost"
        stored = self.bucket.read(found.key, _LIMIT)
        assert isinstance(stored, StoredObject), f"{digest} has a state, and no object"
        assert found.key not in self.bucket.deleted, "a late deletion may hit what is in use"
        return stored.content

    def pulled(self, tag: str) -> Digest | None:
        """What a tag points to; None if the repository has no such tag. The lists of names agree with that."""
        found = self.catalog.get_tag(APP, tag)
        if found is None or self.catalog.get_manifest(APP, found.digest) is None:
            return None
        assert tag in self.catalog.tags(APP)
        assert found.digest in self.catalog.manifest_digests(APP)
        assert APP in self.records.repositories("corp")
        assert self.records.is_taken(APP)
        return found.digest

    def memory_is_right(self) -> None:
        """Fails if a pull would believe, while the bucket is down, something of a record that is not so."""
        believed = self.tree.view(Reads.LENIENT)
        for key, content in self.bucket.content().items():
            if not key.startswith(("repositories/", "names/", "states/")):
                continue
            self.bucket.down = True
            try:
                found = believed.read(key)
            except BucketUnavailable:
                continue
            finally:
                self.bucket.down = False
            is_deleted = len(content) == 17 and not content[0]
            assert (found.record if found else None) == (None if is_deleted else content), f"{key} is believed"

    # ------------------------------------------------------------------------------------------------- what runs

    def collect(self) -> CollectionReport:
        """One round."""
        report = CollectionReport(self.time.wall())
        for _ in collection_round(self.parts, self._rules, self._clock.read, report):
            pass
        self.blobs.free_collected()
        return report

    def sweep(self) -> None:
        """All of the bucket."""
        for _ in self.sweeping.pages(""):
            pass
        self.sweeping.leftovers()

    def tidy(self) -> None:
        """Rounds of collection and a sweep, until nothing waits any more."""
        for _ in range(6):
            self.time.passes(_KEEP + 1)
            report = self.collect()
            assert report.complete
            assert not report.unread
        self.time.passes(2 * _DAY)
        self.sweep()
        for _ in range(3):
            self.time.passes(_KEEP + 1)
            self.collect()

    def delete_everything(self, images: Sequence[Image]) -> None:
        """Every manifest, with its tags."""
        for image in images:
            with suppress(MirrorError):
                self.delete(image)

    def blobs_left(self) -> list[str]:
        """Objects, links and states of blobs that are not gone."""
        left = [key for key in self.bucket.content() if key.startswith(("hosted/", "probe/"))]
        left += [str(digest) for digest in self.records.linked(APP) if self._counts(digest)]
        left += [str(info.digest) for info in self.blobs.blobs(None, 100)]
        left += [str(each.digest) for each in self.blobs.damaged()]
        return left

    def _counts(self, digest: Digest) -> bool:
        # the mark of a removal stays while the disk has a copy
        link = self.links.find(APP, digest)
        return link is not None and link.state is not LinkState.REMOVED

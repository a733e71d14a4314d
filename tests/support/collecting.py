"""Hosted content in memory, its collection, and the steps by which clients push and delete.

The pushes here keep the order of the real ones. `tests/collection/test_collection_in_any_order.py` runs the real ones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from mirror.collection.collection_report import CollectionReport
from mirror.collection.collection_round import collection_round
from mirror.collection.grace_clock import GraceClock
from mirror.hosting.parts import HostedParts
from mirror.intake.tag_history import TagHistories, TamperProofClock
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST
from mirror.oci.reference import Repo
from mirror.policy.hosted.collection import CollectionRules, RegistryRules
from mirror.policy.hosted.immutability import ImmutableTags
from mirror.policy.hosted_records import BlobLink, DeletedManifest, LinkState
from mirror.policy.records import ManifestRecord, TagRecord
from tests.support.clock import Clock
from tests.support.hosted_world import Limited, MemoryFreezes
from tests.support.memory_hosted_records import MemoryHostedRecords
from tests.support.memory_hosting import MemoryContents, MemoryHostedBlobs
from tests.support.unreliable_disk import UnreliableCatalog, UnreliableStore

GRACE: Final = 100.0
KEEP: Final = 1000.0
APP: Final = Repo("corp", "team/app")
TWIN: Final = Repo("corp", "team/twin")


class CollectedWorld:
    """Hosted registries of one disk, in memory. `clock` is the wall clock and the steady one."""

    def __init__(self, *, collect_dangling: bool = False, catalog: Any = None, records: Any = None) -> None:
        """`catalog` and `records` may be those of a disk."""
        self.clock = Clock(1_000_000.0)
        self.steady = Clock(0.0)
        self.cache = UnreliableStore()
        self.catalog: Any = catalog or UnreliableCatalog()
        self.blobs = MemoryHostedBlobs(self.cache)
        self.records: Any = records or MemoryHostedRecords(self.catalog)
        self.accounts = Limited()
        self.parts = HostedParts(
            MemoryContents(self.cache, self.blobs),
            self.blobs,
            self.catalog,
            self.records,
            TagHistories(self.catalog, MemoryFreezes(), TamperProofClock(self.clock, self.steady)),
            self.accounts,
            ImmutableTags(),
            GRACE,
        )
        self.rules = CollectionRules(GRACE, {"corp": RegistryRules(KEEP, collect_dangling)}, upstreams=("docker.io",))
        self.grace_clock = GraceClock(self.clock, self.steady, GRACE)

    def passes(self, seconds: float) -> None:
        """Time goes by, for both clocks."""
        self.clock.time += seconds
        self.steady.time += seconds

    def collect(self, rounds: int = 1, *, pause: float = 0.0) -> CollectionReport:
        """Does rounds of collection, and lets time pass before each. Returns the last report."""
        for _ in range(rounds):
            self.passes(pause)
            report = CollectionReport(self.clock())
            for _step in collection_round(self.parts, self.rules, self.grace_clock.read, report):
                pass
        return report

    def collect_until_nothing_waits(self) -> CollectionReport:
        """Rounds until everything that nothing needs has gone: each thing waits at most for three grace times."""
        return self.collect(6, pause=GRACE + 1)

    # -------------------------------------------------------------------------------------------------- what clients do

    def upload(self, repo: Repo, content: bytes) -> Digest:
        """A blob, linked."""
        digest = Digest.of(content)
        self.blobs.put(digest, content)
        self.records.put_link(repo, BlobLink(digest, len(content), LinkState.LINKED, self.clock()))
        self.blobs.rescue(digest)
        return digest

    def push(self, repo: Repo, content: bytes, *tags: str) -> Digest:
        """A manifest, with tags."""
        digest, kind = Digest.of(content), json.loads(content)["mediaType"]
        self.blobs.put(digest, content)
        self.catalog.put_manifest(repo, ManifestRecord(digest, kind, len(content), self.clock()))
        for tag in tags:
            self.catalog.put_tag(repo, TagRecord(tag, digest, kind, len(content), self.clock()))
        return digest

    def push_image(self, repo: Repo, *layers: bytes, tag: str = "v1") -> Digest:
        """An image whose layers are uploaded first."""
        return self.push(repo, image(*(self.upload(repo, layer) for layer in layers)), tag)

    def delete(self, repo: Repo, digest: Digest, *tags: str, keep: bool = True) -> None:
        """A manifest and its tags."""
        record = self.catalog.get_manifest(repo, digest)
        assert record is not None
        if keep:
            self.records.put_deleted_manifest(repo, self.deletion(record, *tags))
        self.catalog.drop_manifest(repo, digest)
        for tag in tags:
            self.catalog.drop_tag(repo, tag)

    def deletion(self, record: ManifestRecord, *tags: str) -> DeletedManifest:
        """The record of a deletion now."""
        size, pushed_at = record.size, record.fetched_at
        return DeletedManifest(record.digest, record.media_type, size, pushed_at, self.clock(), "user:a", tags)

    def hosted(self) -> set[Digest]:
        """Every hosted blob."""
        return {info.digest for info in self.blobs.names.walk()}


def image(*layers: Digest, subject: Digest | None = None, size: int = 7) -> bytes:
    """The bytes of a manifest, whose layers have so many bytes."""
    return _manifest(OCI_MANIFEST, "layers", layers, subject, size)


def index(*children: Digest, subject: Digest | None = None) -> bytes:
    """The bytes of an index."""
    return _manifest(OCI_INDEX, "manifests", children, subject)


def _manifest(kind: str, field: str, named: Sequence[Digest], subject: Digest | None, size: int = 7) -> bytes:
    body: dict[str, object] = {"schemaVersion": 2, "mediaType": kind}
    listed_as = "application/vnd.oci.image.layer.v1.tar" if field == "layers" else OCI_MANIFEST
    body[field] = [{"mediaType": listed_as, "digest": str(digest), "size": size} for digest in named]
    if subject:
        body["subject"] = {"mediaType": OCI_MANIFEST, "digest": str(subject), "size": 7}
    return json.dumps(body).encode()

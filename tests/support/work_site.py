"""A replica that does the work for all, in this process or in one of its own (`python -m tests.support.work_site`).

Its hosted content is in a bucket, its leases too. Nothing pauses, and the time of waits is what the test says.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from mirror.bucket_cache.cache_upkeep import CacheLimits, CacheUpkeep
from mirror.collection.bucket_sweep import BucketSweeper
from mirror.collection.collector import GarbageCollector
from mirror.errors import BucketUnavailable, LeaseLost
from mirror.events.adoption import EventAdoption
from mirror.events.announcing import OutboxAnnouncer
from mirror.events.bucket_outbox import BucketOutbox
from mirror.hosting.links import Links
from mirror.hosting.placing import Placing
from mirror.hosting.retiring import Retiring
from mirror.index.cached_book import CachedBook
from mirror.index.outbox import SqliteOutbox
from mirror.leases.bucket_clock import BucketClock
from mirror.leases.bucket_leases import BucketLeases
from mirror.leases.work_locks import WorkLocks
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest, read_manifest
from mirror.oci.reference import Reference, Repo
from mirror.policy.events.changes import HostedChange, SeenChange
from mirror.policy.events.subscriptions import Subscription, Subscriptions
from mirror.policy.hosted.retention_rules import (
    DeleteRule,
    RegistryRetention,
    RetentionPolicy,
    RetentionRules,
    TagChoice,
)
from mirror.policy.schedule import Every
from mirror.ports import Bucket, Lease
from mirror.prefetch.progress import ProgressMeter
from mirror.prefetch.sync import Sync
from mirror.prefetch.sync_rules import SyncRule
from mirror.replication.here import HereRecords
from mirror.replication.replication_rules import ReplicationRule, SeenRecords
from mirror.replication.replications import Replications
from mirror.replication.rule_run import RuleRun, RunWanted
from mirror.repository.answers import Listing, Outcome
from mirror.retention.protected_images import ProtectedImages
from mirror.retention.pull_notes import PullTimes
from mirror.retention.repository_retention import RetentionTools
from mirror.retention.retention_marks import RetentionMarks
from mirror.retention.retention_schedule import Retention
from mirror.store.local.change_files import ChangeFiles
from mirror.store.local.local_records import local_pins
from mirror.store.local.locks import FileLocks
from mirror.store.objects.hosted_sweep import HostedSweep
from mirror.store.objects.record_listing import RecordListing
from mirror.store.records.json_tree_records import TreeRecords
from mirror.store.records.record_catalog import RecordCatalog
from mirror.store.records.repository_records import RepositoryRecords
from mirror.values.tagsets import TagSet
from tests.support.collecting import APP, GRACE, KEEP, CollectedWorld
from tests.support.object_site import BucketProcess
from tests.support.shared_bucket import FarBucket

#: What replication copies to, in the same bucket.
OTHER: Final = "other/"
SYNC: Final = SyncRule("nightly", Repo("docker.io", "library/app"), TagSet(), Every(3600.0))
COPY: Final = ReplicationRule("copy", "corp/**", "other", Every(3600.0), referrers=False)


async def _at_once(_: float) -> None:
    await asyncio.sleep(0)


class WorkSite(CollectedWorld):
    """A replica with a disk of its own."""

    def __init__(self, root: Path, bucket: Bucket, name: str, steady: Callable[[], float]) -> None:
        self.blob_site = BucketProcess(root / "store", bucket, at_once=1)
        tree = self.blob_site.tree
        records = RepositoryRecords(tree, ChangeFiles(self.blob_site.layout))
        super().__init__(catalog=RecordCatalog(tree), records=records)
        self.bucket = bucket
        self.blobs: Any = self.blob_site.hosted
        self.parts = replace(self.parts, contents=self.blob_site.contents, blobs=self.blobs)  # type: ignore[arg-type]
        # by the clock of the machine, as a mirror does
        self.leases = BucketLeases(bucket, name, clock=steady, check=BucketClock(bucket, name).check)
        self.own = FileLocks(self.blob_site.layout)
        self.locks = WorkLocks(self.own, self.leases, lambda lock: lock != "own")
        self.outbox = BucketOutbox(SqliteOutbox(root / "events", ["ci"], most_events=100, most_bytes=1 << 20), bucket)
        self.steady_clock = steady

    def later(self, seconds: float) -> None:
        """Time goes by for all waits."""
        self.passes(seconds)
        self.blob_site.clock += seconds

    def list_all(self) -> None:
        """Learns what others have written, as a replica does before it collects."""
        for _ in RecordListing(self.bucket, self.blob_site.memory).steps():
            pass

    def json(self, kind: str) -> TreeRecords:
        """JSON records of all replicas."""
        return TreeRecords(self.blob_site.tree, kind, lambda _: None)

    def pointed(self, tag: str, repo: Repo = APP) -> Digest:
        """What a tag points to."""
        record = self.catalog.get_tag(repo, tag)
        assert record is not None
        digest: Digest = record.digest
        return digest

    # ------------------------------------------------------------------------------------------------------- the work

    async def collection(self) -> object:
        """A round."""
        self.list_all()
        collector = GarbageCollector(
            self.parts, self.rules, self.locks, self.json("collection"), self.grace_clock, sleep=_at_once
        )
        return await collector.run()

    async def sweep(self) -> object:
        """A sweep, in pages of one blob."""
        site = self.blob_site
        sweep = HostedSweep(self.bucket, site.views, lambda _found, _why: False, now=self.clock, page=1)
        return await BucketSweeper(
            sweep, self.locks, self.json("collection"), self.grace_clock, rate=1e9, sleep=_at_once
        ).run()

    async def retention(self) -> object:
        """A round that deletes every tag."""
        policy = RetentionPolicy(("**",), (), (DeleteRule(TagChoice(("*",))),))
        marks = self.json("retention")
        tools = RetentionTools(
            self.parts,
            RetentionRules({"corp": RegistryRetention((policy,), KEEP)}, GRACE),
            Retiring(self.parts, Placing(self.parts, Links(self.parts))),
            ProtectedImages(
                self.parts.catalog,
                local_pins(self.blob_site.layout),
                (),
                self.parts.histories.freezes,
                self.parts.immutable,
                self.clock,
            ),
            PullTimes(self.json("pulls")),
            RetentionMarks(marks),
            self.grace_clock.read,
        )
        return await Retention(tools, self.locks, marks, sleep=_at_once).go_on()

    async def eviction(self) -> CacheUpkeep | None:
        """Everything goes; None if another replica evicts."""
        lease: Lease | None = None

        async def evicts() -> Lease | None:
            nonlocal lease
            lease = await self.locks.try_hold("bucketcache")
            return lease

        upkeep = CacheUpkeep(
            self.bucket,
            CachedBook(self.blob_site.layout.cached_book, "s3://bucket"),
            CacheLimits(0, 0),
            protected=lambda _: (),
            restore=_nothing,
            try_hold=lambda: self.own.try_hold("own"),
            evicts=evicts,
            now=self.clock,
        )
        await upkeep.tick()
        # it keeps its lease for as long as it runs
        return None if lease is None else upkeep

    async def replication(self) -> object:
        """A full comparison."""
        run = RuleRun(
            COPY,
            HereRecords(self.parts),
            SeenRecords(self.json("replicated")),
            lambda repo: _Source(repo, self),  # type: ignore[arg-type, return-value]
            lambda _name: _OtherRegistry(self.bucket),  # type: ignore[arg-type, return-value]
            self.parts.contents,
        )
        rules = Replications([run], self.json("replication"), locks=self.locks, now=self.clock)
        return await rules.run_rule("copy", ProgressMeter(), RunWanted(), by="hand")

    async def sync(self) -> object:
        """A run that finds no tags."""
        own, shared = self.json("unused"), self.json("sync-runs")
        rules = Sync([SYNC], lambda repo: _NoTags(repo), own, locks=self.locks, now=self.clock, shared=shared)  # type: ignore[arg-type, return-value]
        return await rules.run_rule("nightly", ProgressMeter(), by="hand")

    async def adoption(self) -> object:
        """A round that adopts what ended replicas have left. Nobody has made their changes."""

        def look(change: HostedChange, written: object) -> SeenChange:
            return SeenChange(present=False)

        everything = Subscriptions((Subscription("ci", ("*",), ("**",)),))
        announcer = OutboxAnnouncer(self.outbox, everything, look, "here", self.clock)
        adoption = EventAdoption(
            self.outbox, announcer, self.bucket, self.locks, lease="adoption", clock=self.steady_clock
        )
        lease = await self.locks.try_hold("adoption")
        if lease is None:
            return None
        with lease:
            return await adoption.adopt(lease)

    @property
    def work(self) -> dict[str, Callable[[], Awaitable[object]]]:
        """By name."""
        names = ("collection", "sweep", "retention", "eviction", "replication", "sync", "adoption")
        return {name: getattr(self, name) for name in names}


async def _nothing() -> None:
    pass


@dataclass(frozen=True)
class _Answer:
    manifest: Manifest

    def read(self) -> Manifest:
        return self.manifest


@dataclass(frozen=True)
class _Stat:
    size: int


class _Source:
    """A hosted repository as replication reads it."""

    def __init__(self, repo: Repo, site: WorkSite) -> None:
        self.repo = repo
        self._site = site

    async def manifest(self, digest: Digest) -> _Answer:
        record = self._site.parts.catalog.get_manifest(self.repo, digest)
        assert record is not None
        content = await asyncio.to_thread(self._site.blob_site.contents.read, digest, record.size)
        return _Answer(read_manifest(content, record.media_type))

    async def stat_blob(self, digest: Digest) -> _Stat:
        return _Stat(7)


class _OtherRegistry:
    """A registry that has all blobs, in the same bucket."""

    name = "other"

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    async def digest_of(self, repo: str, tag: str) -> Digest | None:
        found = await asyncio.to_thread(self._bucket.read, f"{OTHER}{repo}/{tag}", 1000)
        return Digest.parse(found.content.decode()) if found else None  # type: ignore[union-attr]

    async def has_manifest(self, repo: str, digest: Digest) -> bool:
        return False

    async def has_blob(self, repo: str, digest: Digest, size: int) -> bool:
        return True

    async def put_manifest(self, repo: str, manifest: Manifest, reference: Reference) -> bool:
        await asyncio.to_thread(self._bucket.write, f"{OTHER}{repo}/{reference}", str(manifest.digest).encode())
        return True


class _NoTags:
    def __init__(self, repo: Repo) -> None:
        self.repo = repo

    async def tags(self, last: str, most: int) -> Listing:
        return Listing((), Outcome.HIT, self.repo.registry)


async def _main(root: Path, path: Path, work: str, later: float) -> None:
    bucket = FarBucket(path)
    site = WorkSite(root, bucket, "frozen", bucket.clock)
    site.later(later)
    try:
        await site.work[work]()
        ended = "returned"
    except LeaseLost:
        ended = "lease lost"
    except BucketUnavailable as error:
        ended = str(error)
    print(json.dumps({"ended": ended}), flush=True)


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], float(sys.argv[4])))

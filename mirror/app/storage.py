"""Builds disk and index: enough for commands that need no server."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mirror import telemetry
from mirror.app.bucket import open_bucket
from mirror.app.object_storage.bucket_blobs import BucketBlobs, open_bucket_blobs
from mirror.app.object_storage.bucket_cache import BucketCache, open_bucket_cache
from mirror.app.routes import age_rule
from mirror.app.stored_records import BucketUse, RecordViews, StoredRecords, open_records
from mirror.config import Config, routing_table
from mirror.errors import IndexUnavailable, StoreError
from mirror.eviction.evictor import Evictor
from mirror.eviction.giving_way import GivesWay
from mirror.eviction.pinned_images import PinnedContent
from mirror.eviction.protection import Protection
from mirror.eviction.purge import Purge
from mirror.eviction.quarantine_sweep import QuarantineSweeper
from mirror.eviction.rebuilding import IndexRebuilder
from mirror.eviction.reconcile import Reconciled
from mirror.eviction.rounds import EvictionRounds
from mirror.eviction.shared_rebuild import ensure
from mirror.eviction.space import Space
from mirror.eviction.usage import StoreUsage
from mirror.eviction.write_behind import WriteBehind
from mirror.fills.wrong_parts import report_unchecked_parts, report_wrong_parts
from mirror.graph.blob_places import BlobPlaces
from mirror.graph.references import ReferenceReader
from mirror.index.embedded import EmbeddedIndex
from mirror.index.link_ledger import SqliteLedger
from mirror.index.outbox import SqliteOutbox
from mirror.intake.tag_history import TagHistories
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.eviction import Watermarks
from mirror.policy.hosted.immutability import ImmutableTags
from mirror.policy.hosted.quotas import QuotaRules, RegistryQuota
from mirror.policy.pins import PinRule
from mirror.policy.quarantine_limits import QuarantineLimits
from mirror.ports import (
    BlobStore,
    Bucket,
    BucketSweep,
    Catalog,
    CheckedRecords,
    ContentIndex,
    EventStore,
    Freezes,
    HostedBlobs,
    HostedRecords,
    LinkLedger,
    Locks,
    Pins,
    RepairableBlobs,
    Uploads,
)
from mirror.store.hosted.blob_names import HostedNames
from mirror.store.hosted.contents import LocalContents
from mirror.store.hosted.upload_files import LocalUploads
from mirror.store.local.blobs import LocalStore
from mirror.store.local.json_records import JsonRecords
from mirror.store.local.layout import Layout
from mirror.store.local.locks import FileLocks
from mirror.store.local.purge_notices import PurgeNotices
from mirror.store.local.recovery import Swept, sweep
from mirror.store.objects.copied_files import CacheBesideCopies
from mirror.values.sizes import parse_capacity, parse_size

if TYPE_CHECKING:
    from mirror.app.clustering import Cluster
    from mirror.app.object_storage.leasing import LeaseClocks, Leasing
    from mirror.eviction.known_purges import KnownPurges

#: Locks between all processes of a store; commands take them, too.
MISSES_LOCK = "misses"
SCRUB_LOCK = "scrub"
LEDGER_LOCK = "ledger"
BUCKET_LOCK = "bucket"
#: Seconds without a new byte after which an interrupted download may be dropped, if eviction does not free enough.
_IDLE = 60.0
#: Seconds that a server which stops may take to write to the bucket what was cached.
_FLUSHING = 5.0


@dataclass(frozen=True, slots=True)
class HostedDisk:
    """What hosted content is made of: its blobs, upload sessions, the records of its repositories, the ledger that is
    derived from them, and the outbox of events, if there are endpoints.

    `strict` are the records for whatever changes hosted content, `pulled` those for pulls. `sweep` finds what was
    forgotten in the bucket, if the content is in one.
    """

    blobs: HostedBlobs
    uploads: Uploads
    strict: RecordViews
    pulled: RecordViews
    ledger: LinkLedger
    outbox: EventStore | None
    sweep: BucketSweep | None = None

    @property
    def records(self) -> HostedRecords:
        """What hosted repositories have besides tags and manifests."""
        return self.strict.repositories


@dataclass(frozen=True, slots=True)
class LocalDisk:
    """What the store has, without an index: enough for commands that read the content or set pins.

    `store` is the cache. `contents` finds blobs of the cache and hosted ones. `catalog`, `pins` and `freezes` are for
    display, eviction and cached content.
    """

    layout: Layout
    store: LocalStore
    catalog: Catalog
    pins: Pins
    freezes: Freezes
    hosted: HostedDisk
    contents: RepairableBlobs
    stored: StoredRecords
    blobs: BucketBlobs | None = None

    @property
    def evictable(self) -> BlobStore:
        """All files that may be evicted: the cache, and with a bucket also the copies of hosted blobs."""
        return self.blobs.files if self.blobs is not None else self.store

    def close(self) -> None:
        """Close what commands leave open: the bucket, if there is one. Repeatable."""
        if self.stored.use is not None:
            self.stored.use.close()


@dataclass(slots=True)
class Storage:
    """Disk and index, and what maintains them: enough for commands that need no server.

    `store` is the cache. `contents` finds blobs of the cache and hosted ones. `catalog`, `pins` and `freezes` are for
    display, eviction and cached content. `bucket_cache` keeps what is cached in the bucket as well; None if nothing
    does. `cluster` are the other replicas, and `purges` what they have ordered; None if there are none.
    """

    layout: Layout
    store: LocalStore
    contents: RepairableBlobs
    catalog: Catalog
    freezes: Freezes
    pins: Pins
    hosted: HostedDisk
    index: ContentIndex
    locks: FileLocks
    eviction: Eviction
    stored: StoredRecords
    blobs: BucketBlobs | None = None
    bucket_cache: BucketCache | None = None
    cluster: Cluster | None = None
    leasing: Leasing | None = None
    purges: KnownPurges | None = None

    @property
    def evictable(self) -> BlobStore:
        """All files that may be evicted: the cache, and with a bucket also the copies of hosted blobs."""
        return self.blobs.files if self.blobs is not None else self.store

    @property
    def work(self) -> Locks:
        """The locks of work that is done once for all replicas of a cluster; otherwise those of this machine."""
        return self.locks if self.leasing is None else self.leasing.locks

    @property
    def bucket(self) -> BucketUse | None:
        """The bucket that has hosted content; None if that is on the disk."""
        return self.stored.use

    def records(self, kind: str) -> CheckedRecords:
        """The records of one kind, such as `jobs`."""
        return self.stored.json(kind)

    def bucket_is_listed(self) -> bool:
        """Blocking: False until it is known what a bucket has; True without one. Raises `StoreError`."""
        try:
            use = self.stored.use
            return use is None or (use.owner.is_confirmed and use.memory.is_complete())
        except IndexUnavailable as error:
            raise StoreError(f"what is remembered of the bucket cannot be read: {error}") from error

    def check_bucket(self) -> None:
        """Blocking: raises `StoreError` if hosted content is in a bucket that is not the right one any more, or that
        another mirror uses.
        """
        if self.stored.use is not None:
            self.stored.use.owner.check()


@dataclass(frozen=True, slots=True)
class Eviction:
    """What keeps the store within its capacity, and the index in step with the disk. `rebuild` takes part in a rebuild
    of the index (`shared_rebuild.ensure`), once at a time in this process.
    """

    write_behind: WriteBehind
    protection: Protection
    pinned: PinnedContent
    evictor: Evictor
    space: Space
    rounds: EvictionRounds
    rebuild: Callable[[], Awaitable[Reconciled | None]]


def open_disk(config: Config, bucket: Bucket | None = None, *, serves: bool = False) -> LocalDisk:
    """The store's files, and its bucket, if it has one: `bucket`, or the one that is configured. Blocking. Raises
    `StoreError`, `ConfigError`.
    """
    bucket = bucket or open_bucket(config, probe=serves)
    layout = Layout(config.store.root)
    store = LocalStore(layout) if bucket is None else CacheBesideCopies(layout)
    stored = open_records(config, layout, store.id, bucket, serves=serves)
    ledger = SqliteLedger(layout.ledger, quota_rules(config).scopes)
    local = open_outbox(config, layout) if config.events.endpoint else None
    outbox: EventStore | None = local
    shown, records = stored.shown, (stored.strict, stored.pulled)
    if stored.use is None:
        names = HostedNames(layout)
        hosted = HostedDisk(names, LocalUploads(layout, names), *records, ledger, outbox)
        return LocalDisk(layout, store, shown.catalog, shown.pins, shown.freezes, hosted, LocalContents(layout), stored)
    if local is not None and config.cluster.has_members:
        # imported here, so that it is loaded by replicas alone
        from mirror.events.bucket_outbox import BucketOutbox

        root = os.stat(layout.root)
        outbox = BucketOutbox(local, stored.use.bucket, f"{root.st_dev:x}-{root.st_ino:x}")
    # a client that was sent to the bucket may read there for a while
    life = config.bucket.redirect_for if config.bucket.redirect_to else 0.0
    blobs = open_bucket_blobs(stored.use, store, life=life)
    hosted = HostedDisk(blobs.hosted, LocalUploads(layout, blobs.hosted), *records, ledger, outbox, blobs.sweep)
    contents = blobs.contents()
    return LocalDisk(layout, store, shown.catalog, shown.pins, shown.freezes, hosted, contents, stored, blobs)


def open_outbox(config: Config, layout: Layout) -> SqliteOutbox:
    """The outbox of events, which the caller closes."""
    settings = config.events

    def lost(endpoint: str, count: int) -> None:
        telemetry.EVENTS_LOST.labels(endpoint).inc(max(1, count))

    return SqliteOutbox(
        layout.events,
        [endpoint.name for endpoint in settings.endpoint],
        most_events=settings.max_events,
        most_bytes=parse_size(settings.max_size),
        lost=lost,
    )


@asynccontextmanager
async def open_storage(
    config: Config,
    *,
    bucket: Bucket | None = None,
    serves: bool = False,
    now: Callable[[], float] = time.time,
    clocks: LeaseClocks | None = None,
) -> AsyncIterator[Storage]:
    """Opens disk and index, and closes them at the end. `serves`: for a server, and not for a command: a server takes
    only a few seconds at the end to write what waits for the bucket. `now` is the clock of eviction, in epoch seconds;
    `clocks` are those of leases. Raises `StoreError`, `ConfigError`.
    """
    async with AsyncExitStack() as stack:
        cluster = None
        if config.cluster.has_members:
            # imported here: a mirror without replicas does not even load it
            from mirror.app.clustering import open_cluster

            cluster = await open_cluster(config, stack)
        disk = await asyncio.to_thread(open_disk, config, bucket, serves=serves)
        stack.callback(disk.close)
        if disk.stored.use is not None and disk.stored.use.journals is not None:
            stack.push_async_callback(asyncio.to_thread, disk.stored.use.journals.close)
        stack.callback(disk.hosted.ledger.close)
        if disk.hosted.outbox is not None:
            stack.callback(disk.hosted.outbox.close)
        layout, store, catalog, pins = disk.layout, disk.store, disk.catalog, disk.pins
        locks = FileLocks(layout, secret=store.id)
        index = _open_index(config, layout, store.id)
        stack.push_async_callback(index.aclose)
        freezes, bucket_cache, purges = disk.freezes, None, None
        if cluster is not None:
            from mirror.app.clusters.cluster_purges import know_purges

            purges = know_purges(layout, disk.stored.use)
        if disk.stored.use is not None and config.store.cache_in_bucket:
            bucket_cache = open_bucket_cache(
                config, disk.stored.use.bucket, layout, store, catalog, locks, now=now, purges=purges
            )
            stack.push_async_callback(bucket_cache.aclose, _FLUSHING if serves else math.inf)
        eviction = _make_eviction(config, disk, freezes, index, locks, now, bucket_cache)
        if disk.blobs is not None:
            disk.blobs.added.listener = eviction.write_behind.stored
        leasing = None
        if disk.stored.use is not None and config.cluster.has_members:
            from mirror.app.object_storage.leasing import open_leasing

            leasing = open_leasing(config, disk.stored.use.bucket, locks, now=now, clocks=clocks)
            stack.push_async_callback(leasing.leases.aclose)
        yield Storage(
            layout,
            store,
            disk.contents,
            catalog,
            freezes,
            pins,
            disk.hosted,
            index,
            locks,
            eviction,
            disk.stored,
            disk.blobs,
            bucket_cache,
            cluster,
            leasing,
            purges,
        )


def _make_eviction(
    config: Config,
    disk: LocalDisk,
    freezes: Freezes,
    index: ContentIndex,
    locks: FileLocks,
    now: Callable[[], float],
    bucket_cache: BucketCache | None,
) -> Eviction:
    settings = config.store
    layout, store, is_hosted = disk.layout, disk.evictable, hosted_repositories(config)
    places, catalog = blob_places(config, disk), disk.stored.evicted
    references = ReferenceReader(store, catalog)
    histories = TagHistories(catalog, freezes)
    pinned = PinnedContent(
        catalog,
        disk.pins,
        pin_rules(config),
        references,
        frozen=freezes.look,
        answer=lambda repo, tag: histories.answer(repo, tag, age_rule(config, repo)),
        # copies of hosted images are evicted, and pins keep them, as cached images
        is_hosted=(lambda _: False) if places.has_copies else is_hosted,
    )
    protection = Protection()
    protection.add_on_disk(pinned.digests)
    if places.has_copies:
        # a copy on the disk may be all that is left of a blob that the bucket has lost
        protection.add_on_disk(lambda _: {blob.digest for blob in disk.hosted.blobs.damaged()})
    write_behind = WriteBehind(store, index, now=now, used=bucket_cache.uses.note if bucket_cache else None)
    give_way = GivesWay(write_behind, now=now)
    usage = StoreUsage(store, index, write_behind, now=now, give_way=give_way)
    evictor = Evictor(
        store,
        index,
        write_behind,
        usage,
        references,
        protection,
        exclusive=lambda: locks.hold("evict"),
        now=now,
    )
    turn = asyncio.Lock()

    async def rebuild() -> Reconciled | None:
        # requests share the interpreter with it: one thread that reads manifests is enough
        async with turn:
            return await ensure(store, catalog, index, try_hold=locks.try_hold, places=places, give_way=give_way)

    rebuilder = IndexRebuilder(
        index,
        write_behind,
        rebuild,
        now=now,
    )
    space = Space(
        store,
        evictor,
        usage,
        write_behind,
        protection,
        QuarantineSweeper(
            store, QuarantineLimits(parse_size(settings.quarantine_max_size), settings.quarantine_max_age), now=now
        ),
        Watermarks(parse_capacity(settings.capacity), settings.high_water, settings.low_water),
        rebuilder=rebuilder,
        reclaim=lambda in_use: sweep_and_report(config, layout, keep=_IDLE, in_use=in_use).bytes,
    )
    rounds = EvictionRounds(space, usage, write_behind, rebuilder)
    return Eviction(write_behind, protection, pinned, evictor, space, rounds, rebuild)


def sweep_and_report(config: Config, layout: Layout, *, keep: float, in_use: bool = False) -> Swept:
    """See `sweep`. Also reports what it finds out about parts that were sent. Blocks. Raises `StoreError`."""
    swept = sweep(layout, keep=keep, now=time.time, in_use=in_use)
    for wrong in swept.wrong:
        upstream = str(wrong.served[-1].get("upstream", ""))
        report_wrong_parts(wrong.digest, upstream, routing_table(config).label(upstream), wrong.served)
    for sent in swept.unchecked:
        report_unchecked_parts(sent.digest, sent.served)
    return swept


def _open_index(config: Config, layout: Layout, store_id: str) -> ContentIndex:
    if url := config.index.url.get_secret_value():
        # imported here, so that commands without Redis do not load its library
        from mirror.index.redis import RedisIndex
        from mirror.index.redis_address import parse_redis_url

        return RedisIndex(parse_redis_url(url), store_id=store_id, budget=config.index.timeout)
    return EmbeddedIndex(layout.root / "index.sqlite")


def quota_rules(config: Config) -> QuotaRules:
    """The quotas of the hosted registries that are configured."""
    return QuotaRules(
        {
            entry.name: RegistryQuota(
                parse_size(entry.quota) if entry.quota is not None else None,
                {pattern: parse_size(size) for pattern, size in entry.quotas.items()},
            )
            for entry in config.hosted
        }
    )


def immutable_tags(config: Config) -> ImmutableTags:
    """Which tags of hosted registries are immutable."""
    return ImmutableTags({entry.name: [each.rule for each in entry.immutable] for entry in config.hosted})


def pin_rules(config: Config) -> list[PinRule]:
    """The pins that the configuration sets."""
    return [PinRule(pin.match, pin.reason) for pin in config.pin]


def hosted_repositories(config: Config) -> Callable[[Repo], bool]:
    """A function that returns whether a repository belongs to a registry that is hosted here."""
    table = routing_table(config)
    return lambda repo: table.hosts_registry(repo.registry)


def blob_places(config: Config, storage: Storage | LocalDisk) -> BlobPlaces:
    """Where the blobs of each repository are read, for display and export."""
    is_hosted = hosted_repositories(config)
    holders = _holders(storage) if config.hosted else lambda _digest, _most: ()
    if storage.blobs is not None:
        return BlobPlaces(storage.store, storage.blobs.shown(), is_hosted, True, holders)
    return BlobPlaces(storage.store, storage.contents, is_hosted, False, holders)


def _holders(storage: Storage | LocalDisk) -> Callable[[Digest, int], Sequence[Repo]]:
    ledger = storage.hosted.ledger

    def holders(digest: Digest, most: int) -> Sequence[Repo]:
        # a command that only looks makes no ledger
        if not storage.layout.ledger.exists() or not ledger.is_complete():
            raise IndexUnavailable("the ledger of hosted content is not complete")
        return ledger.holders(digest, most)

    return holders


def scrub_records(layout: Layout) -> JsonRecords:
    """The record of how far the scrub of the whole store has come."""
    return JsonRecords(layout, "scrub")


def make_purge(
    config: Config,
    storage: Storage,
    forget: Callable[[Repo, Collection[str], Collection[Digest]], None] = lambda repo, tags, digests: None,
) -> Purge:
    """A purge that drops an image from the store, and from the memory of every process that uses the store.

    `forget` drops tags, manifests and grants from the memory of this process; it is called on the event loop. Other
    processes read the purge notices.
    """
    notices = PurgeNotices(JsonRecords(storage.layout, "purges"))

    async def forget_everywhere(repo: Repo, tags: Collection[str], digests: Collection[Digest]) -> None:
        forget(repo, tags, digests)
        await asyncio.to_thread(notices.publish, repo, tags, digests)

    # in a cluster, a pin or freeze may have been set at another replica a moment ago
    views = storage.hosted.strict if storage.cluster is not None else storage
    return Purge(
        storage.store,
        storage.catalog,
        views.pins,
        pin_rules(config),
        views.freezes,
        storage.index,
        storage.eviction.evictor,
        forget=forget_everywhere,
        is_hosted=hosted_repositories(config),
        kept=storage.bucket_cache.purge if storage.bucket_cache else None,
    )

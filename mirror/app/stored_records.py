"""Opens the records of a store: those of cached content on the disk; those of hosted content beside them, or in a
bucket.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from mirror.access.robots import ROBOTS, USES
from mirror.aio.bounded_threads import in_thread
from mirror.app.bucket import BucketThreads, open_bucket
from mirror.config import Config, routing_table
from mirror.errors import BucketUnavailable, StoreError
from mirror.index.record_memory import SqliteRecordMemory
from mirror.oci.reference import Repo
from mirror.policy.cluster.journal_names import of_kind, of_repo
from mirror.ports import (
    Bucket,
    Catalog,
    ChangeCounter,
    CheckedRecords,
    Freezes,
    HostedRecords,
    Pins,
    RecordJournals,
    RecordTree,
)
from mirror.store.local.blobs import LocalStore
from mirror.store.local.bucket_note import BucketNote
from mirror.store.local.change_files import ChangeFiles
from mirror.store.local.file_tree import FileTree
from mirror.store.local.ingest_state import boot_id
from mirror.store.local.json_records import JsonRecords
from mirror.store.local.layout import Layout
from mirror.store.local.local_records import local_catalog, local_freezes, local_pins, local_repository_records
from mirror.store.local.locks import RunLock, locked
from mirror.store.objects.bucket_owner import BucketOwner, OwnedBucket
from mirror.store.objects.record_listing import RecordListing
from mirror.store.objects.record_tree import BucketTree, Reads
from mirror.store.records.freeze_records import FreezeRecords
from mirror.store.records.json_tree_records import TreeRecords
from mirror.store.records.pin_records import PinRecords
from mirror.store.records.record_catalog import RecordCatalog
from mirror.store.records.repository_records import RepositoryRecords
from mirror.store.records.routed_tree import RoutedTree
from mirror.store.records.silent_tree import SilentTree

if TYPE_CHECKING:
    from mirror.store.objects.record_journals import BucketJournals

T = TypeVar("T")
R = TypeVar("R")

#: The records of sync rules that one replica of a cluster runs for all.
SYNC_RUNS: Final = "sync-runs"
#: JSON records that are in the bucket, if there is one. All others concern this machine.
BUCKET_KINDS: Final = frozenset(
    {"pins", "freezes", ROBOTS, USES, "retention", "pulls", "collection", "replicated", "replication", SYNC_RUNS}
)

#: Calls of the bucket at the same time, for whatever needs many records at once. Threads are started when needed.
_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class RecordViews:
    """The records of repositories, as they are read for one purpose."""

    catalog: Catalog
    repositories: HostedRecords
    pins: Pins
    freezes: Freezes


@dataclass(frozen=True, slots=True)
class BucketUse:
    """The bucket of a store, and what the machine knows of its records. `bucket` may be used at any time: it sees to it
    that it is the right one.
    """

    bucket: Bucket
    owner: BucketOwner
    memory: SqliteRecordMemory
    tree: BucketTree
    run: RunLock | None
    #: For calls that are made at the same time for one request.
    pool: Executor
    threads: BucketThreads
    #: What other replicas of a cluster change; None if this mirror is none.
    journals: BucketJournals | None = None

    def at_once(self, work: Callable[[T], R], things: Iterable[T]) -> Iterable[R]:
        """See `AtOnce`."""
        return self.pool.map(work, things)

    def close(self) -> None:
        """Close everything. Repeatable."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.threads.close()
        if self.journals is not None:
            self.journals.close()
        self.bucket.close()
        self.memory.close()
        if self.run is not None:
            self.run.close()


@dataclass(frozen=True, slots=True)
class StoredRecords:
    """All records of a store.

    `shown` is for display, eviction and cached content; `pulled` for pulls of hosted content; `strict` for whatever
    changes hosted content. Without a bucket they are the same.
    """

    layout: Layout
    shown: RecordViews
    pulled: RecordViews
    strict: RecordViews
    #: The catalog for eviction: hosted records that cannot be read now count as absent.
    evicted: Catalog
    hosts: Callable[[str], bool]
    use: BucketUse | None

    def trouble(self) -> str:
        """Why what only the bucket has cannot be read now; empty: it can, or there is no bucket. Blocking; asks it."""
        if self.use is not None:
            try:
                self.use.owner.seen_again()
            except StoreError as error:
                return str(error)
        return ""

    def is_taken_now(self, repo: Repo) -> bool:
        """Like `NameOwners.is_taken`, and never asks the bucket. Raises `StoreError` if the memory does not know it."""
        if self.use is None or not self.hosts(repo.registry):
            return self.shown.repositories.is_taken(repo)
        taken = self.use.tree.name_taken(repo)
        if taken is None:
            raise BucketUnavailable(f"it cannot be said now whether {repo} exists")
        return taken

    async def learn_names(self, repos: Sequence[Repo]) -> None:
        """Ask the bucket about names of which the memory does not know whether they are taken. Raises `StoreError`."""
        use = self.use
        if use is not None and (unknown := [repo for repo in repos if use.tree.must_learn(repo)]):
            await in_thread(use.threads.requests, lambda: [*map(use.tree.learn_name, unknown)])

    def json(self, kind: str, reads: Reads = Reads.STRICT) -> CheckedRecords:
        """The JSON records of one kind, such as `jobs`."""
        if self.use is None or kind not in BUCKET_KINDS:
            return JsonRecords(self.layout, kind)
        return _json(self.use, kind, reads)


class SyncedChanges:
    """A `ChangeCounter` that counts what other replicas change, too. Counts are read in threads."""

    def __init__(self, counter: ChangeCounter, journals: RecordJournals) -> None:
        self._counter = counter
        self._journals = journals

    def __repr__(self) -> str:
        return f"<SyncedChanges {self._journals!r}>"

    def changes(self, repo: Repo) -> int:
        """See `ChangeCounter`. -1 also while another replica writes."""
        try:
            return self._counter.changes(repo) if self._journals.sync(repo) else -1
        except StoreError:
            return -1

    def note_change(self, repo: Repo) -> None:
        """See `ChangeCounter`."""
        self._counter.note_change(repo)


class FollowedChanges:
    """A `ChangeCounter` for pulls, which have looked at the journal. Another process notes a change in the counter,
    and then in the memory: what was read between the two must not be believed later. Quick.
    """

    def __init__(self, counter: ChangeCounter, journals: BucketJournals) -> None:
        self._counter = counter
        self._journals = journals

    def __repr__(self) -> str:
        return f"<FollowedChanges {self._journals!r}>"

    def changes(self, repo: Repo) -> int:
        """See `ChangeCounter`. The state of the journal is a part of the count."""
        position, count = self._journals.position(of_repo(repo)), self._counter.changes(repo)
        return count if position is None or count < 0 else abs(hash((count, position.version)))

    def note_change(self, repo: Repo) -> None:
        """See `ChangeCounter`."""
        self._counter.note_change(repo)


def open_records(
    config: Config, layout: Layout, disk: str, bucket: Bucket | None, *, serves: bool = False, migrates: bool = False
) -> StoredRecords:
    """Opens the records. `disk` is the id of the local store. Blocking, and asks no bucket. Raises `StoreError`."""
    if bucket is not None:
        return _in_bucket(config, layout, open_use(config, layout, disk, bucket, serves=serves, migrates=migrates))
    if not migrates and (noted := BucketNote(layout).read()) is not None:
        # also if nothing is hosted: robots that were revoked and freezes that were lifted would be back
        raise StoreError(
            f"hosted content of this disk is in the bucket with the id {noted}, with its robots, pins and freezes: set"
            " [store] bucket, or run mirror migrate --to-disk"
        )
    views = RecordViews(
        local_catalog(layout), local_repository_records(layout), local_pins(layout), local_freezes(layout)
    )
    hosts = routing_table(config).hosts_registry
    return StoredRecords(layout, views, views, views, views.catalog, hosts, None)


@contextmanager
def stored_records(config: Config) -> Iterator[StoredRecords]:
    """The records alone, for commands that need nothing else. Without a bucket nothing is made on the disk. Raises
    `StoreError`, `ConfigError`.
    """
    layout, bucket = Layout(config.store.root), open_bucket(config)
    stored = open_records(config, layout, LocalStore(layout).id if bucket is not None else "", bucket)
    try:
        yield stored
    finally:
        if stored.use is not None:
            stored.use.close()


def open_use(
    config: Config, layout: Layout, disk: str, bucket: Bucket, *, serves: bool = False, migrates: bool = False
) -> BucketUse:
    """Opens the records of a bucket. Raises `StoreError`."""

    def exclusive() -> AbstractContextManager[None]:
        return locked(layout, "bucket-owner")

    note = BucketNote(layout)
    if not migrates and note.read() is None:
        _refuse_left_behind(config, layout)
    memory = SqliteRecordMemory(layout.record_memory, boot_id().hex())
    run = RunLock(layout, "bucket-run") if serves else None
    cluster = config.cluster.name if config.cluster.has_members else ""
    owner = BucketOwner(
        bucket,
        memory,
        note,
        disk,
        exclusive,
        [] if migrates else [entry.name for entry in config.upstream],
        run=run.run if run is not None else "",
        migrates=migrates,
        cluster=cluster,
    )
    owned = OwnedBucket(bucket, owner)
    journals = _open_journals(config, layout, disk, owned) if cluster else None

    def complete() -> None:
        # a server does it in the background
        for _ in () if serves else RecordListing(owned, memory).steps():
            pass

    tree = BucketTree(
        owned,
        memory,
        is_confirmed=lambda: owner.is_confirmed,
        complete=complete,
        see=owner.seen_again,
        journals=journals,
    )
    pool = ThreadPoolExecutor(_AT_ONCE, "records")
    return BucketUse(owned, owner, memory, tree, run, pool, BucketThreads(), journals)


def _open_journals(config: Config, layout: Layout, disk: str, bucket: OwnedBucket) -> BucketJournals:
    # imported here: a mirror without replicas does not even load them
    from mirror.index.journal_memory import SqliteJournalMemory
    from mirror.store.objects.record_journals import BucketJournals

    # who has a copy of this disk is another replica, also on this machine
    boot, root = boot_id().hex(), os.stat(layout.root)
    replica = f"{disk[:16]}-{boot[:8]}-{root.st_dev:x}-{root.st_ino:x}"
    return BucketJournals(
        bucket,
        SqliteJournalMemory(layout.record_memory, boot, replica),
        replica,
        ChangeFiles(layout).note_change,
        freshness=config.hosting.tag_freshness,
        stale=config.hosting.stale_while_bucket_down,
    )


def _refuse_left_behind(config: Config, layout: Layout) -> None:
    """Raises `StoreError` if this disk has hosted content, or records of the kinds that a bucket has, that are in no
    bucket: pins and freezes would protect nothing, and robots could not log in, without a word.
    """
    tree = FileTree(layout)
    for entry in config.hosted:
        found = next(iter(tree.repositories(("_tags", "_manifests", "_blobs"), entry.name)), None)
        if found is not None:
            raise StoreError(
                f"hosted content of this disk ({found}) is not in the bucket yet: run mirror migrate --to-bucket"
            )
    kinds = [kind for kind in sorted(BUCKET_KINDS) if any(name.endswith(".json") for name in tree.names(kind))]
    if kinds:
        raise StoreError(
            f"records of this disk ({', '.join(kinds)}) are not in the bucket yet: run mirror migrate --to-bucket"
        )


def _in_bucket(config: Config, layout: Layout, use: BucketUse) -> StoredRecords:
    hosts, counter = routing_table(config).hosts_registry, ChangeFiles(layout)

    def views(reads: Reads, operators: Reads, cached: FileTree | None = None) -> RecordViews:
        hosted = use.tree.view(reads)
        counts: ChangeCounter = counter
        if use.journals is not None and reads is Reads.STRICT:
            counts = SyncedChanges(counter, use.journals)
        elif use.journals is not None and reads is Reads.LENIENT:
            counts = FollowedChanges(counter, use.journals)
        tree: RecordTree = RoutedTree(hosts, hosted=hosted, cached=cached) if cached else hosted
        return RecordViews(
            RecordCatalog(tree),
            RepositoryRecords(tree, counts),
            PinRecords(_json(use, "pins", operators)),
            _freezes(use, FreezeRecords(_json(use, "freezes", operators)), hosts, counter),
        )

    shown = views(Reads.REMEMBERED, Reads.REMEMBERED, FileTree(layout))
    # nobody but this mirror pins and freezes, so neither a pull nor a push need ask the bucket whether somebody has;
    # in a cluster, a journal says it
    pulled = views(Reads.LENIENT, Reads.REMEMBERED if use.journals is None else Reads.LENIENT)
    silent = SilentTree(use.tree.view(Reads.REMEMBERED))
    evicted = RecordCatalog(RoutedTree(hosts, hosted=silent, cached=FileTree(layout)))
    return StoredRecords(layout, shown, pulled, views(Reads.STRICT, Reads.OWN), evicted, hosts, use)


def _freezes(use: BucketUse, freezes: FreezeRecords, hosts: Callable[[str], bool], counter: ChangeCounter) -> Freezes:
    if use.journals is None:
        return freezes
    # imported here: a mirror without replicas does not even load it
    from mirror.store.records.journaled_freezes import JournaledFreezes

    return JournaledFreezes(freezes, use.journals, hosts, counter)


def _json(use: BucketUse, kind: str, reads: Reads) -> TreeRecords:
    def changes(folder: str) -> int | None:
        if use.journals is not None and not use.journals.is_quiet(of_kind(kind)):
            return None
        return use.memory.changes(folder) if use.owner.is_confirmed else None

    # another replica may have made, or deleted, what is to be changed here
    changed = use.tree if use.journals is not None else None
    return TreeRecords(use.tree.view(reads), kind, changes, changed)

"""Puts a migration between the disk and the bucket of a configuration together, and says which of the two counts.

    to the bucket    no note on the disk ── passes: mirror.json says "migrating" ── the final pass ── note on the disk
                     ── "migrating" is taken back: the bucket counts
    to the disk      a note on the disk ── passes ── the final pass: mirror.json says "migrating" ── no note: the disk
                     counts, and mirrors do not start with the bucket any more

A migration that dies between two of these steps is finished by running the final pass again; meanwhile neither side
is served by a mirror that starts. A disk that only gets copies of a bucket has no note, and no final pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum

from mirror.app.bucket import open_bucket
from mirror.app.object_storage.bucket_cache import open_bucket_cache
from mirror.app.stored_records import BUCKET_KINDS, BucketUse, open_use
from mirror.bucket_cache.cached_copy import CachedCopy
from mirror.config import Config
from mirror.errors import ConfigError, MirrorError, StoreError
from mirror.index.migration_journal import SqliteMigrationJournal
from mirror.migration.migration import Migration, MigrationOptions
from mirror.migration.progress import MigrationProgress
from mirror.migration.record_folders import MigrationSide
from mirror.replication.rate_limit import RateLimit
from mirror.store.hosted.blob_names import HostedNames
from mirror.store.hosted.migrated_files import DiskBytes
from mirror.store.local.blobs import LocalStore
from mirror.store.local.bucket_note import BucketNote
from mirror.store.local.file_tree import FileTree
from mirror.store.local.layout import Layout
from mirror.store.local.local_records import local_catalog
from mirror.store.local.locks import FileLocks
from mirror.store.objects.collected_keys import CollectedKeys
from mirror.store.objects.copied_files import CopiedFiles
from mirror.store.objects.digest_locks import DigestLocks
from mirror.store.objects.hosted_blobs import HostedObjects
from mirror.store.objects.local_copies import LocalCopies
from mirror.store.objects.migrated_objects import BucketBytes
from mirror.store.objects.record_listing import RecordListing
from mirror.store.objects.record_tree import Reads
from mirror.store.objects.state_records import BlobStates, StateViews

#: Held while the final pass runs, so that nothing is collected or deleted by rules meanwhile.
_STOPPED = ("collect", "retention")


class MigrationWay(Enum):
    """Where the content goes."""

    TO_BUCKET = "to the bucket"
    TO_DISK = "to the disk"


@dataclass(frozen=True, slots=True)
class SiteMigration:
    """The two stores of one configuration."""

    way: MigrationWay
    source: MigrationSide
    target: MigrationSide
    journal: SqliteMigrationJournal
    options: MigrationOptions
    _use: BucketUse
    _note: BucketNote
    _copies: LocalStore

    def make_pass(
        self, progress: MigrationProgress, *, rate: float | None, dry_run: bool, overwrite: bool
    ) -> Migration:
        """One pass. `rate` is in bytes per second."""
        options = MigrationOptions(
            self.options.registries, self.options.upstreams, self.options.kinds, overwrite=overwrite, dry_run=dry_run
        )
        limit = RateLimit(rate)
        return Migration(self.source, self.target, self.journal, options, progress, take=limit.take)

    def begin_final(self) -> None:
        """From here on, no mirror starts that uses the side that is left. Raises `MirrorError`, `StoreError`."""
        if self.way is MigrationWay.TO_DISK:
            if self._note.read() is None and not _is_migrating(self._use):
                raise MirrorError(
                    "the hosted content of this disk was never in this bucket: without --final, it is a copy of it"
                )
            self._use.owner.must_own()
            self._use.owner.set_migrating(True)

    def finish(self) -> None:
        """The target is the one that counts. Repeatable. Raises `StoreError`."""
        if self.way is MigrationWay.TO_DISK:
            self._note.drop()
            # without a bucket, nothing evicts them; the mirror may still run, so their folders stay
            with suppress(StoreError):
                for info in self._copies.walk():
                    self._copies.delete(info.digest)
            return
        self._note.write(self._use.owner.id)
        self._use.owner.set_migrating(False)


@contextmanager
def open_migration(config: Config, way: MigrationWay, *, final: bool, dry_run: bool) -> Iterator[SiteMigration]:
    """Opens both sides, and brings what is remembered of the bucket up to date. Blocking.

    Raises `ConfigError`, `MirrorError` if the content must not go this way, `StoreError`.
    """
    bucket = open_bucket(config)
    if bucket is None:
        raise ConfigError(["[store] bucket is not set: give the configuration that names the bucket with --config"])
    store = LocalStore(Layout(config.store.root))
    layout = store.layout
    with ExitStack() as stack:
        if final and not dry_run:
            _stop_others(FileLocks(layout), stack)
        use = stack.enter_context(closing(open_use(config, layout, store.id, bucket, migrates=True)))
        note = BucketNote(layout)
        _check_way(way, use, note)
        # creates the bucket's identity if there is none
        use.owner.confirm()
        if way is MigrationWay.TO_BUCKET:
            use.owner.must_own()
        for _ in RecordListing(use.bucket, use.memory).steps():
            pass
        journal = stack.enter_context(closing(SqliteMigrationJournal(layout.migration, f"{store.id} {use.owner.id}")))
        disk, far = _disk_side(layout), _bucket_side(layout, store, use, str(config.store.bucket))
        source, target = (disk, far) if way is MigrationWay.TO_BUCKET else (far, disk)
        options = MigrationOptions(
            [entry.name for entry in config.hosted],
            [entry.name for entry in config.upstream],
            sorted(BUCKET_KINDS),
        )
        yield SiteMigration(way, source, target, journal, options, use, note, CopiedFiles(store).copies)


@contextmanager
def open_cached_copy(
    config: Config, progress: MigrationProgress, *, rate: float | None, wait: Callable[[float], None]
) -> Iterator[CachedCopy]:
    """Opens what brings the cached content of the disk into the bucket, whether hosted content is there or not yet.
    `rate` is in bytes per second; `wait` waits for so many seconds, or raises to stop. Blocking. Raises `StoreError`.
    """
    bucket = open_bucket(config)
    if bucket is None:
        raise ConfigError(["[store] bucket is not set: give the configuration that names the bucket with --config"])
    store, limit = LocalStore(Layout(config.store.root)), RateLimit(rate)
    layout = store.layout
    with ExitStack() as stack:
        use = stack.enter_context(closing(open_use(config, layout, store.id, bucket, migrates=True)))
        if not _is_migrating(use):
            # a mirror may start with this bucket, also if this is its first use
            use = open_use(config, layout, store.id, bucket)
            stack.enter_context(closing(use))
        use.owner.must_own()
        catalog = local_catalog(layout)
        cache = open_bucket_cache(config, use.bucket, layout, store, catalog, FileLocks(layout), now=time.time)
        stack.enter_context(closing(cache.book))

        def read(count: int) -> None:
            progress.read(count)
            wait(limit.take(count))

        yield CachedCopy(cache.uploads, catalog, store, cache.keeps, read=read, wait=wait)


def _stop_others(locks: FileLocks, stack: ExitStack) -> None:
    for name in _STOPPED:
        lease = locks.try_hold_now(name)
        if lease is None:
            raise MirrorError(f"{_DOING[name]} at the moment: run the final pass once that has ended")
        stack.enter_context(lease)


_DOING = {"collect": "garbage collection runs", "retention": "retention runs"}


def _is_migrating(use: BucketUse) -> bool:
    identity = use.owner.identity()
    return identity is not None and identity.is_migrating


def _check_way(way: MigrationWay, use: BucketUse, note: BucketNote) -> None:
    """Raises `MirrorError` if the content of the source is not the one that counts."""
    identity, noted = use.owner.identity(), note.read()
    if way is MigrationWay.TO_DISK:
        if identity is None:
            raise MirrorError("there is nothing in this bucket: it has no mirror.json")
        if identity.is_migrating and noted is None:
            raise MirrorError(
                "this bucket is not the one that counts: a migration to it is not finished, or one from it is"
            )
    elif identity is not None and not identity.is_migrating:
        if noted == identity.id:
            raise MirrorError("the hosted content of this disk is in the bucket already; the way back is --to-disk")
        raise MirrorError("this bucket is used by a mirror already: give another prefix in [store] bucket")


def _disk_side(layout: Layout) -> MigrationSide:
    return MigrationSide("the disk", FileTree(layout), DiskBytes(layout, HostedNames(layout)), lambda kind: kind)


def _bucket_side(layout: Layout, store: LocalStore, use: BucketUse, address: str) -> MigrationSide:
    states = StateViews(asked=BlobStates(use.tree), remembered=BlobStates(use.tree.view(Reads.REMEMBERED)))
    objects = HostedObjects(
        use.bucket,
        states,
        LocalCopies(CopiedFiles(store)),
        DigestLocks(layout, "push"),
        CollectedKeys(use.bucket),
    )
    held = BucketBytes(objects, states.remembered, use.bucket, layout)
    return MigrationSide(address, use.tree.view(Reads.REMEMBERED), held, lambda kind: f"state/{kind}")

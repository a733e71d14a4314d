"""Work that one worker of a store does for all: clearing up after crashes, comparing index and disk, scrubbing,
forgetting old records. The quarantine is swept by the rounds of eviction.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from mirror import telemetry
from mirror.app.routes import forgetting_rule
from mirror.app.storage import (
    LEDGER_LOCK,
    SCRUB_LOCK,
    Storage,
    blob_places,
    pin_rules,
    quota_rules,
    scrub_records,
    sweep_and_report,
)
from mirror.config import Config
from mirror.errors import BucketUnavailable, IndexUnavailable, MirrorError, StoreError
from mirror.eviction.forgetting import Forgetting, Forgotten, forget_old
from mirror.eviction.giving_way import GivesWay
from mirror.eviction.reconcile import drop_loose_links, reconcile
from mirror.eviction.scrub import Owner, Scrub, scrub_when_due
from mirror.graph.damage import restore_hosted
from mirror.graph.manifests import has_blob
from mirror.hosting.ledger_upkeep import LedgerUpkeep
from mirror.hosting.quotas import Quotas, ScopeUsage
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo, read_repo
from mirror.ports import Uploads
from mirror.repository.caches import Caches
from mirror.repository.protocol import Fetchable
from mirror.repository.proxied import ProxiedRepository
from mirror.repository.router import Router
from mirror.rounds import KeptLock, run_rounds
from mirror.store.hosted.backup_folder import last_backup
from mirror.store.local.cached_records import LocalCachedRecords

#: Seconds between two sweeps of what crashes have left.
_SWEEP_EVERY = 3600.0
_COMPARE_EVERY = 86400.0
#: Seconds between two comparisons at the least, and the largest share of the time that comparisons may take: limits
#: for an index that comes and goes.
_COMPARE_AGAIN = 5.0
_COMPARING_SHARE = 0.05
#: Seconds between two completions of the ledger, and between two updates of its metrics.
_COMPLETE_EVERY = 3600.0
_SHOW_EVERY = 15.0
#: Seconds between two looks whether the bucket has been listed.
_LOOK_FOR_LIST = 2.0
#: Seconds between two walks over all records that forget old ones; from the start of the mirror to the first one, which
#: must not add to what a start does; and after one that has failed.
_FORGET_EVERY = 86400.0
_FORGET_FIRST = 900.0
_FORGET_AGAIN = 3600.0
#: Seconds between two attempts to take over the work of a worker that died.
_SUCCEED_AFTER = 30.0


class ReconcileTimer:
    """Says when index and disk are to be compared: at once, every day, and soon after an outage of the index.

    A comparison goes over the whole store. If the index comes and goes, this must not happen all the time: the pause
    after a comparison is at least twenty times as long as the comparison took.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        """`now` is a monotonic clock, in seconds."""
        self._now = now
        self._due_at = self._may_at = now()

    def wanted(self) -> None:
        """Brings the next comparison forward, because the index may have missed changes."""
        self._due_at = min(self._due_at, self._may_at)

    def due_in(self) -> float:
        """Seconds until the next comparison; 0 or less if it is due."""
        return self._due_at - self._now()

    def ended(self, began: float, *, done: bool) -> None:
        """Records the end of the comparison that began at `began`. If it is not `done`, it is repeated after the
        shortest pause.
        """
        now = self._now()
        self._may_at = now + max(_COMPARE_AGAIN, (now - began) / _COMPARING_SHARE)
        self._due_at = now + _COMPARE_EVERY if done else self._may_at


async def run_housekeeping(config: Config, storage: Storage) -> None:
    """Clears up after crashes and abandoned uploads at start and every hour; compares index and disk at start, every
    day, and after outages of the index.

    Only the process that holds a lock does this; if it dies, another process takes over. The comparison finds blobs
    that a worker published before it was killed, but did not enter in the index: without it they would never be
    evicted.
    """
    index_came_back = storage.eviction.write_behind.index_came_back
    comparisons = ReconcileTimer(time.monotonic)
    swept_at = -_SWEEP_EVERY

    def pause() -> float:
        return min(_SWEEP_EVERY, max(1.0, comparisons.due_in())) if house.lease else _SUCCEED_AFTER

    async def keep_house() -> float:
        nonlocal swept_at
        if index_came_back.is_set():
            index_came_back.clear()
            comparisons.wanted()
        if await house.taken():
            if time.monotonic() - swept_at >= _SWEEP_EVERY:
                swept_at = time.monotonic()
                await _sweep(config, storage)
            if comparisons.due_in() <= 0:
                await _compare(config, storage, comparisons)
        return pause()

    with KeptLock(partial(storage.locks.try_hold, "house")) as house:
        await run_rounds(
            keep_house,
            _SUCCEED_AFTER,
            failed="housekeeping failed",
            crashed="housekeeping crashed",
            after_error=pause,
            woken=index_came_back,
        )


async def _sweep(config: Config, storage: Storage) -> None:
    # first of all: a store of which a folder cannot be swept for days is still in use. If Redis does not answer, the
    # index says so
    with suppress(IndexUnavailable):
        await _sweep_redis(config, storage)
    swept = await asyncio.to_thread(sweep_and_report, config, storage.layout, keep=config.store.partials_max_age)
    if swept.partials or swept.strays:
        telemetry.log.info("leftover files deleted", partials=swept.partials, strays=swept.strays, bytes=swept.bytes)
    expired = await asyncio.to_thread(storage.hosted.uploads.sweep, time.time() - config.hosting.upload_timeout)
    if expired.sessions:
        telemetry.log.info("upload sessions expired", sessions=expired.sessions, bytes=expired.bytes)
    # while the bucket is down, nothing can be repaired in it
    with suppress(BucketUnavailable):
        telemetry.HOSTED_DAMAGED.set(await asyncio.to_thread(restore_hosted, storage.evictable, storage.hosted.blobs))
    # pins are read even if nothing is evicted, so that a damaged one is reported before an eviction needs it
    with suppress(StoreError):
        await asyncio.to_thread(storage.eviction.pinned.digests, time.time())


async def _sweep_redis(config: Config, storage: Storage) -> None:
    """Raises `IndexUnavailable`."""
    if url := config.index.url.get_secret_value():
        # imported here, so that a mirror without Redis does not load its library
        from mirror.index.redis_address import parse_redis_url
        from mirror.index.redis_stores import remove_gone_stores

        gone = await remove_gone_stores(parse_redis_url(url), storage.store.id, budget=max(1.0, config.index.timeout))
        if gone:
            telemetry.log.info("indexes of gone stores deleted", stores=list(gone))


async def _compare(config: Config, storage: Storage, comparisons: ReconcileTimer) -> None:
    began, done = time.monotonic(), False
    try:
        listed = await asyncio.to_thread(storage.bucket_is_listed)
        # a lost index is rebuilt by all workers together. What was done before a restart may be out of date
        rebuilt = await storage.eviction.rebuild()
        if rebuilt is None or rebuilt.resumed:
            async with storage.locks.hold("rebuild"):
                await reconcile(
                    storage.evictable,
                    storage.stored.evicted,
                    storage.index,
                    places=blob_places(config, storage),
                    give_way=GivesWay(storage.eviction.write_behind, now=time.time),
                )
        # without a list of the bucket, copies of hosted images were not known as such
        done = listed
    finally:
        comparisons.ended(began, done=done)


async def keep_ledger(config: Config, storage: Storage) -> None:
    """Completes the ledger of hosted content at start, every hour, and when it has missed a change; shows in the
    metrics how full the hosted registries are, and the open upload sessions. One process does this at a time.
    """
    if not config.hosted:
        return
    rules, hosted = quota_rules(config), storage.hosted
    quotas = Quotas(hosted.ledger, rules)
    upkeep = LedgerUpkeep(hosted.ledger, hosted.records, hosted.strict.catalog, [entry.name for entry in config.hosted])
    completed_at = -_COMPLETE_EVERY

    async def keep() -> float:
        nonlocal completed_at
        if not await lock.taken():
            return _SUCCEED_AFTER
        if not await asyncio.to_thread(storage.bucket_is_listed):
            return _LOOK_FOR_LIST
        due = time.monotonic() - completed_at >= _COMPLETE_EVERY
        if due or not await asyncio.to_thread(hosted.ledger.is_complete):
            corrections = await upkeep.complete()
            completed_at = time.monotonic()
            telemetry.LEDGER_COMPLETE.set(time.time())
            telemetry.log.info("ledger completed", corrections=corrections)
        for usage in await quotas.usage():
            _show_usage(usage)
        await _show_uploads(hosted.uploads)
        if (backed_up := await asyncio.to_thread(last_backup, storage.layout)) is not None:
            telemetry.BACKUP_COMPLETE.set(backed_up)
        return _SHOW_EVERY

    with KeptLock(partial(storage.locks.try_hold, LEDGER_LOCK)) as lock:
        await run_rounds(keep, _SUCCEED_AFTER, failed="ledger not completed", crashed="ledger upkeep crashed")


def _show_usage(usage: ScopeUsage) -> None:
    if usage.used is not None:
        telemetry.HOSTED_BYTES.labels(usage.scope).set(usage.used)
    if usage.limit is not None:
        telemetry.HOSTED_QUOTA.labels(usage.scope).set(usage.limit)


async def _show_uploads(uploads: Uploads) -> None:
    # if they cannot be listed, pushes fail as well, and the log has the reason
    with suppress(StoreError):
        sessions = await asyncio.to_thread(uploads.sessions)
        telemetry.UPLOADS_OPEN.set(len(sessions))
        telemetry.UPLOADS_OPEN_BYTES.set(sum(session.size for session in sessions))


async def run_scrubs(config: Config, storage: Storage, scrub: Scrub) -> None:
    """Hashes every blob every `scrub.every` seconds, the first time that long after the store was made."""
    if not config.scrub.every:
        return
    await scrub_when_due(
        scrub,
        # objects of a bucket are verified when they are read: to read all of them costs money
        storage.contents if storage.bucket is None else storage.evictable,
        scrub_records(storage.layout),
        every=config.scrub.every,
        since=storage.layout.marker.stat().st_mtime,
        try_hold=lambda: storage.locks.try_hold(SCRUB_LOCK),
    )


async def resume_lazy_pulls(storage: Storage, router: Router) -> None:
    """After a restart, lets the whole of blobs follow of which clients have read parts before. The worker that holds
    the lock does this for all, and once.
    """
    lease = None
    try:
        lease = await storage.locks.try_hold("lazy-pulls")
        if lease:
            for note in await asyncio.to_thread(storage.store.asked_in_parts):
                with suppress(MirrorError):
                    await _resume_parts(note, router)
            # none of the others begins it again while this one is here
            await asyncio.Event().wait()
    except StoreError as error:
        telemetry.log.warning("lazy blobs not found again", reason=str(error))
    finally:
        if lease:
            lease.release()


async def _resume_parts(note: Mapping[str, object], router: Router) -> None:
    """Raises `MirrorError` if the repository is not served any more."""
    repo = read_repo(str(note.get("repository")))
    repository = None if repo is None else router.repository(repo)
    if isinstance(repository, ProxiedRepository):
        await repository.resume_parts(Digest.parse(str(note.get("digest"))))


async def forget_when_due(config: Config, storage: Storage, now: Callable[[], float]) -> None:
    """Walks over all records and links once a day. One process of this disk does it. `now`: see `open_forgetting`."""
    forgetting = open_forgetting(config, storage, now)
    due_at = time.monotonic() + _FORGET_FIRST

    async def walk() -> float:
        nonlocal due_at
        if not await lock.taken():
            return _SUCCEED_AFTER
        if (wait := due_at - time.monotonic()) > 0:
            return wait
        await forgetting.walk()
        due_at = time.monotonic() + _FORGET_EVERY
        return _FORGET_EVERY

    with KeptLock(partial(storage.locks.try_hold, "forget")) as lock:
        await run_rounds(
            walk,
            _SUCCEED_AFTER,
            failed="records not forgotten",
            crashed="forgetting crashed",
            after_error=_FORGET_AGAIN,
        )


@dataclass(frozen=True, slots=True)
class RecordForgetting:
    """What one process forgets."""

    storage: Storage
    forgetting: Forgetting
    give_way: GivesWay

    async def walk(self) -> Forgotten:
        """Looks at all records, and forgets what is old, and at all links in the index. Raises `StoreError`."""
        index, evictor = self.storage.index, self.storage.eviction.evictor
        forgotten = await forget_old(self.forgetting, index, evictor.turn, give_way=self.give_way)
        # if the index does not answer, the next walk goes on
        with suppress(IndexUnavailable):
            await drop_loose_links(
                index, _looks(self.storage), growing=self.storage.store.growing, give_way=self.give_way
            )
        return forgotten


def open_forgetting(config: Config, storage: Storage, now: Callable[[], float]) -> RecordForgetting:
    """`now` is in epoch seconds; a clock that is set forward must not make records older."""
    # in a cluster, a pin or freeze may have been set at another replica a moment ago
    views = storage.hosted.strict if storage.cluster is not None else storage
    forgetting = Forgetting(
        LocalCachedRecords(storage.layout),
        views.pins,
        pin_rules(config),
        views.freezes,
        is_here=_looks(storage),
        after=forgetting_rule(config),
        hold=storage.locks.try_hold_now,
        now=now,
    )
    return RecordForgetting(storage, forgetting, GivesWay(storage.eviction.write_behind, now=time.time))


def _looks(storage: Storage) -> Callable[[Repo, Digest], bool]:
    """Says whether a blob is on the disk or, if cached content is kept there as well, in the bucket."""
    cache = storage.bucket_cache

    def is_here(repo: Repo, digest: Digest) -> bool:
        if has_blob(storage.store, digest):
            return True
        if cache is None or not cache.keeps(repo.registry):
            return False
        try:
            # a bucket that was not listed yet may have it
            return cache.book.find(digest) is not None or cache.book.completed_at() is None
        except IndexUnavailable as error:
            raise StoreError(f"it is not known what the bucket has: {error}") from error

    return is_here


def fetching_through(router: Router, caches: Caches) -> Callable[[Owner, Digest], Awaitable[None]]:
    """Returns a function that fetches a blob again as a client's request would."""

    async def fetch_again(owner: Owner, digest: Digest) -> None:
        repository = router.repository(owner.repo)
        if owner.is_manifest:
            # otherwise the manifest would be answered from memory, and nothing would be stored
            caches.manifests.pop((owner.repo, digest), None)
            await repository.manifest(digest)
        elif isinstance(repository, Fetchable):
            await repository.fetch(digest, lambda _received, _size: None)

    return fetch_again

"""Opens what answers pulls: the upstreams, the flights that download from them, and the repositories."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mirror.aio.background import BackgroundTasks
from mirror.aio.memo import MEMO_TAG, Memo, redis_cache
from mirror.aio.singleflight import cancel_and_wait
from mirror.app.hosting import Hosting, open_hosting
from mirror.app.routes import content_lists, route_rule
from mirror.app.storage import MISSES_LOCK, Storage
from mirror.app.upstreams import Upstreams
from mirror.app.virtual import open_virtual
from mirror.bucket_cache.cached_objects import CertainObjects
from mirror.config import Config
from mirror.fills.bucket_source import BucketReads
from mirror.fills.filler import Filler
from mirror.fills.flight import Flight
from mirror.fills.flights import Flights
from mirror.fills.lazy_pulls import LazyPulls
from mirror.fills.read_ahead import ReadAhead
from mirror.fills.sources import BlobSource
from mirror.graph.tiered_contents import TieredContents
from mirror.index.sorted_tags import LocalSortedTags
from mirror.intake.grants import Grants
from mirror.intake.intake import Intake
from mirror.intake.integrity import Integrity
from mirror.intake.store_health import StoreHealth
from mirror.intake.tag_history import TagHistories, TamperProofClock
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.rules import RouteRule
from mirror.ports import BlobInfo, BlobObjects
from mirror.repository.caches import Caches
from mirror.repository.copied_blobs import CopiedBlobs
from mirror.repository.miss_report import Misses
from mirror.repository.protocol import Readable
from mirror.repository.questions import Questions
from mirror.repository.router import Router
from mirror.repository.sealed import KeptBlobs
from mirror.repository.shared import Shared
from mirror.repository.tag_windows import TagWindows
from mirror.rounds import begin
from mirror.store.local.miss_file import LocalMisses
from mirror.trust.cosign import read_key
from mirror.values.sizes import parse_size

if TYPE_CHECKING:
    from mirror.fills.peer_source import PeerReads

#: An upper bound: threads are started when they are needed. Each fill uses one while it receives.
_FILLING_THREADS: Final = 256
#: Connections of one worker to Redis for answers that the replicas share.
_MEMO_CONNECTIONS: Final = 8


@dataclass(frozen=True, slots=True)
class Repositories:
    """The repositories that this worker serves, and what they share."""

    upstreams: Upstreams
    shared: Shared
    hosting: Hosting
    router: Router


async def open_repositories(
    config: Config, storage: Storage, stack: AsyncExitStack, now: Callable[[], float], steady: Callable[[], float]
) -> Repositories:
    """Opens everything that answers pulls; `stack` closes it. `now` is in epoch seconds; `steady`: see
    `TamperProofClock`. Raises `StoreError`, `ConfigError`.
    """
    filling = ThreadPoolExecutor(_FILLING_THREADS, "fill")
    stack.callback(filling.shutdown, wait=False, cancel_futures=True)
    memo = _open_memo(config, now)
    stack.push_async_callback(memo.aclose)
    upstreams = Upstreams(config, filling, memo)
    stack.push_async_callback(upstreams.aclose)
    upstreams.open()

    shared = _open_shared(
        config, storage, memo, filling, upstreams.table.label, now, TamperProofClock(now, steady), stack
    )
    hosting = open_hosting(config, storage, shared, upstreams.table.hosts_registry, stack)
    return Repositories(upstreams, shared, hosting, _open_router(config, storage, upstreams, shared, hosting, stack))


def _open_shared(
    config: Config,
    storage: Storage,
    memo: Memo,
    executor: Executor,
    label: Callable[[str], str],
    now: Callable[[], float],
    clocks: TamperProofClock,
    stack: AsyncExitStack,
) -> Shared:
    store, catalog, cache = storage.store, storage.catalog, storage.bucket_cache
    health, background = StoreHealth(now), BackgroundTasks()
    lists = LocalSortedTags(storage.layout.lists, parse_size(config.store.tag_lists_max_size), now=now)
    caches = Caches(store, catalog, TagWindows(lists), now)
    integrity = Integrity(store, caches.once, background)
    grants = Grants(storage.index, catalog, store)
    histories = TagHistories(
        catalog, storage.freezes, clocks, threads=None if storage.bucket is None else storage.bucket.threads.operators
    )
    intake = Intake(
        store,
        catalog,
        histories,
        grants,
        storage.eviction.write_behind,
        executor=executor,
        integrity=integrity,
        health=health,
        background=background,
        behind=cache.kept if cache else None,
    )

    async def published(info: BlobInfo, flight: Flight) -> None:
        await intake.record_blob(info)
        if cache is not None and not flight.source:
            cache.kept.published(flight.upstream, info.digest)

    lazy = None
    if any(route.ranges == "lazy" for route in config.route):
        patience = config.server.wait_for_upstream
        lazy = LazyPulls(store, storage.eviction.space, executor, label=label, patience=patience)
        storage.eviction.protection.add(lazy.digests)
    filler = Filler(
        store,
        storage.eviction.space,
        executor,
        published=published,
        label=label,
        found_wrong=lazy.found_wrong if lazy else None,
        patience=config.server.wait_for_upstream,
    )
    flights = Flights(filler)
    storage.eviction.protection.add(flights.digests)
    reads = None
    if storage.bucket is not None:
        reads = BucketReads(storage.bucket.bucket, executor, opening=storage.bucket.threads.requests)
    cached = _cached_blobs(storage, reads, intake, flights, integrity)
    shared = Shared(
        store=store,
        catalog=catalog,
        histories=histories,
        grants=grants,
        caches=caches,
        questions=Questions(memo, storage.locks.hold, health),
        integrity=integrity,
        intake=intake,
        flights=flights,
        ahead=ReadAhead(storage.eviction.space.limit, at_once=config.server.max_concurrent_prefetches),
        misses=_open_misses(storage, stack, now),
        background=background,
        executor=executor,
        label=label,
        bucket_reads=reads,
        nearer=cached.nearer,
        objects=cached.objects,
        peers=_peers(config, storage, stack),
        restores=cache.restoring if cache else None,
        kept=cached.kept,
        lazy=lazy,
        catch_up=_catch_up(storage),
    )
    stack.push_async_callback(shared.aclose)
    return shared


def _catch_up(storage: Storage) -> Callable[[], Awaitable[None]] | None:
    """See `Shared.catch_up`."""
    if storage.bucket is None or storage.bucket.journals is None:
        return None
    # imported here: a mirror without replicas does not even load it
    from mirror.app.clusters.journal_following import catches_up

    return catches_up(storage.bucket)


def _peers(config: Config, storage: Storage, stack: AsyncExitStack) -> Callable[[Repo], PeerReads | None]:
    """See `Shared.peers`."""
    if storage.cluster is None:
        return lambda _: None
    # imported here: a mirror without replicas does not even load it
    from mirror.app.clusters.blob_exchange import open_exchange

    return open_exchange(config, storage.cluster, storage.purges, stack)


@dataclass(frozen=True, slots=True)
class _CachedBlobs:
    """Where blobs of repositories come from whose content the bucket keeps; None for any other repository. See
    `Shared`.
    """

    nearer: Callable[[Repo], Callable[[Digest], BlobSource] | None] = lambda _: None
    objects: Callable[[Repo], BlobObjects | None] = lambda _: None
    kept: Callable[[Repo], KeptBlobs | None] = lambda _: None


def _cached_blobs(
    storage: Storage, reads: BucketReads | None, intake: Intake, flights: Flights, integrity: Integrity
) -> _CachedBlobs:
    cache = storage.bucket_cache
    if cache is None or reads is None:
        return _CachedBlobs()
    objects, keeps = cache.objects, cache.keeps
    certain = CertainObjects(objects)
    pulled = CopiedBlobs(
        storage.store,
        objects,
        reads,
        flights,
        integrity,
        touch=intake.touch,
        named=lambda _: None,
        failed=intake.health.failed,
    )
    stored = storage.eviction.write_behind.stored
    blobs = KeptBlobs(pulled, TieredContents(storage.store, reads.bucket, objects, stored=stored))
    return _CachedBlobs(
        nearer=lambda repo: (lambda digest: reads.cached(objects, digest)) if keeps(repo.registry) else None,
        objects=lambda repo: certain if keeps(repo.registry) else None,
        kept=lambda repo: blobs if keeps(repo.registry) else None,
    )


def _open_router(
    config: Config, storage: Storage, upstreams: Upstreams, shared: Shared, hosting: Hosting, stack: AsyncExitStack
) -> Router:
    def member(repo: Repo) -> Readable:
        return router.member(repo)

    def refuses(registry: str) -> bool:
        return storage.bucket is not None and registry in storage.bucket.owner.refused

    router = Router(
        upstreams.table,
        [(route.match, route_rule(route, config)) for route in config.route],
        RouteRule(offline=config.offline),
        upstreams.named,
        shared,
        hosted=hosting.repository,
        virtual=open_virtual(config, storage, shared, hosting, member) if config.virtual else None,
        lists=content_lists(config),
        keys={str(path): read_key(path) for route in config.route for path in route.signed_by},
        refuses=refuses,
    )
    upstreams.on_given_up(router.forget)
    stack.push_async_callback(router.aclose)
    return router


def _open_misses(storage: Storage, stack: AsyncExitStack, now: Callable[[], float]) -> Misses:
    misses = Misses(
        LocalMisses(storage.layout),
        storage.store,
        storage.catalog,
        exclusive=lambda: storage.locks.hold(MISSES_LOCK),
        now=now,
    )
    stack.push_async_callback(cancel_and_wait, begin(misses.run()))
    stack.push_async_callback(misses.aclose)
    return misses


def _open_memo(config: Config, now: Callable[[], float]) -> Memo:
    url, budget = config.index.url.get_secret_value(), config.index.timeout
    if not url:
        return Memo(budget=budget, now=now)
    from mirror.index.redis_address import parse_redis_url
    from mirror.index.redis_primary import RedisPool

    pool = RedisPool(parse_redis_url(url), MEMO_TAG, connections=_MEMO_CONNECTIONS, budget=budget)
    return Memo(shared=redis_cache(pool), budget=budget, now=now)

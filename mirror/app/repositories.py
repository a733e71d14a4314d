"""Opens what answers pulls: the upstreams, the flights that download from them, and the repositories."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

from mirror.aio.memo import Memo, redis_cache
from mirror.aio.singleflight import cancel_and_wait
from mirror.app.routes import content_lists, route_rule
from mirror.app.storage import MISSES_LOCK, Storage
from mirror.app.upstreams import Upstreams
from mirror.config import Config
from mirror.fills.flights import Flights
from mirror.fills.read_ahead import ReadAhead
from mirror.index.sorted_tags import LocalSortedTags
from mirror.policy.rules import RouteRule
from mirror.ports import BlobInfo
from mirror.repository.grants import Grants
from mirror.repository.miss_report import Misses
from mirror.repository.router import Router
from mirror.repository.shared import Shared
from mirror.repository.tag_history import TagHistories
from mirror.repository.tag_windows import TagWindows
from mirror.store.local.miss_file import LocalMisses
from mirror.trust.cosign import read_key
from mirror.values.sizes import parse_size

#: An upper bound: threads are started when they are needed. Each fill uses one while it receives.
_FILLING_THREADS: Final = 256


@dataclass(frozen=True, slots=True)
class Repositories:
    """The repositories that this worker serves, and what they share."""

    upstreams: Upstreams
    flights: Flights
    shelf: Shared
    router: Router


async def open_repositories(
    config: Config, storage: Storage, stack: AsyncExitStack, now: Callable[[], float]
) -> Repositories:
    """Opens everything that answers pulls; `stack` closes it. Raises `StoreError`, `ConfigError`."""
    filling = ThreadPoolExecutor(_FILLING_THREADS, "fill")
    stack.callback(filling.shutdown, wait=False, cancel_futures=True)
    memo = _open_memo(config, now)
    stack.push_async_callback(memo.aclose)
    upstreams = Upstreams(config, filling, memo)
    stack.push_async_callback(upstreams.aclose)
    upstreams.open()

    async def landed(info: BlobInfo) -> None:
        await shelf.landed(info)

    flights = Flights(
        storage.store,
        storage.eviction.space,
        filling,
        landed=landed,
        label=upstreams.label,
        patience=config.server.wait_for_upstream,
    )
    stack.push_async_callback(flights.aclose)
    storage.eviction.protection.add(flights.digests)
    misses = _open_misses(storage, stack, now)
    grants = Grants(storage.index, storage.catalog, storage.store)
    stack.push_async_callback(grants.aclose)
    shelf = Shared(
        flights=flights,
        store=storage.store,
        catalog=storage.catalog,
        index=storage.index,
        grants=grants,
        memo=memo,
        executor=filling,
        exclusive=storage.locks.hold,
        now=now,
        touch=storage.eviction.write_behind.touch,
        arrived=storage.eviction.write_behind.record_blob,
        name=storage.eviction.write_behind.record_references,
        histories=TagHistories(storage.catalog, storage.freezes),
        lists=TagWindows(LocalSortedTags(storage.layout.lists, parse_size(config.store.tag_lists_max_size), now=now)),
        label=upstreams.label,
        ahead=ReadAhead(storage.eviction.space.limit, at_once=config.server.max_concurrent_prefetches),
        misses=misses,
    )
    stack.push_async_callback(shelf.aclose)
    return Repositories(upstreams, flights, shelf, _open_router(config, upstreams, shelf, stack))


def _open_router(config: Config, upstreams: Upstreams, shelf: Shared, stack: AsyncExitStack) -> Router:
    router = Router(
        upstreams.table,
        [(route.match, route_rule(route, config)) for route in config.route],
        RouteRule(offline=config.offline),
        upstreams.named,
        shelf,
        lists=content_lists(config),
        keys={str(path): read_key(path) for route in config.route for path in route.signed_by},
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
    stack.push_async_callback(cancel_and_wait, asyncio.create_task(misses.run()))
    stack.push_async_callback(misses.aclose)
    return misses


def _open_memo(config: Config, now: Callable[[], float]) -> Memo:
    url = config.index.url.get_secret_value()
    shared = redis_cache(url, budget=config.index.timeout) if url else None
    return Memo(shared=shared, budget=config.index.timeout, now=now)

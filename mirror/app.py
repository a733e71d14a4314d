"""The composition root: the only file that knows every concrete class.

Read `build` from top to bottom for what is opened in which order; closing is the same list read upwards.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from mirror import __version__, telemetry
from mirror.access import issuer as issuer_of
from mirror.access.audit import AuditLog
from mirror.access.authentication import Authentication
from mirror.access.given import GivenToken, GivenTokens
from mirror.access.htpasswd import Htpasswd
from mirror.access.issued import IssuedTokens, read_keys
from mirror.access.issuer import Issuer
from mirror.config import (
    Config,
    IssuerSettings,
    ReachSettings,
    RouteSettings,
    SyncSettings,
    UpstreamSettings,
    masked,
    routing_table,
)
from mirror.errors import ConfigError, IndexUnavailable, StoreError
from mirror.index.embedded import EmbeddedIndex
from mirror.index.leases import RedisLeases
from mirror.index.redis import RedisIndex, parse_redis_url
from mirror.memo import Memo, redis_cache
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.once import end
from mirror.policy.access import Policy, Rule, actions
from mirror.policy.budget import Budget
from mirror.policy.content import ContentLists, ContentRule, patterns
from mirror.policy.eviction import Water
from mirror.policy.freshness import FreshnessRule
from mirror.policy.history import AgeRule
from mirror.policy.images import Image, parse_image
from mirror.policy.pins import PinRule
from mirror.policy.platforms import parse_platforms
from mirror.policy.routing import RoutingTable, compile_pattern
from mirror.policy.rules import RouteRule
from mirror.policy.selection import search
from mirror.policy.sizes import parse_capacity, parse_size
from mirror.ports import Authenticator, BlobInfo, ContentIndex
from mirror.repository.ahead import Ahead
from mirror.repository.cosign import read_key
from mirror.repository.evictor import Evictor
from mirror.repository.flights import Flights
from mirror.repository.grants import Grants
from mirror.repository.misses import Misses
from mirror.repository.names import NamesOnDisk
from mirror.repository.pins import PinnedContent
from mirror.repository.proxied import Shelf
from mirror.repository.purge import Purge
from mirror.repository.reconcile import ensure, reconcile
from mirror.repository.router import Router
from mirror.repository.scrub import Scrub, fetching_through, scrub_when_due
from mirror.repository.tag_history import TagHistories
from mirror.repository.verified import Verifier
from mirror.server.access import Gate
from mirror.server.admin import Admin
from mirror.server.front import Front
from mirror.server.health import Readiness, health_pages
from mirror.server.keeping import Keeping
from mirror.server.sending import Sender
from mirror.server.traffic import TrafficLog, total
from mirror.server.workers import UpstreamState, Workers
from mirror.store.board import Board
from mirror.store.catalog import LocalCatalog
from mirror.store.freezes import LocalFreezes
from mirror.store.layout import Layout
from mirror.store.local import LocalStore
from mirror.store.locks import Locks
from mirror.store.misses import LocalMisses
from mirror.store.notes import Notes
from mirror.store.pins import LocalPins
from mirror.store.purges import Purges
from mirror.store.recovery import sweep
from mirror.transfer.jobs import Jobs, prefetching
from mirror.transfer.schedule import Leases, Sync, SyncRule, SyncSource
from mirror.upstream.caller import CallersCredentials, acting_for
from mirror.upstream.credentials import Credentials, CredentialSource, GivenCredentials
from mirror.upstream.docker_config import DockerConfig
from mirror.upstream.endpoints import EndpointsUpstream
from mirror.upstream.providers import ProviderOptions, open_provider
from mirror.upstream.proxies import Proxies
from mirror.upstream.registry import RegistryUpstream, unverified

__all__ = [
    "MISSES_LOCK",
    "SCRUB_LOCK",
    "App",
    "Disk",
    "Storage",
    "age_rule",
    "build",
    "make_purge",
    "make_sync",
    "open_disk",
    "open_registries",
    "open_storage",
    "pin_rules",
    "routing_table",
    "scrub_notes",
    "scrub_of",
]

#: Locks over all processes of a store that commands take too.
MISSES_LOCK = "misses"
SCRUB_LOCK = "scrub"

#: Threads are made when they are needed; these are bounds. Each fill occupies one while it receives.
_FILLING_THREADS = 256
_SENDING_THREADS = 16
#: Passwords checked at once, a tenth of a second of a core each: guessing must not take the machine.
_CHECKING_THREADS = 2
#: Seconds between two looks at what crashes have left.
_SWEEP_EVERY = 3600.0
_COMPARE_EVERY = 86400.0
#: Seconds until the work of a dead worker is taken over.
_SUCCEED_AFTER = 30.0
#: Seconds that Redis may take for a lease at the least.
_LEASE_BUDGET = 1.0
#: Seconds after which a partial without a filler may go, where there is no other room.
_IDLE = 60.0


@dataclass(frozen=True, slots=True)
class Disk:
    """The truth alone: enough for the command line to look at what is here, and to say what must stay."""

    layout: Layout
    store: LocalStore
    catalog: LocalCatalog
    pins: LocalPins


@dataclass(slots=True)
class Storage:
    """Disk and index, and what keeps them in order: enough for the command line without a server."""

    layout: Layout
    store: LocalStore
    catalog: LocalCatalog
    freezes: LocalFreezes
    pins: LocalPins
    index: ContentIndex
    locks: Locks
    evictor: Evictor


@dataclass(slots=True)
class App:
    """A worker's part of the mirror."""

    front: Front
    readiness: Readiness
    router: Router
    shelf: Shelf
    storage: Storage
    sync: Sync
    jobs: Jobs
    admin: Admin


class _InFlight:
    """The evictor comes before the flights that it must spare: they are told to it once they exist."""

    def __init__(self) -> None:
        self.flights: Flights | None = None

    def digests(self) -> Collection[Digest]:
        return frozenset(self.flights.digests()) if self.flights else ()


def open_disk(config: Config) -> Disk:
    """Blocking; nothing is to be closed. Raises `StoreError`."""
    layout = Layout(config.store.root)
    return Disk(layout, LocalStore(layout), LocalCatalog(layout), LocalPins(layout))


@asynccontextmanager
async def open_storage(config: Config, in_flight: _InFlight | None = None) -> AsyncIterator[Storage]:
    """Open disk and index. Raises `StoreError`, `ConfigError`."""
    in_flight = in_flight or _InFlight()
    async with AsyncExitStack() as stack:
        disk = await asyncio.to_thread(open_disk, config)
        layout, store, catalog, pins = disk.layout, disk.store, disk.catalog, disk.pins
        locks = Locks(layout, secret=store.id)
        index = _open_index(config, layout, store.id)
        stack.push_async_callback(index.aclose)
        names = NamesOnDisk(store, catalog)
        freezes = LocalFreezes(layout)
        histories = TagHistories(catalog, freezes)
        evictor = Evictor(
            store,
            index,
            water=Water(parse_capacity(config.store.capacity), config.store.high_water, config.store.low_water),
            names=names,
            protected=in_flight.digests,
            pinned=PinnedContent(
                catalog,
                pins,
                pin_rules(config),
                names,
                answer=lambda repo, tag: histories.answer(repo, tag, age_rule(config, repo)),
            ).digests,
            exclusive=lambda: locks.named("evict"),
            rebuild=lambda: ensure(store, catalog, index, exclusive=lambda: locks.named("rebuild")),
            reclaim=lambda: sweep(layout, keep=_IDLE, now=time.time).bytes,
        )
        yield Storage(layout, store, catalog, freezes, pins, index, locks, evictor)


@asynccontextmanager
async def build(config: Config, *, housework: bool = True) -> AsyncIterator[App]:
    """Everything that one worker needs, opened; a command does without the `housework` of a server.

    Raises `StoreError`, `ConfigError`.
    """
    async with AsyncExitStack() as stack:
        in_flight = _InFlight()
        storage = await stack.enter_async_context(open_storage(config, in_flight))
        if config.offline:
            telemetry.log.info("sealed: no upstream is contacted")
        filling = ThreadPoolExecutor(_FILLING_THREADS, "fill")
        stack.callback(filling.shutdown, wait=False, cancel_futures=True)
        sending = ThreadPoolExecutor(_SENDING_THREADS, "send")
        stack.callback(sending.shutdown, wait=False, cancel_futures=True)

        memo = _open_memo(config)
        stack.push_async_callback(memo.aclose)
        upstreams = _Upstreams(config, filling, memo)
        stack.push_async_callback(upstreams.aclose)
        upstreams.open()

        async def landed(info: BlobInfo) -> None:
            await shelf.landed(info)

        flights = Flights(storage.store, storage.evictor, filling, landed=landed)
        stack.push_async_callback(flights.aclose)
        in_flight.flights = flights
        misses = Misses(
            LocalMisses(storage.layout),
            storage.store,
            storage.catalog,
            exclusive=lambda: storage.locks.named(MISSES_LOCK),
            now=lambda: shelf.now(),
        )
        noting = asyncio.create_task(misses.run())
        stack.push_async_callback(end, noting)
        stack.push_async_callback(misses.aclose)
        grants = Grants(storage.index, storage.catalog, storage.store)
        stack.push_async_callback(grants.aclose)
        shelf = Shelf(
            flights=flights,
            store=storage.store,
            catalog=storage.catalog,
            index=storage.index,
            grants=grants,
            memo=memo,
            executor=filling,
            exclusive=storage.locks.exclusive,
            touch=storage.evictor.touch,
            name=storage.evictor.name,
            histories=TagHistories(storage.catalog, storage.freezes),
            label=upstreams.label,
            ahead=Ahead(storage.evictor.limit, at_once=config.server.prefetch_blobs_at_once),
            misses=misses,
        )
        stack.push_async_callback(shelf.aclose)

        readiness = Readiness()
        router = Router(
            upstreams.table,
            [(route.match, _rule(route, config)) for route in config.route],
            RouteRule(offline=config.offline),
            upstreams.named,
            shelf,
            lists=ContentLists(patterns(config.content.allow), patterns(config.content.deny)),
            keys={str(path): read_key(path) for route in config.route for path in route.signed_by},
        )
        stack.push_async_callback(router.aclose)
        sender = Sender(sending, stall=config.server.client_stall)
        gate = await _open_gate(config, storage.layout, upstreams.label, stack)
        audit = None
        if config.access.audit_log is not None:
            audit = AuditLog(config.access.audit_log)
            stack.callback(audit.close)
        front = Front(
            router,
            sender,
            health_pages(readiness),
            log_requests=config.server.access_log,
            gate=gate,
            audit=audit,
        )

        sync = make_sync(config, storage, router.guarded, _open_leases(config, storage, stack))

        def parse(text: str) -> Image:
            return parse_image(text, upstreams.table)

        jobs = Jobs(
            *(Notes(storage.layout, kind) for kind in ("jobs", "job-queue", "job-cancels")),
            hold=storage.locks.try_hold,
            alone=storage.locks.named,
            work={"prefetch": prefetching(router.guarded, parse), "sync": sync.job},
        )
        workers = _make_workers(storage, shelf, flights, upstreams)
        traffic = TrafficLog(Notes(storage.layout, "traffic"), hold=storage.locks.try_hold)
        admin = Admin(
            jobs,
            sync,
            Keeping(
                storage.store,
                storage.catalog,
                storage.pins,
                storage.freezes,
                storage.index,
                storage.evictor,
                make_purge(config, storage, shelf),
                rules=pin_rules(config),
                search=lambda text: search(text, upstreams.table),
            ),
            workers,
            traffic,
            parse_image=parse,
            status=_Status(config, storage, workers),
            config=masked(config),
            version=__version__,
            gate=gate if config.access.has_admins else None,
            audit=audit,
        )
        app = App(front, readiness, router, shelf, storage, sync, jobs, admin)

        if housework:
            keeping = (storage.evictor.run(), _keep_house(config, storage), _keep_scrubbing(config, app))
            for work in (*keeping, workers.run(), traffic.run()):
                task = asyncio.create_task(work)
                stack.push_async_callback(end, task)
        stack.push_async_callback(storage.evictor.flush)
        yield app


async def _open_gate(config: Config, layout: Layout, label: Callable[[str], str], stack: AsyncExitStack) -> Gate | None:
    """None where nobody has to be asked who they are. `label` gives the entry that a registry falls under."""
    access = config.access
    verified = {entry.name for entry in config.upstream if entry.access == "verify"}
    if access.is_open and not verified:
        return None
    key_file = access.token_key_file or layout.root / "token.key"
    keys = await asyncio.to_thread(read_keys, key_file, make=access.token_key_file is None)
    issued = IssuedTokens(keys, lifetime=access.token_lifetime)
    ways: list[Authenticator] = [issued]
    if access.token:
        ways.append(
            GivenTokens(
                GivenToken(one.name, one.token.get_secret_value(), frozenset(one.groups))
                for one in access.token
                if one.token is not None
            )
        )
    for one in access.issuer:
        issuer = Issuer(_issuer(one))
        stack.push_async_callback(issuer.aclose)
        ways.append(issuer)
    if access.htpasswd is not None:
        checking = ThreadPoolExecutor(_CHECKING_THREADS, "check")
        stack.callback(checking.shutdown, wait=False, cancel_futures=True)
        members = {name for listed in access.groups.values() for name in listed}
        groups = {
            name: frozenset(group for group, listed in access.groups.items() if name in listed) for name in members
        }
        accounts = Htpasswd(access.htpasswd, checking, groups)
        await asyncio.to_thread(accounts.load)
        ways.append(accounts)
    authentication = Authentication(ways, foreign=bool(verified))
    stack.push_async_callback(authentication.aclose)
    rules = tuple(
        Rule(rule.effect == "allow", tuple(rule.who), actions(rule.actions), tuple(rule.repositories))
        for rule in access.rule
    )
    verifier = Verifier(acting_for, keep=access.verified_for, keep_while_down=access.verified_while_down)
    stack.push_async_callback(verifier.aclose)
    return Gate(
        authentication,
        Policy(rules, anonymous=access.anonymous),
        issued,
        verifier_of=lambda registry: verifier if label(registry) in verified else None,
        realm=access.realm,
    )


def _issuer(one: IssuerSettings) -> issuer_of.IssuerSettings:
    return issuer_of.IssuerSettings(
        one.issuer,
        one.audience,
        one.keys_url,
        one.keys_file,
        one.issuer_ca_file,
        one.bearer_file,
        one.name_claim,
        one.groups_claim,
        one.prefix,
    )


def pin_rules(config: Config) -> list[PinRule]:
    """Which images stay because the configuration says so."""
    return [PinRule(pin.match, pin.reason) for pin in config.pin]


@asynccontextmanager
async def open_registries(config: Config) -> AsyncIterator[list[RegistryUpstream]]:
    """Every configured registry at each of its addresses, to be checked; those with a wildcard are none yet.

    Raises `ConfigError`.
    """
    async with AsyncExitStack() as stack:
        executor = ThreadPoolExecutor(2, "check")
        stack.callback(executor.shutdown, wait=False, cancel_futures=True)
        memo = Memo()
        stack.push_async_callback(memo.aclose)
        upstreams = _Upstreams(config, executor, memo)
        stack.push_async_callback(upstreams.aclose)
        yield upstreams.open()


def _rule(route: RouteSettings, config: Config) -> RouteRule:
    return RouteRule(
        FreshnessRule(route.tag_ttl, route.stale_while_down),
        offline=config.offline or route.offline,
        age=AgeRule(route.minimum_age, serve_new=route.minimum_age_new == "serve"),
        content=ContentRule(
            route.require_digest,
            None if route.max_size is None else parse_size(route.max_size),
            tuple(str(path) for path in route.signed_by),
        ),
        prefetch=route.prefetch,
    )


def age_rule(config: Config, repo: Repo) -> AgeRule:
    """What the first route that fits says of a repository, for the command line; a sealed one has no minimum age."""
    rule = _route_rule(config, repo)
    return AgeRule() if rule.offline else rule.age


def _route_rule(config: Config, repo: Repo) -> RouteRule:
    fitting = (route for route in config.route if compile_pattern(route.match).fullmatch(str(repo)))
    return next((_rule(route, config) for route in fitting), RouteRule(offline=config.offline))


def make_sync(
    config: Config, storage: Storage, source_for: Callable[[Repo], SyncSource], leases: Leases | None = None
) -> Sync:
    """The sync rules of the configuration, with what is on disk about them."""
    table = routing_table(config)
    return Sync(
        [_sync_rule(rule, table, config) for rule in config.sync],
        source_for,
        Notes(storage.layout, "sync"),
        hold=storage.locks.try_hold,
        leases=leases,
        seed=storage.store.id,
    )


def _sync_rule(settings: SyncSettings, table: RoutingTable, config: Config) -> SyncRule:
    repo = settings.repository(table)
    return SyncRule(
        settings.title,
        repo,
        settings.tag_set,
        settings.plan,
        parse_platforms(settings.platforms),
        settings.referrers,
        settings.every_replica,
        _route_rule(config, repo).offline,
    )


def _open_leases(config: Config, storage: Storage, stack: AsyncExitStack) -> RedisLeases | None:
    """Where replicas that share a Redis agree who syncs; not on the path of any request, so it may take its time."""
    url = config.index.url.get_secret_value()
    if not url or not config.sync:
        return None
    budget = max(_LEASE_BUDGET, config.index.timeout)
    leases = RedisLeases(parse_redis_url(url), owner=storage.store.id, budget=budget)
    stack.push_async_callback(leases.aclose)
    return leases


class _Status:
    """What the admin API tells of all workers and the store."""

    def __init__(self, config: Config, storage: Storage, workers: Workers) -> None:
        self._offline = config.offline
        self._storage = storage
        self._workers = workers

    async def __call__(self) -> dict[str, Any]:
        held, limit = await self._storage.evictor.fullness()
        workers = await self._workers.workers()
        return {
            "version": __version__,
            "worker": os.getpid(),
            "uptime": round(self._workers.uptime, 1),
            "workers": workers,
            "store": {"root": str(self._storage.layout.root), "bytes": held, "limit": limit},
            "flights": len(await self._workers.flights()),
            "traffic": (await asyncio.to_thread(total)).to_json(),
            "offline": self._offline,
        }


def _make_workers(storage: Storage, shelf: Shelf, flights: Flights, upstreams: _Upstreams) -> Workers:
    purges = Purges(Notes(storage.layout, "purges"))

    def look() -> None:
        for repo, tags, digests in purges.new():
            shelf.forget(repo, tags, digests)

    return Workers(Board(storage.layout, hold=storage.locks.try_hold), flights, upstreams.states, look=look)


def make_purge(config: Config, storage: Storage, shelf: Shelf | None = None) -> Purge:
    """What drops an image: here, and from the memory of every process of this store."""
    purges = Purges(Notes(storage.layout, "purges"))

    def forget(repo: Repo, tags: Collection[str], digests: Collection[Digest]) -> None:
        if shelf is not None:
            shelf.forget(repo, tags, digests)
        purges.tell(repo, tags, digests)

    return Purge(
        storage.store,
        storage.catalog,
        storage.pins,
        pin_rules(config),
        storage.freezes,
        storage.index,
        storage.evictor,
        forget=forget,
    )


def scrub_of(
    app: App, *, rate: float | None, repair: bool = True, read: Callable[[int], None] = lambda _: None
) -> Scrub:
    """What hashes blobs, at most `rate` bytes per second, and fetches damaged ones again; `read` is told of bytes."""
    return Scrub(
        app.storage.store,
        app.storage.catalog,
        rate=rate,
        fetch_again=fetching_through(app.router, app.shelf) if repair else None,
        may_fetch=lambda repo: not app.router.rule_for(repo).offline,
        read=read,
    )


def scrub_notes(layout: Layout) -> Notes:
    """How far the scrub of everything is."""
    return Notes(layout, "scrub")


def _open_index(config: Config, layout: Layout, store_id: str) -> ContentIndex:
    if url := config.index.url.get_secret_value():
        return RedisIndex(parse_redis_url(url), store_id=store_id, budget=config.index.timeout)
    return EmbeddedIndex(layout.root / "index.sqlite")


def _open_memo(config: Config) -> Memo:
    url = config.index.url.get_secret_value()
    return Memo(shared=redis_cache(url, budget=config.index.timeout) if url else None, budget=config.index.timeout)


async def _keep_house(config: Config, storage: Storage) -> None:
    """What crashes have left is cleared up at start and every hour; index and disk are compared at start and every day.

    One process does it, the one that holds a lock; when it dies another takes its place. The comparison finds blobs
    that were published, but not remembered, by a worker that was killed in between: nobody would ever evict them.
    """
    held = None
    compared_at = -_COMPARE_EVERY
    try:
        while True:
            try:
                held = held or storage.locks.try_hold("house")
                if held:
                    swept = await asyncio.to_thread(
                        sweep, storage.layout, keep=config.store.keep_partials, now=time.time
                    )
                    if swept.partials or swept.strays:
                        telemetry.log.info("swept", partials=swept.partials, strays=swept.strays, bytes=swept.bytes)
                    if time.monotonic() - compared_at >= _COMPARE_EVERY:
                        async with storage.locks.named("rebuild"):
                            await reconcile(storage.store, storage.catalog, storage.index)
                        compared_at = time.monotonic()
            except (StoreError, IndexUnavailable) as error:
                telemetry.log.warning("keeping house failed", reason=str(error))
            except Exception:
                # whatever it was: without this task nothing is ever cleared up again
                telemetry.log.exception("keeping house crashed")
            await asyncio.sleep(_SWEEP_EVERY if held else _SUCCEED_AFTER)
    finally:
        if held:
            os.close(held)


async def _keep_scrubbing(config: Config, app: App) -> None:
    """Every blob is hashed once a while; the first time so long after the store was made."""
    if not config.scrub.every:
        return
    layout = app.storage.layout
    await scrub_when_due(
        scrub_of(app, rate=parse_size(config.scrub.rate)),
        app.storage.store,
        scrub_notes(layout),
        every=config.scrub.every,
        since=layout.marker.stat().st_mtime,
        try_hold=lambda: app.storage.locks.try_hold(SCRUB_LOCK),
    )


class _Upstreams:
    """Upstreams by the name that content is filed under, made when first needed. One entry with a wildcard makes one
    for each host: credentials and connections of one are never used for another.
    """

    def __init__(self, config: Config, executor: Executor, memo: Memo) -> None:
        self._executor = executor
        self._memo = memo
        self._settings = {entry.name: entry for entry in config.upstream}
        self.table = routing_table(config)
        self._made: dict[str, RegistryUpstream | EndpointsUpstream] = {}

    def open(self) -> list[RegistryUpstream]:
        """Make every registry that has no wildcard, so that mistakes show at start; each address of each.

        Nobody is contacted. Raises `ConfigError`.
        """
        opened: list[RegistryUpstream] = []
        for name in self._settings:
            if not name.startswith("*."):
                upstream = self.named(name)
                opened += upstream.members if isinstance(upstream, EndpointsUpstream) else [upstream]
        return opened

    def named(self, name: str) -> RegistryUpstream | EndpointsUpstream:
        """The upstream of a registry that the table knows."""
        found = self._made.get(name)
        if found is None:
            known = self.table.registry(name)
            if known is None:
                raise KeyError(name)
            found = self._made[name] = self._make(name, self._settings[known[1].name])
        return found

    def label(self, name: str) -> str:
        """The entry that a registry falls under: bounded by the configuration, where names under a wildcard are not."""
        known = self.table.registry(name)
        return known[1].name if known else ""

    def _make(self, name: str, settings: UpstreamSettings) -> RegistryUpstream | EndpointsUpstream:
        label = settings.name  # bounded by the configuration, where names under a wildcard are not

        def observe(event: str, status: int | None, seconds: float) -> None:
            telemetry.UPSTREAM_REQUESTS.labels(label, event, status or 0).inc()
            telemetry.UPSTREAM_SECONDS.labels(label, event).observe(seconds)

        def on_budget(budget: Budget) -> None:
            telemetry.BUDGET_LIMIT.labels(label).set(budget.limit)
            telemetry.BUDGET_REMAINING.labels(label).set(budget.remaining)

        def at(url: str, reach: ReachSettings, names: Sequence[str], **more: Any) -> RegistryUpstream:
            tls, identity = _tls(name, reach)
            proxies = _proxies(reach)
            return RegistryUpstream(
                name,
                url,
                executor=self._executor,
                memo=self._memo,
                credentials=_for_callers(settings, _credentials(name, url, reach, names, identity or tls, proxies)),
                allowed=reach.token_hosts,
                verify=tls,
                identity=identity,
                proxies=proxies,
                connect_timeout=settings.connect_timeout,
                read_timeout=settings.read_timeout,
                blobs_at_once=settings.blobs_at_once,
                user_agent=f"registry-mirror/{__version__}",
                observe=observe,
                **more,
            )

        own = at(settings.url or f"https://{name}", settings, [name, *settings.aliases], on_budget=on_budget)
        # where there is another endpoint to go to, nothing is gained by trying the same one again
        mirrors = [at(one.url, one, [urlsplit(one.url).netloc], retries=0) for one in settings.endpoints]
        return EndpointsUpstream([*mirrors, own], hedge_after=settings.hedge_after) if mirrors else own

    def states(self) -> list[UpstreamState]:
        """How each that is in use is doing; times are epoch seconds."""
        return [self._state(name, upstream) for name, upstream in list(self._made.items())]

    def _state(self, name: str, upstream: RegistryUpstream | EndpointsUpstream) -> UpstreamState:
        budget = upstream.budget
        return {
            "name": name,
            "endpoints": [
                {
                    "url": telemetry.redact(health.url),
                    "state": health.state,
                    "failures": health.failures,
                    "retry_at": round(time.time() + health.retry_in) if health.retry_in else 0,
                }
                for health in upstream.health()
            ],
            "budget": None
            if budget is None
            else {
                "limit": budget.limit,
                "remaining": budget.remaining,
                "window": budget.window,
                "seen": budget.seen_at,
            },
        }

    async def aclose(self) -> None:
        for upstream in self._made.values():
            await upstream.aclose()


def _for_callers(settings: UpstreamSettings, own: CredentialSource) -> CredentialSource:
    return CallersCredentials(own) if settings.access == "verify" else own


def _credentials(
    name: str,
    url: str,
    reach: ReachSettings,
    names: Sequence[str],
    tls: bool | ssl.SSLContext,
    proxies: Proxies,
) -> CredentialSource:
    if reach.docker_config is not None:
        source = DockerConfig(reach.docker_config, names, upstream=name)
        source.check()
        return source
    if reach.provider is not None:
        context = tls if isinstance(tls, ssl.SSLContext) else None if tls else unverified()
        proxy = reach.proxy.get_secret_value() if reach.proxy else None
        proxy = None if proxy == "env" else proxy
        options = _provider_options(reach)
        return open_provider(name, reach.provider, url, options, tls=context, proxy=proxy, proxies=proxies)
    if reach.username is not None and reach.password is not None:
        return GivenCredentials(Credentials(reach.username, reach.password.get_secret_value()))
    return GivenCredentials()


def _proxies(reach: ReachSettings) -> Proxies:
    return Proxies.given(reach.proxy.get_secret_value() if reach.proxy else None)


def _provider_options(settings: ReachSettings) -> ProviderOptions:
    return ProviderOptions(
        key_file=settings.key_file,
        region=settings.region,
        role_arn=settings.role_arn,
        tenant=settings.tenant_id,
        client_id=settings.client_id,
        client_secret=settings.client_secret.get_secret_value() if settings.client_secret else None,
        token_file=settings.token_file,
        provider_url=settings.provider_url,
        sts_url=settings.sts_url,
        metadata_url=settings.metadata_url,
    )


def _tls(name: str, reach: ReachSettings) -> tuple[bool | ssl.SSLContext, ssl.SSLContext | None]:
    """How certificates are checked, and the context that shows ours to the registry itself."""
    verify: bool | ssl.SSLContext = reach.verify_tls
    try:
        if reach.ca_file is not None and reach.verify_tls:
            verify = ssl.create_default_context(cafile=reach.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError([f"upstream {name}: ca_file {reach.ca_file} holds no certificate"]) from error
    if reach.client_certificate is None or reach.client_key is None:
        return verify, None
    identity = ssl.create_default_context(cafile=reach.ca_file) if reach.verify_tls else unverified()
    identity.set_alpn_protocols(["http/1.1"])
    try:
        identity.load_cert_chain(reach.client_certificate, reach.client_key)
    except (OSError, ssl.SSLError) as error:
        pair = f"{reach.client_certificate} and {reach.client_key}"
        raise ConfigError([f"upstream {name}: client_certificate, client_key: {pair} are no matching pair"]) from error
    return verify, identity

"""The upstream registries: one object for each name, with its own connections and credentials."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Final, Protocol
from urllib.parse import urlsplit

from mirror import __version__, telemetry
from mirror.aio.closing import close_all
from mirror.aio.memo import Memo
from mirror.caller import caller_mark
from mirror.config import (
    Config,
    ReachSettings,
    UpstreamSettings,
    routing_table,
)
from mirror.errors import ConfigError, UpstreamError
from mirror.policy.upstream.budget import Budget
from mirror.server.admin.worker_status import BudgetStatus, EndpointStatus, LoginStatus, UpstreamStatus
from mirror.store.local.layout import Layout
from mirror.upstream.credentials.docker_config import DockerConfig
from mirror.upstream.credentials.of_caller import CallersCredentials
from mirror.upstream.credentials.provider_options import ProviderOptions
from mirror.upstream.credentials.providers import open_provider
from mirror.upstream.credentials.secret_files import PasswordFile
from mirror.upstream.credentials.source import Credentials, CredentialSource, GivenCredentials
from mirror.upstream.endpoints import EndpointsUpstream
from mirror.upstream.http.page_file import ListBounds
from mirror.upstream.http.proxies import Proxies
from mirror.upstream.http.transport import Endpoint, Timeouts, Tls, unverified
from mirror.upstream.parameters import Hooks, Limits
from mirror.upstream.registry import RegistryUpstream
from mirror.upstream.registry_writer import RegistryWriter
from mirror.values.sizes import parse_size

#: The most hosts under wildcards that have an upstream at the same time.
MOST_HOSTS: Final = 200
#: Seconds until an upstream that was given up is closed: longer than any small answer may take. Blobs that are being
#: read are read to the end.
_PARTING: Final = 60.0


class Upstreams:
    """The upstreams by registry name, each made when it is first needed.

    An entry with a wildcard makes one upstream per host: the credentials and connections of one host are never used for
    another.

    Clients can invent any number of hosts under a wildcard. When there are `MOST_HOSTS` of them, the half that was used
    least recently is given up: the callbacks of `on_given_up` are called, and the connections are closed a minute
    later, so that requests under way can end. An upstream that is needed again is made again.
    """

    def __init__(self, config: Config, executor: Executor, memo: Memo) -> None:
        self._executor = executor
        self._memo = memo
        self._lists = ListBounds(Layout(config.store.root).lists, parse_size(config.store.tag_lists_max_size))
        self._settings = {entry.name: entry for entry in config.upstream}
        self.table = routing_table(config)
        #: In the order of their last use, the most recent one last.
        self._made: dict[str, RegistryUpstream | EndpointsUpstream] = {}
        #: Upstreams that were given up, and the timers that will close them.
        self._parting: dict[int, tuple[asyncio.TimerHandle, list[RegistryUpstream | EndpointsUpstream]]] = {}
        self._writers: dict[str, RegistryWriter] = {}
        self._gone = 0
        self._closing: set[asyncio.Task[None]] = set()
        self._given_up: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<Upstreams made={list(self._made)[:10]} parting={len(self._parting)}>"

    def open(self) -> list[RegistryUpstream]:
        """Makes the upstreams of all entries without a wildcard, so that mistakes show at start. Returns one per
        address.

        No registry is contacted. Raises `ConfigError`.
        """
        opened: list[RegistryUpstream] = []
        for name in self._settings:
            if not name.startswith("*."):
                upstream = self.named(name)
                opened += upstream.members if isinstance(upstream, EndpointsUpstream) else [upstream]
        return opened

    def named(self, name: str) -> RegistryUpstream | EndpointsUpstream:
        """The upstream of a registry. Raises `KeyError` if the routing table does not know the name."""
        upstream = self._made.pop(name, None)
        if upstream is None:
            route = self.table.registry(name)
            if route is None:
                raise KeyError(name)
            upstream = self._make(name, self._settings[route[1].name])
            if name not in self._settings:
                self._make_room()
        self._made[name] = upstream
        return upstream

    def on_given_up(self, call: Callable[[], None]) -> None:
        """Registers a function that is called when upstreams are given up; it drops what still uses them."""
        self._given_up.append(call)

    def _make_room(self) -> None:
        hosts = [name for name in self._made if name not in self._settings]
        if len(hosts) < MOST_HOSTS:
            return
        parting = [self._made.pop(name) for name in hosts[: MOST_HOSTS // 2]]
        for call in self._given_up:
            call()
        self._gone += 1
        timer = asyncio.get_running_loop().call_later(_PARTING, self._part, self._gone)
        self._parting[self._gone] = timer, parting

    def _part(self, number: int) -> None:
        _, parting = self._parting.pop(number)
        task = asyncio.create_task(_close(parting))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _make(self, name: str, settings: UpstreamSettings) -> RegistryUpstream | EndpointsUpstream:
        label = settings.name

        def on_budget(budget: Budget) -> None:
            telemetry.BUDGET_LIMIT.labels(label).set(budget.limit)
            telemetry.BUDGET_REMAINING.labels(label).set(budget.remaining)

        of_mirrors = replace(_counting(label), whose=caller_mark if settings.access == "verify" else lambda: "")
        limits = Limits(
            blobs_at_once=settings.max_concurrent_downloads,
            connections_per_blob=settings.connections_per_blob,
            lists=self._lists,
        )

        def at(
            url: str, reach: ReachSettings, names: Sequence[str], *, limits: Limits, hooks: Hooks
        ) -> RegistryUpstream:
            endpoint = _endpoint(name, url, reach, settings)
            return RegistryUpstream(
                endpoint,
                executor=self._executor,
                memo=self._memo,
                credentials=_for_callers(settings, _credentials(endpoint, reach, names)),
                limits=limits,
                hooks=hooks,
            )

        own = at(
            settings.url or f"https://{name}",
            settings,
            [name, *settings.aliases],
            limits=limits,
            hooks=replace(of_mirrors, on_budget=on_budget),
        )
        # no retries: if one endpoint fails, the next one is asked
        once = replace(limits, retries=0)
        mirrors = [
            at(mirror.url, mirror, [urlsplit(mirror.url).netloc], limits=once, hooks=of_mirrors)
            for mirror in settings.endpoints
        ]
        return EndpointsUpstream([*mirrors, own], hedge_after=settings.hedge_after) if mirrors else own

    def takes_pushes(self, name: str) -> bool:
        """True if the configuration lets this mirror push to the registry."""
        settings = self._settings.get(self.table.label(name))
        return settings is not None and settings.push

    def writer(self, name: str) -> RegistryWriter:
        """What pushes to a registry, to its own address and to none of its mirrors; made when it is first needed.
        Raises `KeyError` if the configuration does not allow it.
        """
        writer = self._writers.get(name)
        if writer is None:
            if not self.takes_pushes(name):
                raise KeyError(name)
            settings = self._settings[self.table.label(name)]
            endpoint = _endpoint(name, settings.url or f"https://{name}", settings, settings)
            credentials = _credentials(endpoint, settings, [name, *settings.aliases])
            hooks = _counting(settings.name)
            writer = RegistryWriter(endpoint, executor=self._executor, credentials=credentials, hooks=hooks)
            self._writers[name] = writer
        return writer

    def states(self) -> list[UpstreamStatus]:
        """The status of each upstream in use."""
        return [self._state(name, upstream) for name, upstream in list(self._made.items())]

    def _state(self, name: str, upstream: RegistryUpstream | EndpointsUpstream) -> UpstreamStatus:
        endpoints = [
            EndpointStatus(
                url=telemetry.redact(health.url),
                state=health.state,
                failures=health.failures,
                retry_at=round(time.time() + health.retry_in) if health.retry_in else 0,
                logins=[
                    LoginStatus(login.provider, login.reason, login.since, login.failed_at, login.worked_at)
                    for login in health.logins
                ],
                reason=health.reason,
            )
            for health in upstream.health()
        ]
        budget = upstream.budget
        if budget is None:
            return UpstreamStatus(name, endpoints, None)
        seen = BudgetStatus(budget.limit, budget.remaining, budget.window, budget.seen_at)
        return UpstreamStatus(name, endpoints, seen)

    async def aclose(self) -> None:
        parting, self._parting = self._parting, {}
        for timer, _ in parting.values():
            timer.cancel()
        await close_all(
            *(partial(_close, upstreams) for _, upstreams in parting.values()),
            lambda: asyncio.gather(*self._closing),
            lambda: _close(self._made.values()),
            *(writer.aclose for writer in self._writers.values()),
        )


async def _close(upstreams: Iterable[RegistryUpstream | EndpointsUpstream]) -> None:
    await close_all(*(upstream.aclose for upstream in upstreams))


@asynccontextmanager
async def open_registries(config: Config) -> AsyncIterator[list[RegistryUpstream]]:
    """Yields the upstreams of all configured registries, one per address, for checks. Entries with a wildcard are left
    out, since they name no host.

    Raises `ConfigError`.
    """
    async with AsyncExitStack() as stack:
        executor = ThreadPoolExecutor(2, "check")
        stack.callback(executor.shutdown, wait=False, cancel_futures=True)
        memo = Memo()
        stack.push_async_callback(memo.aclose)
        upstreams = Upstreams(config, executor, memo)
        stack.push_async_callback(upstreams.aclose)
        yield upstreams.open()


def _counting(label: str) -> Hooks:
    """Hooks that count requests and failures. The configuration bounds the number of labels; clients can invent names
    under a wildcard.
    """

    def observe(event: str, status: int | None, seconds: float) -> None:
        telemetry.UPSTREAM_REQUESTS.labels(label, event, status or 0).inc()
        telemetry.UPSTREAM_SECONDS.labels(label, event).observe(seconds)

    def on_failure(error: UpstreamError) -> None:
        telemetry.UPSTREAM_ERRORS.labels(label, type(error).__name__).inc()

    return Hooks(observe, on_failure=on_failure, on_whole=telemetry.WHOLE_ANSWERS.labels(label).inc)


def _endpoint(name: str, url: str, reach: ReachSettings, settings: UpstreamSettings) -> Endpoint:
    """One address of a registry, with the time limits of its upstream."""
    return Endpoint(
        name,
        url,
        token_hosts=reach.token_hosts,
        internal=True if reach.private_network else None,
        tls=_tls(name, reach),
        proxies=Proxies.given(_secret(reach.proxy)),
        timeouts=Timeouts(connect=settings.connect_timeout, read=settings.read_timeout),
        user_agent=f"registry-mirror/{__version__}",
    )


def _for_callers(settings: UpstreamSettings, own: CredentialSource) -> CredentialSource:
    return CallersCredentials(own) if settings.access == "verify" else own


def _credentials(endpoint: Endpoint, reach: ReachSettings, names: Sequence[str]) -> CredentialSource:
    if reach.docker_config is not None:
        source = DockerConfig(reach.docker_config, names, upstream=endpoint.name)
        source.check()
        return source
    if reach.provider is not None:
        proxy = _secret(reach.proxy)
        options = _provider_options(reach)
        return open_provider(endpoint, reach.provider, options, proxy=None if proxy == "env" else proxy)
    if reach.username is not None and reach.password is not None:
        password = reach.password.get_secret_value()
        if reach.password_file is not None:
            return PasswordFile(reach.password_file, reach.username, password, upstream=endpoint.name)
        return GivenCredentials(Credentials(reach.username, password))
    return GivenCredentials()


class _SecretText(Protocol):
    def get_secret_value(self) -> str: ...


def _secret(text: _SecretText | None) -> str | None:
    return text.get_secret_value() if text else None


def _provider_options(settings: ReachSettings) -> ProviderOptions:
    return ProviderOptions(
        key_file=settings.key_file,
        region=settings.region,
        role_arn=settings.role_arn,
        tenant=settings.tenant_id,
        client_id=settings.client_id,
        client_secret=_secret(settings.client_secret),
        token_file=settings.token_file,
        provider_url=settings.provider_url,
        sts_url=settings.sts_url,
        metadata_url=settings.metadata_url,
    )


def _tls(name: str, reach: ReachSettings) -> Tls:
    """How the registry's certificate is verified, and our client certificate, if there is one. Raises `ConfigError`."""
    verify: bool | ssl.SSLContext = reach.verify_tls
    try:
        if reach.ca_file is not None and reach.verify_tls:
            verify = ssl.create_default_context(cafile=reach.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError([f"upstream {name}: ca_file {reach.ca_file} contains no certificate"]) from error
    if reach.client_certificate is None or reach.client_key is None:
        return Tls(verify)
    identity = ssl.create_default_context(cafile=reach.ca_file) if reach.verify_tls else unverified()
    identity.set_alpn_protocols(["http/1.1"])
    try:
        identity.load_cert_chain(reach.client_certificate, reach.client_key)
    except (OSError, ssl.SSLError) as error:
        pair = f"{reach.client_certificate} and {reach.client_key}"
        raise ConfigError(
            [f"upstream {name}: client_certificate, client_key: {pair} do not belong together"]
        ) from error
    return Tls(verify, identity)

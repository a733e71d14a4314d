"""`serve`, `check` and `schema`."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mirror import __version__, telemetry
from mirror import config as settings
from mirror.cli.base import ConfigFile, JsonOption, application, complain, counted, say, say_json
from mirror.cli.store_checks import describe_unread, store_owner
from mirror.errors import ConfigError, ListenerUnavailable, StoreError, reason_of
from mirror.heartbeat import Heartbeat, Heartbeats
from mirror.imports import without_collecting
from mirror.process.listeners import AdminListener, InternalListener, connect_unix, open_admin, open_listeners
from mirror.store.local.layout import Layout

if TYPE_CHECKING:
    from mirror.index.probing import RedisCheck


@application.command()
def serve(
    config: ConfigFile = None,
    listen: Annotated[
        list[str] | None, typer.Option(help="Address to listen on: host:port or unix:/path. May be repeated.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Number of serving processes.")] = None,
) -> None:
    """Serve until SIGTERM. SIGHUP reads the configuration again."""
    with without_collecting():
        from mirror.process.supervisor import WorkerPlan, supervise

    overrides = {"server": {"listen": listen or None, "workers": workers}}
    loaded = settings.load(config, overrides)
    telemetry.set_up_logging(loaded.log.level)

    def plan(now: settings.Config) -> WorkerPlan:
        tls, blocked = now.server.tls_certificate is not None, now.server.blocked_timeout
        drain = now.server.drain_timeout + (now.cluster.drain if now.cluster.has_members else 0)
        if config is None:
            return WorkerPlan([], drain, tls, blocked=blocked)
        copy = _in_memory(config.read_bytes())
        return WorkerPlan(["--config", f"/proc/self/fd/{copy}"], drain, tls, [copy], blocked)

    def reread() -> WorkerPlan:
        now = settings.load(config, overrides)
        telemetry.set_up_logging(now.log.level)
        for name, was, wanted in (
            ("server.listen", loaded.server.listen, now.server.listen),
            ("server.workers", loaded.server.workers, now.server.workers),
            ("cluster.listen", _internal_address(loaded), _internal_address(now)),
            ("admin.listen", (loaded.admin_address, loaded.admin_tcp), (now.admin_address, now.admin_tcp)),
        ):
            if was != wanted:
                telemetry.log.warning("changed setting needs restart", setting=name)
        return plan(now)

    if (whose := store_owner(loaded)) not in (None, os.geteuid()):
        telemetry.log.warning(
            "store belongs to another user",
            root=str(loaded.store.root),
            owner=whose,
            user=os.geteuid(),
            reason="a mirror that runs as its owner will not be able to read what this one writes",
        )
    count = loaded.server.workers
    opened = [open_listeners(address, count) for address in loaded.server.listen]
    by_worker = [[sockets[number] for sockets in opened] for number in range(count)]
    internal = _open_internal(loaded, count)
    admin = _open_admin(loaded, count)
    asyncio.run(supervise(plan(loaded), by_worker, reread=reread, admin=admin, internal=internal))


def _internal_address(loaded: settings.Config) -> str | None:
    """Where the listener for other replicas is; None if there are none."""
    return loaded.cluster.listen if loaded.cluster.has_members else None


def _open_internal(loaded: settings.Config, workers: int) -> InternalListener | None:
    """The listener for other replicas; None if there are none. Raises `ConfigError`, `ListenerUnavailable`."""
    if (address := _internal_address(loaded)) is None:
        return None
    # imported here: a mirror without replicas does not even load it
    from mirror.peers.used_nonces import UsedNonces

    return InternalListener(open_listeners(address, workers, setting="cluster.listen"), UsedNonces.made().descriptor)


def _in_memory(content: bytes) -> int:
    """The descriptor of a nameless file with this content."""
    descriptor = os.memfd_create("mirror.toml")
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(content)
    return descriptor


def _is_answered(path: Path) -> bool:
    """True if a process listens on a socket."""
    try:
        connect_unix(path, timeout=1).close()
    except OSError:
        return False
    return True


def _open_admin(loaded: settings.Config, workers: int) -> list[AdminListener]:
    """The sockets of the admin API. If the default socket cannot be opened, the mirror serves pulls without it."""
    opened = []
    if loaded.admin_tcp:
        opened.append(open_admin(loaded.admin_tcp, workers))
    if not loaded.admin_address:
        return opened
    if _is_answered(Path(loaded.admin_address.removeprefix("unix:"))):
        telemetry.log.warning(
            "another mirror serves this store",
            admin=loaded.admin_address,
            reason="commands speak to this one from now on; once it has ended, to none until the other is restarted",
        )
    if loaded.admin_address == loaded.admin.listen:
        return [*opened, open_admin(loaded.admin_address, workers)]
    try:
        loaded.store.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        return [open_admin(loaded.admin_address, workers), *opened]
    except (ConfigError, ListenerUnavailable, OSError) as error:
        telemetry.log.warning("admin API unavailable", reason=reason_of(error))
        return opened


@application.command(hidden=True)
def worker(
    sockets: Annotated[str, typer.Option()],
    ready: Annotated[int, typer.Option()],
    parent: Annotated[int, typer.Option()],
    beats: Annotated[int, typer.Option()],
    slot: Annotated[int, typer.Option()],
    admin: Annotated[str, typer.Option()] = "",
    internal: Annotated[int | None, typer.Option()] = None,
    nonces: Annotated[int | None, typer.Option()] = None,
    after_blocked: Annotated[bool, typer.Option("--after-blocked")] = False,
    config: ConfigFile = None,
) -> None:
    """One of the serving processes; `serve` starts them."""
    with without_collecting():
        from mirror.process.worker import run_worker

    loaded = settings.load(config)
    telemetry.set_up_logging(loaded.log.level)
    if after_blocked:
        telemetry.WORKERS_BLOCKED.inc()

    def report_ready() -> None:
        os.write(ready, b"1")
        os.close(ready)

    listeners = [socket.socket(fileno=int(number)) for number in sockets.split(",")]
    admin_listeners = [socket.socket(fileno=int(number)) for number in filter(None, admin.split(","))]
    pulse = Heartbeat(Heartbeats(beats), slot)
    peers = None
    if internal is not None and nonces is not None:
        peers = InternalListener([socket.socket(fileno=internal)], nonces)
    run_worker(loaded, listeners, ready=report_ready, parent=parent, admin=admin_listeners, pulse=pulse, internal=peers)


@application.command()
def check(
    config: ConfigFile = None,
    online: Annotated[
        bool,
        typer.Option(
            "--online",
            help="Also contact each registry and replica, and try all that is needed of the bucket and Redis.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a configuration and report every mistake in it, and every pin or freeze that cannot be read."""
    from mirror.app.bucket import try_bucket

    loaded = settings.load(config)
    telemetry.set_up_logging("error")
    others, url = online and loaded.cluster.has_members, loaded.index.url.get_secret_value()
    if online and loaded.offline and loaded.store.bucket is None and not others and not url:
        raise ConfigError(["--online: the mirror is sealed (offline), so no registry may be contacted"])
    results = asyncio.run(_ask_registries(loaded)) if online and not loaded.offline else []
    tried = try_bucket(loaded) if online else []
    redis = asyncio.run(_try_redis(url, loaded.index.timeout)) if online and url else []
    members = asyncio.run(_ask_members(loaded)) if others else []
    is_good = all(result.ok for result in [*results, *tried, *redis, *members])
    try:
        # pins and freezes may be in the bucket, which only --online asks
        asks = loaded.store.bucket is None or (online and is_good and Layout(loaded.store.root).marker.exists())
        unread = describe_unread(loaded) if asks else []
    except StoreError as error:
        # the user of this command may not be allowed to read the store; the configuration can be good all the same
        unread = []
        complain(f"mirror: pins and freezes were not checked: {error}")
    if as_json:
        summary = {"upstreams": len(loaded.upstream), "store": str(loaded.store.root)}
        asked = {"online": [asdict(result) for result in results], "bucket": [asdict(each) for each in tried]}
        asked |= {"members": [asdict(member) for member in members]} if loaded.cluster.has_members else {}
        asked |= {"redis": [asdict(each) for each in redis]} if url else {}
        say_json({**summary, **(asked if online else {})})
    else:
        sealed = " (none is contacted)" if loaded.offline else ""
        syncs = f", {counted(len(loaded.sync), 'sync rule')}" if loaded.sync else ""
        hosted = f", hosts {', '.join(entry.name for entry in loaded.hosted)}" if loaded.hosted else ""
        virtual = f", virtual: {', '.join(entry.name for entry in loaded.virtual)}" if loaded.virtual else ""
        upstreams = f"{counted(len(loaded.upstream), 'upstream')}{sealed}{hosted}{virtual}{syncs}"
        bucket = "" if loaded.store.bucket is None or online else "; the bucket was not asked (--online)"
        verdict = "good" if is_good else "NOT GOOD, see FAILED below"
        say(f"{config or 'defaults'}: {verdict}: {upstreams}, store at {loaded.store.root}{bucket}")
        for result in results:
            _say_tried(result.ok, f"{result.upstream} ({result.url}): {result.detail}", result.advice)
        for each in tried:
            _say_tried(each.ok, f"{loaded.store.bucket}: {each.step}: {each.detail}", each.advice)
        for step in redis:
            _say_tried(step.ok, f"redis: {step.step}: {step.detail}", step.advice)
        for member in members:
            _say_tried(member.ok, f"replica {member.member}: {member.detail}", member.advice)
    for warning in [*settings.hints(loaded), *unread, *_check_certificate(loaded)]:
        # not a failure: units and scripts run this check before they start the mirror, which must still serve
        complain(f"mirror: {warning}")
    if not is_good:
        raise typer.Exit(1)


def _say_tried(ok: bool, what: str, advice: str) -> None:
    say(f"{'ok    ' if ok else 'FAILED'} {what}")
    if advice:
        say(f"       {advice}")


@application.command()
def schema() -> None:
    """Print the JSON schema of the configuration file, for editors and other programs."""
    from mirror.config.settings_schema import settings_schema

    say_json(settings_schema(__version__))


def _check_certificate(loaded: settings.Config) -> list[str]:
    """What is, or will soon be, wrong with the server's certificate."""
    if (file := loaded.server.tls_certificate) is None:
        return []
    from mirror.access.certificate import validity
    from mirror.nodes.findings import judge_certificate_age

    try:
        finding = judge_certificate_age(str(file), *validity(file), time.time())
    except (OSError, ValueError) as error:
        return [f"server.tls_certificate: {file}: {reason_of(error)}"]
    return [f"server.tls_certificate {finding.text}: {finding.advice}"] if finding.advice else []


async def _ask_members(loaded: settings.Config) -> Sequence[Any]:
    from mirror.app.clustering import open_cluster
    from mirror.peers.member_check import check_members

    async with AsyncExitStack() as stack:
        cluster = await open_cluster(loaded, stack)
        return await check_members(cluster.members, cluster.client)


async def _try_redis(url: str, budget: float) -> list[RedisCheck]:
    # imported here: few configurations need the Redis library
    from mirror.index.probing import check_redis
    from mirror.index.redis_address import parse_redis_url

    return await check_redis(parse_redis_url(url), budget=budget)


async def _ask_registries(loaded: settings.Config) -> list[Any]:
    from mirror.app.upstreams import open_registries
    from mirror.upstream.check import check_all

    async with open_registries(loaded) as registries:
        return await check_all(registries)

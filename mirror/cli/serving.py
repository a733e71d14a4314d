"""`serve` and `check`."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mirror import config as settings
from mirror import telemetry
from mirror.cli.base import ConfigFile, application, complain, say, say_json
from mirror.cli.long_running import owner
from mirror.cli.note_checks import unread_of
from mirror.errors import ConfigError, StoreError
from mirror.heartbeat import Heartbeat, Heartbeats
from mirror.process.listeners import AdminListener, connect_unix, open_admin, open_listeners


@application.command()
def serve(
    config: ConfigFile = None,
    listen: Annotated[
        list[str] | None, typer.Option(help="Where to listen: host:port or unix:/path. May be given again.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that serve.")] = None,
) -> None:
    """Serve pulls until SIGTERM; SIGHUP reads the configuration again."""
    from mirror.process.supervisor import WorkerPlan, supervise

    overrides = {"server": {"listen": listen or None, "workers": workers}}
    loaded = settings.load(config, overrides)
    telemetry.set_up_logging(loaded.log.level)

    def plan(now: settings.Config) -> WorkerPlan:
        tls, drain, blocked = (
            now.server.tls_certificate is not None,
            now.server.drain_timeout,
            now.server.blocked_timeout,
        )
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
            ("admin.listen", (loaded.admin_address, loaded.admin_tcp), (now.admin_address, now.admin_tcp)),
        ):
            if was != wanted:
                telemetry.log.warning("changed setting needs restart", setting=name)
        return plan(now)

    if (whose := owner(loaded)) not in (None, os.geteuid()):
        telemetry.log.warning(
            "store belongs to another user",
            root=str(loaded.store.root),
            owner=whose,
            user=os.geteuid(),
            reason="what this mirror writes there, one that runs as its owner cannot read",
        )
    count = loaded.server.workers
    opened = [open_listeners(address, count) for address in loaded.server.listen]
    by_worker = [[sockets[number] for sockets in opened] for number in range(count)]
    asyncio.run(supervise(plan(loaded), by_worker, reread=reread, admin=_open_admin(loaded, count)))


def _in_memory(content: bytes) -> int:
    """A file without a name; its descriptor."""
    descriptor = os.memfd_create("mirror.toml")
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(content)
    return descriptor


def _is_answered(path: Path) -> bool:
    """Whether somebody lives behind a socket."""
    try:
        connect_unix(path, timeout=1).close()
    except OSError:
        return False
    return True


def _open_admin(loaded: settings.Config, workers: int) -> list[AdminListener]:
    """Where nobody has asked for its socket, pulls are served without it too."""
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
    except (ConfigError, OSError) as error:
        telemetry.log.warning("admin API unavailable", reason=str(error))
        return opened


@application.command(hidden=True)
def worker(
    sockets: Annotated[str, typer.Option()],
    ready: Annotated[int, typer.Option()],
    parent: Annotated[int, typer.Option()],
    beats: Annotated[int, typer.Option()],
    slot: Annotated[int, typer.Option()],
    admin: Annotated[str, typer.Option()] = "",
    after_blocked: Annotated[bool, typer.Option("--after-blocked")] = False,
    config: ConfigFile = None,
) -> None:
    """One of the serving processes; started by `serve`."""
    from mirror.process.worker import run_worker

    loaded = settings.load(config)
    telemetry.set_up_logging(loaded.log.level)
    if after_blocked:
        telemetry.WORKERS_BLOCKED.inc()

    def tell() -> None:
        os.write(ready, b"1")
        os.close(ready)

    listeners = [socket.socket(fileno=int(number)) for number in sockets.split(",")]
    asked = [socket.socket(fileno=int(number)) for number in filter(None, admin.split(","))]
    run_worker(loaded, listeners, ready=tell, parent=parent, admin=asked, pulse=Heartbeat(Heartbeats(beats), slot))


@application.command()
def check(
    config: ConfigFile = None,
    online: Annotated[bool, typer.Option("--online", help="Ask each registry, with its credentials, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Check a configuration and name every mistake in it, and every pin or freeze that cannot be read."""
    loaded = settings.load(config)
    telemetry.set_up_logging("error")
    if online and loaded.offline:
        raise ConfigError(["--online: offline is set, no registry is contacted"])
    found = asyncio.run(_ask_registries(loaded)) if online else []
    try:
        unread = unread_of(loaded)
    except StoreError as error:
        # whoever checks a file may not look into the store; the configuration is none the worse for it
        unread = []
        complain(f"mirror: pins and freezes were not looked at: {error}")
    if as_json:
        summary = {"upstreams": len(loaded.upstream), "store": str(loaded.store.root)}
        say_json({**summary, **({"online": [asdict(one) for one in found]} if online else {})})
    else:
        sealed = ", none of which is contacted" if loaded.offline else ""
        syncs = f", {len(loaded.sync)} sync rules" if loaded.sync else ""
        counted = f"{len(loaded.upstream)} upstreams{sealed}{syncs}"
        say(f"{config or 'defaults'}: good: {counted}, store at {loaded.store.root}")
        for one in found:
            say(f"{'ok    ' if one.ok else 'FAILED'} {one.upstream} ({one.url}): {one.detail}")
            if one.advice:
                say(f"       {one.advice}")
    for words in [*settings.hints(loaded), *unread, *_of_certificate(loaded)]:
        # no reason to fail: what starts a mirror checks before, and pulls must go on being served
        complain(f"mirror: {words}")
    if not all(one.ok for one in found):
        raise typer.Exit(1)


def _of_certificate(loaded: settings.Config) -> list[str]:
    """What is wrong with the one that clients are shown, or will be soon."""
    if (file := loaded.server.tls_certificate) is None:
        return []
    from mirror.access.certificate import validity
    from mirror.nodes.findings import judge_certificate_age

    try:
        found = judge_certificate_age(str(file), *validity(file), time.time())
    except (OSError, ValueError) as error:
        return [f"server.tls_certificate: {file}: {error}"]
    return [f"server.tls_certificate {found.text}: {found.advice}"] if found.advice else []


async def _ask_registries(loaded: settings.Config) -> list[Any]:
    from mirror.app.upstreams import open_registries
    from mirror.upstream.check import check_all

    async with open_registries(loaded) as registries:
        return await check_all(registries)

"""The command line: thin calls into what the rest can do.

Exit status: 0 done, 1 failed, 2 unusable arguments or configuration.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from mirror import __version__, telemetry
from mirror import config as settings
from mirror.errors import ConfigError, MirrorError
from mirror.listen import address_of, open_listeners
from mirror.policy.sizes import format_size

__all__ = ["application", "main"]

application = typer.Typer(
    name="mirror",
    help="A pull-through caching mirror for OCI and Docker registries.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML file with the settings; without it, all defaults.")
]


def main() -> None:
    """The entry of the `mirror` command."""
    try:
        application()
    except ConfigError as error:
        _refuse(error)
    except MirrorError as error:
        print(f"mirror: {error}", file=sys.stderr)
        raise SystemExit(1) from error


def _refuse(error: ConfigError) -> NoReturn:
    for mistake in error.mistakes:
        print(f"mirror: {mistake}", file=sys.stderr)
    raise SystemExit(2) from error


@application.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@application.command()
def serve(
    config: ConfigFile = None,
    listen: Annotated[
        list[str] | None, typer.Option(help="Where to listen: host:port or unix:/path. May be given again.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that serve.")] = None,
) -> None:
    """Serve pulls until SIGTERM."""
    loaded = settings.load(config, {"server": {"listen": listen or None, "workers": workers}})
    telemetry.set_up_logging(loaded.log.level)
    count = loaded.server.workers
    opened = [open_listeners(address, count) for address in loaded.server.listen]
    tls = loaded.server.tls_certificate is not None
    if count > 1:
        from mirror.supervisor import supervise

        arguments = ["--config", str(config.absolute())] if config else []
        by_worker = [[sockets[number] for sockets in opened] for number in range(count)]
        asyncio.run(supervise(arguments, by_worker, drain=loaded.server.drain, tls=tls))
        return
    from mirror.worker import run_worker

    listeners = [sockets[0] for sockets in opened]

    def ready() -> None:
        for listener in listeners:
            telemetry.log.info("listening", address=address_of(listener), tls=tls, workers=1)

    run_worker(loaded, listeners, ready=ready)


@application.command(hidden=True)
def worker(
    sockets: Annotated[str, typer.Option()],
    ready: Annotated[int, typer.Option()],
    parent: Annotated[int, typer.Option()],
    config: ConfigFile = None,
) -> None:
    """One of several serving processes; started by `serve`."""
    from mirror.worker import run_worker

    loaded = settings.load(config)
    telemetry.set_up_logging(loaded.log.level)

    def tell() -> None:
        os.write(ready, b"1")
        os.close(ready)

    listeners = [socket.socket(fileno=int(number)) for number in sockets.split(",")]
    run_worker(loaded, listeners, ready=tell, parent=parent)


@application.command()
def check(config: ConfigFile = None) -> None:
    """Check a configuration and name every mistake in it."""
    loaded = settings.load(config)
    print(f"{config or 'defaults'}: good: {len(loaded.upstream)} upstreams, store at {loaded.store.root}")


@application.command()
def gc(
    config: ConfigFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be dropped, and why.")] = False,
) -> None:
    """Bring the store down to its low water, least recently used blobs first."""
    loaded = settings.load(config)
    telemetry.set_up_logging("warning")
    victims = asyncio.run(_collect(loaded, dry_run))
    table = Table("digest", "size", "why")
    for victim in victims:
        table.add_row(str(victim.digest), format_size(victim.size), victim.reason)
    console = Console(width=None if sys.stdout.isatty() else 200)
    if victims:
        console.print(table)
    total = format_size(sum(victim.size for victim in victims))
    print(f"{len(victims)} blobs, {total} {'would be' if dry_run else 'were'} dropped")


async def _collect(loaded: settings.Config, dry_run: bool) -> list[Any]:
    from mirror.app import open_storage

    async with open_storage(loaded) as storage:
        return await storage.evictor.collect(dry_run=dry_run)

"""`serve` and `check`."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Annotated

import typer

from mirror import config as settings
from mirror import telemetry
from mirror.cli.base import ConfigFile, application
from mirror.listen import address_of, open_listeners

__all__ = ["check", "serve"]


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
    sealed = ", none of which is contacted" if loaded.offline else ""
    print(f"{config or 'defaults'}: good: {len(loaded.upstream)} upstreams{sealed}, store at {loaded.store.root}")

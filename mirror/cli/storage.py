"""`gc`: what keeps the store in order, by hand."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer
from rich.table import Table

from mirror import config as settings
from mirror import telemetry
from mirror.cli.base import ConfigFile, application, table_console
from mirror.policy.sizes import format_size

__all__ = ["gc"]


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
    if victims:
        table_console().print(table)
    total = format_size(sum(victim.size for victim in victims))
    print(f"{len(victims)} blobs, {total} {'would be' if dry_run else 'were'} dropped")


async def _collect(loaded: settings.Config, dry_run: bool) -> list[Any]:
    from mirror.app import open_storage

    async with open_storage(loaded) as storage:
        return await storage.evictor.collect(dry_run=dry_run)

"""`gc`: what keeps the store in order, by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.table import Table

from mirror import config as settings
from mirror import telemetry
from mirror.cli.base import ConfigFile, application, table_console
from mirror.oci.digest import Digest
from mirror.policy.eviction import Victim
from mirror.policy.sizes import format_size
from mirror.repository.names import called

__all__ = ["gc"]


@application.command()
def gc(
    config: ConfigFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be dropped, and why.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The list in JSON, for programs.")] = False,
) -> None:
    """Bring the store down to its low water: first what no cached manifest names, then the coldest images."""
    loaded = settings.load(config)
    telemetry.set_up_logging("warning")
    victims, names = asyncio.run(_collect(loaded, dry_run))
    groups = _by_image(victims)
    if as_json:
        print(json.dumps(_as_json(groups, names, dry_run), indent=1))
        return
    table = Table("image", "digest", "size", "why")
    for image, group in groups.items():
        table.add_row(_title(image, names), f"{_count(group, 'blob')}", format_size(_bytes(group)), "")
        for victim in group:
            table.add_row("", str(victim.digest), format_size(victim.size), _why(victim, names))
        table.add_section()
    if victims:
        table_console().print(table)
    images = [image for image in groups if image is not None]
    total = format_size(_bytes(victims))
    verb = "would be" if dry_run else "were"
    print(f"{_count(victims, 'blob')}, {total}, {verb} dropped, with them {_count(images, 'image')}")


def _count(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


async def _collect(loaded: settings.Config, dry_run: bool) -> tuple[list[Victim], dict[Digest, list[str]]]:
    """Victims, and what people call their images."""
    from mirror.app import open_storage

    async with open_storage(loaded) as storage:
        victims = await storage.evictor.collect(dry_run=dry_run)
        images = {image for victim in victims for image in victim.images}
        return victims, await asyncio.to_thread(called, storage.catalog, images)


def _by_image(victims: Sequence[Victim]) -> dict[Digest | None, list[Victim]]:
    """With each image what goes together with it, loose blobs under None; in the order in which they go."""
    groups: dict[Digest | None, list[Victim]] = {}
    for victim in victims:
        groups.setdefault(victim.images[-1] if victim.images else None, []).append(victim)
    return groups


def _title(image: Digest | None, names: Mapping[Digest, Sequence[str]]) -> str:
    return "no cached manifest names these" if image is None else ", ".join(names.get(image, ())) or str(image)


def _why(victim: Victim, names: Mapping[Digest, Sequence[str]]) -> str:
    """Where it was shared, with whom."""
    others = [_title(image, names) for image in victim.images[:-1]]
    return victim.reason + (f"; shared with {', '.join(others)}, which goes too" if others else "")


def _bytes(victims: Sequence[Victim]) -> int:
    return sum(victim.size for victim in victims)


def _as_json(
    groups: Mapping[Digest | None, Sequence[Victim]], names: Mapping[Digest, Sequence[str]], dry_run: bool
) -> dict[str, Any]:
    every = [victim for group in groups.values() for victim in group]
    return {
        "dry_run": dry_run,
        "blobs": len(every),
        "bytes": _bytes(every),
        "images": [
            {
                "digest": None if image is None else str(image),
                "names": [] if image is None else list(names.get(image, ())),
                "last_used": max(victim.image_used for victim in group),
                "bytes": _bytes(group),
                "blobs": [
                    {
                        "digest": str(victim.digest),
                        "size": victim.size,
                        "last_used": victim.last_used,
                        "images": [str(each) for each in victim.images],
                        "reason": victim.reason,
                    }
                    for victim in group
                ],
            }
            for image, group in groups.items()
        ],
    }

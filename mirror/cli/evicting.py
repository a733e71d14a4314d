"""`evict`: evicts images now instead of when room is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from mirror import config as settings
from mirror import telemetry
from mirror.cli.admin_client import ask_if_running
from mirror.cli.audit_command import audited
from mirror.cli.base import ConfigFile, TextTable, application, say, say_json
from mirror.cli.long_running import check_owner, check_there
from mirror.graph.references import names_of
from mirror.inspect.as_json import victims_by_image, victims_json
from mirror.oci.digest import Digest
from mirror.policy.eviction import Victim
from mirror.values.sizes import format_size


@application.command()
def evict(
    config: ConfigFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be dropped, and why.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The list in JSON, for programs.")] = False,
) -> None:
    """Bring the store down to its low water: first what no cached manifest names, then the coldest images."""
    loaded = settings.load(config)
    telemetry.set_up_logging("warning")
    told = None if dry_run else ask_if_running(loaded, "POST", "/admin/v1/eviction", patience=None)
    if told is not None:
        _print_told(told, as_json)
        return
    check_there(loaded)
    if not dry_run:
        check_owner(loaded, "leaves")
    with audited(loaded, "evict", dry_run=dry_run) as about:
        victims, names = asyncio.run(_collect(loaded, dry_run))
        about["bytes"] = _bytes(victims)
    groups = victims_by_image(victims)
    if as_json:
        say_json(victims_json(groups, names, dry_run=dry_run))
        return
    table = TextTable("image", "digest", "size", "why")
    for image, group in groups.items():
        table.add_row(_title(image, names), f"{_count(group, 'blob')}", format_size(_bytes(group)), "")
        for victim in group:
            table.add_row("", str(victim.digest), format_size(victim.size), _why(victim, names))
        table.add_section()
    if victims:
        table.show()
    images = [image for image in groups if image is not None]
    total = format_size(_bytes(victims))
    verb = "would be" if dry_run else "were"
    say(f"{_count(victims, 'blob')}, {total}, {verb} dropped, with them {_count(images, 'image')}")


def _print_told(told: dict[str, Any], as_json: bool) -> None:
    """What the running mirror has done."""
    if as_json:
        say_json(told)
        return
    table = TextTable("image", "digest", "size", "why")
    for one in told["images"]:
        title = ", ".join(one["names"]) or one["digest"] or "no cached manifest names these"
        table.add_row(title, _count(one["blobs"], "blob"), format_size(one["bytes"]), "")
        for blob in one["blobs"]:
            table.add_row("", blob["digest"], format_size(blob["size"]), blob["reason"])
        table.add_section()
    if told["images"]:
        table.show()
    images = [one for one in told["images"] if one["digest"]]
    count = len(images) + told["more"]
    blobs = f"{told['blobs']} blob{'' if told['blobs'] == 1 else 's'}"
    say(f"{blobs}, {format_size(told['bytes'])}, were dropped, with them {count} image{'' if count == 1 else 's'}")


def _count(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


async def _collect(loaded: settings.Config, dry_run: bool) -> tuple[list[Victim], dict[Digest, list[str]]]:
    """Victims, and what people call their images."""
    from mirror.app.storage import open_storage

    async with open_storage(loaded) as storage:
        space = storage.eviction.space
        victims = await (space.plan() if dry_run else space.collect())
        images = {image for victim in victims for image in victim.images}
        return victims, await asyncio.to_thread(names_of, storage.catalog, images)


def _title(image: Digest | None, names: Mapping[Digest, Sequence[str]]) -> str:
    return "no cached manifest names these" if image is None else ", ".join(names.get(image, ())) or str(image)


def _why(victim: Victim, names: Mapping[Digest, Sequence[str]]) -> str:
    """Where it was shared, with whom."""
    others = [_title(image, names) for image in victim.images[:-1]]
    return victim.reason + (f"; shared with {', '.join(others)}, which goes too" if others else "")


def _bytes(victims: Sequence[Victim]) -> int:
    return sum(victim.size for victim in victims)

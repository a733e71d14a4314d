"""`evict`: evicts images now instead of when room is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from mirror import config as settings
from mirror.cli.admin_client import ask_if_running
from mirror.cli.audit_command import audited
from mirror.cli.base import ConfigFile, JsonOption, TextTable, application, counted, load, say, say_json
from mirror.cli.store_checks import check_owner, check_there
from mirror.graph.references import names_of
from mirror.inspect.as_json import VictimsJson, victims_by_image, victims_json
from mirror.values.sizes import format_size


@application.command()
def evict(
    config: ConfigFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be evicted, and why.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Evict the least recently used images until the store is down to its low water."""
    loaded = load(config, level="warning")
    # a running mirror does it itself; the list comes from the disk in both cases
    done = None if dry_run else ask_if_running(loaded, "POST", "/admin/v1/eviction", patience=None)
    evicted: Mapping[str, Any] = _evict_on_disk(loaded, dry_run) if done is None else done
    say_json(evicted) if as_json else _print(evicted)


def _evict_on_disk(loaded: settings.Config, dry_run: bool) -> VictimsJson:
    check_there(loaded)
    if not dry_run:
        check_owner(loaded)
    with audited(loaded, "evict", dry_run=dry_run) as about:
        evicted = asyncio.run(_collect(loaded, dry_run))
        about["bytes"] = evicted["bytes"]
    return evicted


async def _collect(loaded: settings.Config, dry_run: bool) -> VictimsJson:
    from mirror.app.storage import open_storage

    async with open_storage(loaded) as storage:
        space = storage.eviction.space
        victims = await (space.plan() if dry_run else space.collect())
        images = {image for victim in victims for image in victim.images}
        names = await asyncio.to_thread(names_of, storage.catalog, images)
    return victims_json(victims_by_image(victims), names, dry_run=dry_run)


def _print(evicted: Mapping[str, Any]) -> None:
    titles = {image["digest"]: ", ".join(image["names"]) or image["digest"] for image in evicted["images"]}
    table = TextTable("image", "digest", "size", "why")
    for image in evicted["images"]:
        title = titles[image["digest"]] or "blobs that no cached manifest refers to"
        table.add_row(title, counted(len(image["blobs"]), "blob"), format_size(image["bytes"]), "")
        for blob in image["blobs"]:
            shared = [titles.get(digest) or digest for digest in blob["images"][:-1]]
            also = f"; shared with {', '.join(shared)}, evicted as well" if shared else ""
            table.add_row("", blob["digest"], format_size(blob["size"]), blob["reason"] + also)
        table.add_section()
    if evicted["images"]:
        table.show()
    images = counted(sum(image["digest"] is not None for image in evicted["images"]) + evicted["more"], "image")
    verb = "would be evicted" if evicted["dry_run"] else "evicted"
    say(f"{verb}: {images}, {counted(evicted['blobs'], 'blob')}, {format_size(evicted['bytes'])}")

"""`copy`: an image, or all tags of a repository, into a hosted repository or to another registry."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from mirror import config as settings
from mirror.cli.admin_client import ask_if_running
from mirror.cli.audit_command import audited, cli_caller
from mirror.cli.base import ConfigFile, JsonOption, application, complain, counted, load, say, say_json
from mirror.cli.long_running import watched
from mirror.cli.store_checks import check_owner, check_there
from mirror.errors import ConfigError, RequestError
from mirror.policy.image_names import parse_image
from mirror.values.sizes import format_size


@application.command()
def copy(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="corp/dev/app:1.0, or by digest, hosted or cached.")],
    destination: Annotated[
        str, typer.Argument(metavar="DESTINATION", help="corp/prod/app; with a tag, if it is to be another one.")
    ],
    config: ConfigFile = None,
    all_tags: Annotated[bool, typer.Option("--all-tags", help="All tags of the repository SOURCE.")] = False,
    referrers: Annotated[
        bool, typer.Option("--referrers/--no-referrers", help="Signatures, SBOMs and other referrers too.")
    ] = True,
    platform: Annotated[
        list[str] | None, typer.Option(help="Only these platforms, such as linux/amd64; without it, all.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be copied.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Copy an image between repositories here, without moving its bytes, or to another registry. Run it again to go
    on.
    """
    loaded = load(config)
    body = {
        "source": source,
        "destination": destination,
        "all_tags": all_tags,
        "referrers": referrers,
        "platforms": [part for text in platform or [] for part in text.split(",") if part.strip()],
        "dry_run": dry_run,
    }
    copied: Mapping[str, Any] | None = None
    if _is_hosted(loaded, destination):
        # nothing but links are made, which takes a moment; copies to other registries show how far they are
        copied = ask_if_running(loaded, "POST", "/admin/v1/copies", body=body, patience=None)
    if copied is None:
        copied = _copy_here(loaded, body, quiet=as_json)
    say_json(copied) if as_json else _print(copied, dry_run=dry_run)
    if copied["failed"]:
        raise typer.Exit(1)


def _is_hosted(loaded: settings.Config, destination: str) -> bool:
    table = settings.routing_table(loaded)
    try:
        return table.hosts_registry(parse_image(destination, table).repo.registry)
    except RequestError as error:
        raise ConfigError([str(error)]) from error


def _copy_here(loaded: settings.Config, body: Mapping[str, Any], *, quiet: bool) -> Mapping[str, Any]:
    check_there(loaded)
    check_owner(loaded)
    return asyncio.run(_copy(loaded, body, quiet=quiet))


async def _copy(loaded: settings.Config, body: Mapping[str, Any], *, quiet: bool) -> Mapping[str, Any]:
    from mirror.app.building import build
    from mirror.prefetch.progress import ProgressMeter
    from mirror.server.admin.copy_admin import audited_fields

    meter = ProgressMeter()
    async with build(loaded, housework=False) as app:
        try:
            order = app.admin.copies.read(dict(body), cli_caller())
        except RequestError as error:
            raise ConfigError([str(error)]) from error
        with audited(loaded, "copy", dry_run=order.dry_run, **audited_fields(order)) as about:
            copying = app.admin.copies.copy(order, meter=meter)
            copied = await watched(order.source_name, copying, meter, quiet=quiet)
            about |= audited_fields(order, copied)
            return copied


def _print(copied: Mapping[str, Any], *, dry_run: bool) -> None:
    verbs = {"copied": "copied", "moved": "moved", "same": "is there already"}
    if dry_run:
        verbs |= {"copied": "would be copied", "moved": "would move"}
    for image in copied["images"]:
        if image["state"] == "failed":
            complain(f"{image['source']} -> {image['destination']}: failed: {image['reason']}")
            continue
        was = f" (it pointed to {image['was']})" if image["state"] == "moved" else ""
        more = f", {counted(image['referrers'], 'referrer')}" if image["referrers"] else ""
        say(f"{image['source']} -> {image['destination']}: {verbs[image['state']]}{was}{more}")
    if copied["more"]:
        say(f"and {copied['more']} more: see --json")
    sent = f", {format_size(copied['bytes'])} sent" if copied["bytes"] else ""
    done = f"{copied['copied']} copied, {copied['moved']} moved, {copied['same']} there already"
    say(f"{'without --dry-run: ' if dry_run else ''}{done}, {copied['failed']} failed{sent}")

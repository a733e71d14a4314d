"""`delete` and `undelete`: hosted images. They ask the running mirror, or do it themselves if none runs. `gc`: what of
the hosted content waits to be collected, and a round of collection by hand. `backup`: a copy of all hosted content.
`release`: the name of an empty repository is given back.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlencode

import typer

from mirror import config as settings
from mirror.app.storage import open_disk
from mirror.cli.admin_client import ask_if_running
from mirror.cli.audit_command import audited, cli_caller
from mirror.cli.base import (
    ConfigFile,
    JsonOption,
    TextTable,
    application,
    complain,
    counted,
    load,
    parse_images,
    progress_bars,
    say,
    say_json,
)
from mirror.cli.store_checks import check_owner, check_there
from mirror.errors import ConfigError, Denied, MirrorError, RequestError
from mirror.oci.reference import Repo
from mirror.policy.image_names import Image, has_reference
from mirror.store.hosted.backup_folder import BackupFolder, BackupReport
from mirror.values.sizes import format_size

if TYPE_CHECKING:
    from mirror.server.admin.hosted_admin import HostedAdmin

#: Rows that the table has at most; `--json` has all.
_MOST_ROWS = 100

ImageArgument = Annotated[
    str, typer.Argument(metavar="IMAGE", help="corp/team/app:1.0, by digest, or with --repository corp/team/app.")
]
RepositoryOption = Annotated[bool, typer.Option("--repository", help="Everything in the repository.")]


@application.command()
def delete(
    image: ImageArgument,
    config: ConfigFile = None,
    repository: RepositoryOption = False,
    now: Annotated[
        bool,
        typer.Option(
            "--now", help="For a leaked secret: delete the bytes at once, and so that nothing can be undeleted."
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Even if an immutable tag needs it.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be deleted.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete a tag, an image or a repository that is hosted here. It can be undeleted for a while."""
    loaded = load(config, level="warning")
    flags = {"repository": repository, "now": now, "force": force}
    if not dry_run and not yes and any(flags.values()) and sys.stdin.isatty():
        _print_deleted(_delete(loaded, image, **flags, dry_run=True))
        how = "the bytes at once, for good" if now else "it"
        if not typer.confirm(f"Delete {how}?", err=True):
            raise typer.Exit(1)
    deleted = _delete(loaded, image, **flags, dry_run=dry_run)
    say_json(deleted) if as_json else _print_deleted(deleted)


def _delete(loaded: settings.Config, image: str, **flags: bool) -> Mapping[str, Any]:
    target = _target("hosted", image, **flags)
    deleted: Mapping[str, Any] | None = ask_if_running(loaded, "DELETE", target, patience=None)
    return _on_disk(loaded, "delete", image, **flags) if deleted is None else deleted


def _target(collection: str, image: str, **flags: bool) -> str:
    query = urlencode({name: "true" for name, given in flags.items() if given})
    return f"/admin/v1/{collection}/{quote(image, safe='/:@')}{f'?{query}' if query else ''}"


@application.command()
def undelete(
    image: Annotated[
        str | None,
        typer.Argument(metavar="[IMAGE]", help="As for delete; without it, list what can be undeleted."),
    ] = None,
    config: ConfigFile = None,
    repository: RepositoryOption = False,
    as_json: JsonOption = False,
) -> None:
    """Bring back a deleted tag, image or repository that is hosted here; or list what can be undeleted."""
    loaded = load(config, level="warning")
    if image is None:
        if repository:
            raise ConfigError(["--repository needs the name of a repository"])
        _list(loaded, as_json)
        return
    undeleted: Mapping[str, Any] | None = ask_if_running(
        loaded, "POST", _target("deleted", image, repository=repository), patience=None
    )
    if undeleted is None:
        undeleted = _on_disk(loaded, "undelete", image, repository=repository)
    if as_json:
        say_json(undeleted)
        return
    say(f"{undeleted['image']}: undeleted")
    for digest in undeleted["manifests"]:
        say(f"  {digest}")
    for reason in undeleted["left"]:
        say(f"not undeleted: {reason}")


def _on_disk(
    loaded: settings.Config,
    action: str,
    text: str,
    *,
    repository: bool,
    now: bool = False,
    force: bool = False,
    dry_run: bool = False,
) -> Mapping[str, Any]:
    check_there(loaded)
    check_owner(loaded)

    async def work() -> Mapping[str, Any]:
        from mirror.app.building import build

        async with build(loaded, housework=False) as app:
            repo, image = _parse(app.admin.hosted, text, repository)
            reference = str(image.reference) if image else None
            flags = {"now": now or None, "forced": force or None}
            with audited(loaded, action, dry_run=dry_run, repository=str(repo), reference=reference, **flags) as about:
                if action == "undelete":
                    return await app.admin.hosted.undelete(repo, image, cli_caller())
                deleted = await app.admin.hosted.delete(
                    repo, image, cli_caller(), at_once=now, force=force, dry_run=dry_run
                )
                about |= {"manifests": len(deleted["manifests"]), "bytes": deleted["bytes"]}
                return deleted

    return asyncio.run(work())


def _parse(hosted: HostedAdmin, text: str, repository: bool) -> tuple[Repo, Image | None]:
    try:
        return hosted.parse(text, repository=repository)
    except RequestError as error:
        raise ConfigError([str(error)]) from error


def _list(loaded: settings.Config, as_json: bool) -> None:
    listed: Mapping[str, Any] | None = ask_if_running(loaded, "GET", "/admin/v1/deleted?limit=10000", patience=None)
    if listed is None:
        check_there(loaded)
        listed = asyncio.run(_list_on_disk(loaded))
    if as_json:
        say_json(listed)
        return
    table = TextTable("image", "tags", "deleted", "by", "until")
    for entry in listed["deleted"]:
        table.add_row(
            entry["image"], ", ".join(entry["tags"]), _minute(entry["deleted"]), entry["by"], _minute(entry["until"])
        )
    if listed["deleted"]:
        table.show()
    more = f", and {listed['more']} more" if listed["more"] else ""
    say(f"{counted(len(listed['deleted']), 'deletion')} can be undone{more}")


async def _list_on_disk(loaded: settings.Config) -> Mapping[str, Any]:
    from mirror.app.building import build

    async with build(loaded, housework=False) as app:
        return await app.admin.hosted.deleted({"limit": "10000"})


def _print_deleted(deleted: Mapping[str, Any]) -> None:
    verb = "would be deleted" if deleted["dry_run"] else "deleted"
    tags, manifests = deleted["tags"], deleted["manifests"]
    parts = [counted(len(tags), "tag"), f"{counted(len(manifests), 'manifest')} of images with"]
    what = f"{parts[0]} and {parts[1]} {format_size(deleted['size'])}" if manifests else parts[0]
    say(f"{deleted['image']}: {verb}: {what}")
    if tags:
        say(f"  tags: {', '.join(tags)}")
    for digest in manifests:
        say(f"  {digest}")
    if not manifests:
        say("the image stays; delete it by its digest")
    if deleted["until"]:
        say(f"`mirror undelete {deleted['image']}` brings it back, until {_minute(deleted['until'])}")
    if deleted["blobs"]:
        say(f"erased at once: {counted(deleted['blobs'], 'file')}, {format_size(deleted['bytes'])}")
    for entry in deleted["elsewhere"]:
        say(f"not erased: {counted(entry['blobs'], 'blob')} of it, which {entry['repository']} has as well")
    for digest in deleted["busy"]:
        say(f"not erased: {digest}, because it was pushed at the same moment; run the same again")


def _minute(moment: str) -> str:
    """`2025-01-31 12:30`, from `2025-01-31T12:30:00Z`."""
    return moment[:16].replace("T", " ")


@application.command()
def gc(
    config: ConfigFile = None,
    run: Annotated[bool, typer.Option("--run", help="Do a round of collection first.")] = False,
    sweep: Annotated[bool, typer.Option("--sweep", help="Sweep the bucket first, or go on with its sweep.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Collect nothing, only list (the default).")] = False,
    as_json: JsonOption = False,
) -> None:
    """List what of the hosted content waits to be collected, since when, why, and when it may go."""
    if dry_run and (run or sweep):
        raise ConfigError(["--dry-run excludes --run and --sweep: without these, nothing is collected anyway"])
    loaded = load(config, level="warning")
    check_there(loaded)
    if run:
        check_owner(loaded)
        with audited(loaded, "collect") as about:
            about |= asyncio.run(_collect(loaded))
    if sweep:
        check_owner(loaded)
        with audited(loaded, "sweep") as about:
            about |= asyncio.run(_sweep(loaded))
    found, trouble = asyncio.run(_look(loaded))
    say_json(found) if as_json else _print(found)
    if trouble:
        raise MirrorError(f"{trouble}: what waits in the bucket is perhaps not all listed")


async def _collect(loaded: settings.Config) -> dict[str, object]:
    from mirror.app.collecting import open_collector
    from mirror.app.hosting import disk_parts
    from mirror.app.reporting import open_reports
    from mirror.app.storage import open_storage

    async with open_storage(loaded) as storage:
        parts = disk_parts(loaded, storage)
        async with open_reports(loaded, storage, parts.events, time.time):
            report = await open_collector(loaded, storage, parts, time.time).run()
    if report is None:
        raise MirrorError("a round of collection is running already; it is the server's, or of another command")
    return {"links": report.links, "blobs": report.blobs, "bytes": report.bytes}


async def _sweep(loaded: settings.Config) -> dict[str, object]:
    from mirror.app.collecting import open_sweeper
    from mirror.app.storage import open_storage

    async with open_storage(loaded) as storage:
        sweeper = open_sweeper(loaded, storage, time.time)
        if sweeper is None:
            raise MirrorError("there is no bucket to sweep: `[store] bucket` is not set")
        report = await sweeper.run()
    if report is None:
        raise MirrorError("a sweep is running already; it is the server's, or of another command")
    return {"objects": report.objects, "deleted": report.deleted, "lost": report.lost}


async def _look(loaded: settings.Config) -> tuple[dict[str, Any], str]:
    """What waits, and why what only a bucket has could not be read; empty: it could."""
    from mirror.app.collecting import collection_rules, open_collector
    from mirror.app.hosting import disk_parts
    from mirror.app.storage import open_storage
    from mirror.collection.collection_replies import collection_json, unread_json, waiting_json
    from mirror.collection.collection_report import Unread
    from mirror.collection.waiting import waiting

    async with open_storage(loaded) as storage:
        parts = disk_parts(loaded, storage)
        collector = open_collector(loaded, storage, parts, time.time)
        last = await asyncio.to_thread(lambda: collection_json(collector.last(), collector.last_sweep()))
        unread: list[Unread] = []
        # only shown: what is remembered of a bucket will do
        shown, contents = storage.stored.shown, storage.blobs.shown() if storage.blobs else storage.contents
        parts = replace(parts, contents=contents, catalog=shown.catalog, records=shown.repositories)
        found = await asyncio.to_thread(lambda: list(waiting(parts, collection_rules(loaded), unread)))
        trouble = await asyncio.to_thread(storage.stored.trouble)
    found.sort(key=lambda entry: entry.may_go_at)
    listed = {"waiting": [waiting_json(entry) for entry in found], "unread": [unread_json(each) for each in unread]}
    return {**last, **listed}, trouble


def _print(found: Mapping[str, Any]) -> None:
    waiting: Sequence[Mapping[str, Any]] = found["waiting"]
    table = TextTable("what", "repository", "digest", "size", "waits since", "may go", "why")
    for entry in waiting[:_MOST_ROWS]:
        size = format_size(entry["size"])
        row = (entry["kind"], entry["repository"] or "", entry["digest"], size)
        table.add_row(*row, entry["since"], entry["may_go"], entry["why"])
    if waiting:
        table.show()
    if len(waiting) > _MOST_ROWS:
        say(f"{len(waiting) - _MOST_ROWS} more: see --json")
    sums = [entry["size"] for entry in waiting if entry["kind"] == "bytes"]
    say(f"waiting: {counted(len(waiting), 'item')}, which will free {format_size(sum(sums))}")
    for unread in found["unread"][:_MOST_ROWS]:
        say(f"cannot be read: {unread['what']}: {unread['reason']}")
    if len(found["unread"]) > _MOST_ROWS:
        say(f"{len(found['unread']) - _MOST_ROWS} more cannot be read: see --json")
    if last := found["last"]:
        _print_round(last)
    else:
        say("there was no round of collection yet")
    if swept := found["sweep"]:
        _print_sweep(swept)


def _print_sweep(swept: Mapping[str, Any]) -> None:
    when = f"ended {swept['ended']}" if swept["ended"] else f"begun {swept['begun']}, {100 * swept['done']:.0f} % done"
    seen = f"{counted(swept['objects'], 'object')}, {format_size(swept['bytes'])}"
    say(f"sweep of the bucket: {when}, has seen {seen}, and deleted {format_size(swept['deleted_bytes'])}")
    if swept["queued"]:
        say(f"{counted(swept['queued'], 'blob')} of which nothing was known wait to be collected")
    if swept["lost"]:
        say(f"{counted(swept['lost'], 'blob')} were not found: see `mirror status --verbose`")


def _print_round(last: Mapping[str, Any]) -> None:
    done = f"{counted(last['blobs'], 'blob')}, {format_size(last['bytes'])}, {counted(last['links'], 'link')}"
    say(f"last round: {last['ended'] or last['begun']}, collected {done}")
    if not last["complete"]:
        say("it could not look at everything; the bytes of all repositories were kept")
    for unread in last["unread"]:
        say(f"could not be read: {unread['what']}: {unread['reason']}")
    if (more := last["unread_count"] - len(last["unread"])) > 0:
        say(f"and {more} more")


@application.command()
def release(
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY", help="corp/library/nginx")],
    config: ConfigFile = None,
) -> None:
    """Give back the name of a hosted repository that is empty: virtual registries may then ask upstreams for it."""
    loaded = load(config, level="warning")
    check_there(loaded)
    check_owner(loaded)
    table = settings.routing_table(loaded)
    [named] = parse_images([repository], loaded)
    repo = named.repo
    if has_reference(repository):
        raise ConfigError([f"{repository}: name a repository, without tag or digest"])
    if not table.hosts_registry(repo.registry):
        raise ConfigError([f"{repo} is not hosted here"])
    disk = open_disk(loaded)
    with audited(loaded, "release", repository=str(repo)) as about:
        if not disk.hosted.records.is_taken(repo):
            say(f"{repo}: the name is free")
            about["reason"] = "the name was free"
            return
        if not disk.hosted.records.release(repo):
            raise Denied(
                f"{repo} still has something: delete it (`mirror delete --repository`), wait until it can no longer be "
                "undeleted, and until its blobs are collected (`mirror gc`)"
            )
    say(f"{repo}: released")


@application.command()
def backup(
    folder: Annotated[Path, typer.Argument(help="Where the backup is, or will be. The next one copies what is new.")],
    config: ConfigFile = None,
    as_json: JsonOption = False,
) -> None:
    """Copy all hosted images into a folder, also while the mirror runs. Exit status 1 if something is not copied."""
    loaded = load(config)
    if not loaded.hosted:
        raise ConfigError(["no registry is hosted here: there is no [[hosted]] section, and so nothing to back up"])
    if loaded.store.bucket is not None:
        raise ConfigError(
            ["hosted content is in a bucket: `mirror migrate --to-disk --root …` copies it to another disk"]
        )
    check_there(loaded)
    disk = open_disk(loaded)
    registries = [entry.name for entry in loaded.hosted]
    with progress_bars(quiet=as_json) as bars:
        task = bars.add_task("copying", total=None)
        copying = BackupFolder(
            disk.layout,
            disk.store.id,
            registries,
            folder,
            now=time.time,
            progress=lambda size: bars.advance(task, size),
        )
        report = copying.back_up()
    say_json(asdict(report)) if as_json else _print_backup(report, folder)
    if report.problems:
        raise typer.Exit(1)


def _print_backup(report: BackupReport, folder: Path) -> None:
    for problem in report.problems:
        complain(problem)
    copied = f"copied {counted(report.copied, 'blob')} ({format_size(report.copied_bytes)})"
    others = f"{report.present} were there, {report.removed} removed"
    repositories = "1 repository" if report.repositories == 1 else f"{report.repositories} repositories"
    say(f"{folder}: {repositories}; {copied}, {others}")

"""`status` and `purge`: of the running mirror where one runs, of the disk where none does."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from mirror import __version__, telemetry
from mirror import config as settings
from mirror.cli.admin_client import ask, ask_if_running, target_of
from mirror.cli.audit_command import audited
from mirror.cli.base import ConfigFile, TextTable, application, say, say_json
from mirror.cli.long_running import check_owner, check_there
from mirror.errors import ConfigError, RequestError
from mirror.inspect.as_json import purged_json
from mirror.policy.image_names import Image, parse_image
from mirror.values.durations import format_duration
from mirror.values.sizes import format_size


@application.command()
def status(
    config: ConfigFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Tell how the mirror is doing: how full, how much it saved, downloads under way, upstreams that are down."""
    loaded = settings.load(config)
    telemetry.set_up_logging("error")
    found = ask_if_running(loaded, "GET", "/admin/v1/status")
    if found is None:
        check_there(loaded)
        found = asyncio.run(_on_disk(loaded))
        flights: list[dict[str, Any]] = []
        upstreams: list[dict[str, Any]] = []
    else:
        flights = ask(loaded, "GET", "/admin/v1/flights")["flights"]
        upstreams = ask(loaded, "GET", "/admin/v1/upstreams")["upstreams"]
    if as_json:
        say_json({**found, "flights": flights, "upstreams": upstreams})
    else:
        _show(found, flights, upstreams)


async def _on_disk(loaded: settings.Config) -> dict[str, Any]:
    from mirror.app.storage import open_storage

    async with open_storage(loaded) as storage:
        held, limit = await storage.eviction.space.fullness() or (None, None)
        aside = await asyncio.to_thread(storage.eviction.space.quarantined)
        index = {"error": storage.eviction.write_behind.trouble}
    # what nobody counts is null: programs find the same names beside a mirror that runs and without
    store = {
        "root": str(loaded.store.root),
        "bytes": held,
        "limit": limit,
        "quarantine_bytes": aside,
        "failing_workers": None,
    }
    unknown = {"worker": None, "uptime": None, "traffic": None}
    return {"version": __version__, **unknown, "workers": [], "store": store, "index": index, "offline": loaded.offline}


def _show(found: dict[str, Any], flights: list[dict[str, Any]], upstreams: list[dict[str, Any]]) -> None:
    store, workers = found["store"], found["workers"]
    sealed = ", sealed" if found["offline"] else ""
    up = format_duration(max((one["uptime"] for one in workers), default=0))
    running = f"{_workers(len(workers))}, up {up}" if workers else "not running"
    say(f"mirror:    {found['version']}, {running}{sealed}")
    say(f"store:     {_say_full(store['bytes'], store['limit'])} in {store['root']}")
    if size := store["quarantine_bytes"]:
        say(f"damaged:   {format_size(size)} set aside in {store['root']}/quarantine: check the disk")
    if count := store.get("failing_workers"):
        say(f"uncached:  {_workers(count)} could not store what came last, and passed it on: see `mirror doctor`")
    if trouble := found.get("index", {}).get("error"):
        say(f"index:     {trouble}; the disk is asked instead")
    if traffic := found.get("traffic"):
        ratio = "nothing served yet" if traffic["hit_ratio"] is None else f"{100 * traffic['hit_ratio']:.1f} % hits"
        sent, saved = format_size(traffic["sent"]), format_size(traffic["saved"])
        say(f"traffic:   {ratio}, {sent} to clients, {saved} saved")
    for one in upstreams:
        if one["state"] != "ok":
            retry = max(each["retry_in"] for each in one["endpoints"])
            say(f"upstream:  {one['name']} is {one['state']}, asked again in {retry:.0f} s")
        for each in one["endpoints"]:
            if told := each["credentials"]:
                say(f"login:     {one['name']} by {told['provider']}: {told['reason']}, since {told['since']}")
        if budget := one["budget"]:
            say(f"budget:    {one['name']} leaves {budget['remaining']} of {budget['limit']} pulls")
    table = TextTable("download", "digest", "received", "clients")
    for one in flights:
        size = "?" if one["size"] is None else format_size(one["size"])
        received = f"{format_size(one['received'])} of {size}"
        table.add_row(one["repository"] or one["upstream"], one["digest"], received, str(one["followers"]))
    if flights:
        table.show()


def _workers(count: int) -> str:
    return f"{count} worker{'' if count == 1 else 's'}"


def _say_full(held: int | None, limit: int | None) -> str:
    if held is None or limit is None:
        return "being counted"
    return f"{format_size(held)} of {format_size(limit)} ({100 * held / limit if limit else 0.0:.0f} %)"


@application.command()
def purge(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="docker.io/library/app:1.0, or by digest.")],
    config: ConfigFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Drop an image, and the blobs that no other image needs. One that is pinned or frozen is refused."""
    loaded = settings.load(config)
    telemetry.set_up_logging("warning")
    wanted = _parse(image, loaded)
    purged: Mapping[str, Any] | None = ask_if_running(loaded, "DELETE", target_of("images", wanted), patience=None)
    if purged is None:
        check_owner(loaded, "leaves")
        purged = asyncio.run(_purge(loaded, wanted))
    if as_json:
        say_json(purged)
        return
    count, size = purged["blobs"], format_size(purged["bytes"])
    say(f"{purged['image']}: purged, {count} blob{'' if count == 1 else 's'} with {size}")
    if not purged["manifests"]:
        say("another tag points to the same image: its content stays")


async def _purge(loaded: settings.Config, wanted: Image) -> Mapping[str, Any]:
    from mirror.app.storage import make_purge, open_storage

    with audited(loaded, "purge", repository=str(wanted.repo), reference=str(wanted.reference)) as about:
        async with open_storage(loaded) as storage:
            purged = await make_purge(loaded, storage)(wanted)
        about["bytes"] = purged.bytes
    return purged_json(purged)


def _parse(text: str, loaded: settings.Config) -> Image:
    try:
        return parse_image(text, settings.routing_table(loaded))
    except RequestError as error:
        raise ConfigError([str(error)]) from error

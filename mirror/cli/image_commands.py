"""`ls`, `show`, `verify`, `misses`: the images that are here, whether they are sound, and what a sealed mirror lacks.

All of them use the disk, with or without a running server.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from mirror import config as settings
from mirror.app.storage import (
    MISSES_LOCK,
    SCRUB_LOCK,
    Storage,
    blob_places,
    immutable_tags,
    open_storage,
    pin_rules,
    scrub_records,
)
from mirror.cli.base import (
    ConfigFile,
    JsonOption,
    TextTable,
    application,
    complain,
    counted,
    format_minute,
    load,
    parse_images,
    progress_bars,
    say,
    say_json,
)
from mirror.cli.store_checks import check_owner, check_there
from mirror.config import routing_table
from mirror.errors import ConfigError, MirrorError
from mirror.eviction.pinned_images import PinnedImage, pinned_images
from mirror.eviction.scrub import (
    Scrub,
    ScrubProgress,
    dangling_records,
    read_progress,
    scrub_all,
    scrub_image,
)
from mirror.graph.blob_places import BlobPlaces
from mirror.inspect.as_json import image_detail_json, image_json
from mirror.inspect.images import CachedImage, ImageDetail, Overview, PageCursor, PlatformHere
from mirror.oci.manifest import Descriptor
from mirror.policy.hosted.stay_rules import StayRules
from mirror.policy.image_misses import Miss
from mirror.policy.image_names import Image, name_of
from mirror.policy.selection import select
from mirror.store.local.miss_file import LocalMisses
from mirror.values.sizes import format_size, parse_size
from mirror.values.timestamps import moment

# ------------------------------------------------------------------------------------------------------------- ls


@application.command()
def ls(
    pattern: Annotated[str, typer.Argument(help="Images such as alpine, library/*, ghcr.io/**:v1.*")] = "**",
    config: ConfigFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
    incomplete: Annotated[bool, typer.Option("--incomplete", help="Only images that are incomplete.")] = False,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many images.")] = None,
    after: Annotated[
        str, typer.Option("--after", metavar="IMAGE", help="Only what follows this image in the list.")
    ] = "",
) -> None:
    """List the images that are here, cached and hosted, with the platforms that are complete."""
    loaded = _load(config)
    trouble = asyncio.run(_list(loaded, pattern, as_json, incomplete, limit, _place(after, loaded)))
    if trouble:
        raise MirrorError(f"{trouble}: what only the bucket has is listed as missing")


_ROW = "{:<9} {:>8}  {:<16}  {:<9}  {:<19}  {:<50}  {}"


def _place(after: str, loaded: settings.Config) -> PageCursor | None:
    """Where a list begins that follows this image. Raises `ConfigError`."""
    if not after:
        return None
    [image] = parse_images([after], loaded)
    return image.repo, str(image.reference)


async def _list(
    loaded: settings.Config,
    pattern: str,
    as_json: bool,
    incomplete: bool,
    limit: int | None,
    begin: PageCursor | None,
) -> str:
    """Returns why what only a bucket has could not be read; empty: it could."""
    selection = select(pattern, routing_table(loaded))
    async with open_storage(loaded) as storage:
        overview = await asyncio.to_thread(_overview, loaded, storage)
        header = _ROW.format("COMPLETE", "SIZE", "LAST PULL", "STAYS", "DIGEST", "IMAGE", "PLATFORMS").rstrip()
        # not before it is known whether anything can be listed
        lines = [] if as_json else [header]
        left = limit
        async with aclosing(overview.images(selection, begin)) as images:
            async for image in images:
                if incomplete and image.complete:
                    continue
                for line in lines:
                    say(line)
                lines.clear()
                say_json(image_json(image), indent=None) if as_json else say(_image_row(image))
                left = None if left is None else left - 1
                if left == 0:
                    break
        for line in lines:
            say(line)
        return await asyncio.to_thread(storage.stored.trouble)


def _stays(image: CachedImage) -> str:
    """Why the image is not evicted."""
    if image.hosted:
        return "immutable" if image.immutable else "hosted"
    return "yes" if image.pinned else "frozen" if image.frozen else ""


def _image_row(image: CachedImage) -> str:
    return _ROW.format(
        "manifest only" if image.manifests_only else _yes(image.complete),
        format_size(image.closure.present_size),
        format_minute(image.used_at),
        _stays(image),
        f"{image.root.digest.algorithm}:{image.root.digest.hex[:12]}",
        image.name,
        ",".join(image.complete_platforms),
    ).rstrip()


# ----------------------------------------------------------------------------------------------------------- show


@application.command()
def show(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="docker.io/library/app:1.0, or by digest.")],
    config: ConfigFile = None,
    as_json: JsonOption = False,
) -> None:
    """Show everything about one image: its parts, what is missing, what it shares, what protects it."""
    loaded = _load(config)
    [wanted] = parse_images([image], loaded)
    whole = asyncio.run(_show(loaded, wanted))
    if as_json:
        say_json(image_detail_json(whole))
    else:
        _print_whole(whole)


async def _show(loaded: settings.Config, wanted: Image) -> ImageDetail:
    async with open_storage(loaded) as storage:
        overview = await asyncio.to_thread(_overview, loaded, storage)
        cached = await overview.image(wanted.repo, wanted.reference)
        if cached is None:
            raise MirrorError(f"{wanted} is not here")
        return await overview.detail(cached)


def _print_whole(whole: ImageDetail) -> None:
    image = whole.image
    facts = {
        "image": image.name,
        "hosted": "here, by pushes; never evicted" if image.hosted else "",
        "digest": str(image.root.digest),
        "media type": image.root.media_type,
        "complete offline": _completeness(image),
        "size": f"{format_size(image.closure.present_size)} here, of which {format_size(whole.shared)} are shared",
        "last pull": format_minute(image.used_at),
        "pushed" if image.hosted else "fetched": format_minute(whole.fetched_at),
        "tag moved here" if image.hosted else "tag looked up": format_minute(whole.checked_at),
        "pinned": "; ".join(map(_reason, image.pinned)),
        "frozen": f"since {format_minute(whole.frozen.since)} {whole.frozen.reason}" if whole.frozen else "",
        "other tags": ", ".join(whole.other_tags),
        "refers to": str(whole.subject or ""),
        "referrers": ", ".join(_referrer(referrer) for referrer in whole.referrers),
    }
    for name, value in facts.items():
        if value:
            say(f"{name + ':':<18}{value}")
    table = TextTable("platform", "manifest", "size", "complete")
    for platform in image.platforms:
        table.add_row(platform.name, str(platform.digest), format_size(platform.size), _state(platform))
    if image.platforms:
        table.show()
    for platform in image.platforms:
        for node in platform.missing:
            size = format_size(node.descriptor.size) if node.descriptor.size >= 0 else "size unknown"
            say(f"missing: {node.digest}, {node.role.value}, {size}, {platform.name or platform.digest}")


def _completeness(image: CachedImage) -> str:
    missing, unpulled = image.closure.missing, image.closure.unpulled
    if missing:
        return f"no: {len(missing)} missing"
    if not image.complete:
        return "no: no platform was pulled"
    return f"yes, except for platforms that were never pulled: {len(unpulled)}" if unpulled else "yes"


def _state(platform: PlatformHere) -> str:
    if not platform.pulled:
        return "never pulled"
    return f"no, {len(platform.missing)} missing" if platform.missing else "yes"


def _reason(pinned: PinnedImage) -> str:
    by = f"by the rule {pinned.rule}" if pinned.rule else f"as {name_of(pinned.repo, pinned.reference)}"
    until = f", until {format_minute(pinned.until)}" if pinned.until else ""
    return f"{by}{f', {pinned.reason}' if pinned.reason else ''}{until}"


def _referrer(descriptor: Descriptor) -> str:
    return f"{descriptor.digest} ({descriptor.artifact_type or descriptor.media_type})"


# --------------------------------------------------------------------------------------------------------- verify


@application.command()
def verify(
    image: Annotated[
        list[str] | None, typer.Argument(metavar="IMAGE", help="Only these images; without any, every blob.")
    ] = None,
    config: ConfigFile = None,
    rate: Annotated[str | None, typer.Option(help="Maximum number of bytes per second, such as 50MB.")] = None,
    repair: Annotated[bool, typer.Option("--repair/--no-repair", help="Fetch damaged blobs again.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Check the digests of blobs, set damaged ones aside and fetch them again. Exit status 1 if some cannot be had."""
    loaded = _load(config)
    check_owner(loaded)
    limit = _parse_rate(rate)
    images = parse_images(image or [], loaded)
    with progress_bars(quiet=as_json) as bars:
        report = asyncio.run(_verify(loaded, images, limit, repair, bars))
    if as_json:
        say_json(report)
    else:
        _print_report(report)
    if report["lost"] or report["unreadable"] or report["missing"]:
        raise typer.Exit(1)


#: Sets the total number of bytes of the progress bar, and how many of them are done.
_SetTotal = Callable[[int, int], None]


async def _verify(
    loaded: settings.Config, images: Sequence[Image], rate: float | None, repair: bool, bars: Progress
) -> dict[str, Any]:
    from mirror.app.building import build

    task = bars.add_task("hashing", total=None)

    def set_total(size: int, done: int) -> None:
        bars.update(task, total=size, completed=done)

    async with build(loaded, housework=False) as app:
        scrub = app.scrub(rate=rate, repair=repair, read=lambda size: bars.advance(task, size))
        if images:
            return await _verify_images(loaded, app.storage, images, scrub, set_total)
        return await _verify_all(app.storage, app.places, scrub, set_total)


async def _verify_images(
    loaded: settings.Config, storage: Storage, images: Sequence[Image], scrub: Scrub, set_total: _SetTotal
) -> dict[str, Any]:
    places, catalog = blob_places(loaded, storage), storage.catalog
    overview = await asyncio.to_thread(_overview, loaded, storage)
    looked_up = [(wanted, await overview.image(wanted.repo, wanted.reference)) for wanted in images]
    absent = [str(wanted) for wanted, image in looked_up if image is None]
    if absent:
        raise MirrorError(f"not here: {', '.join(absent)}")
    cached = [image for _, image in looked_up if image is not None]
    sizes = {node.digest: max(0, node.descriptor.size) for image in cached for node in image.closure.present}
    set_total(sum(sizes.values()), 0)
    progress = ScrubProgress(time.time())
    missing: list[str] = []
    for image in cached:
        lost = await scrub_image(scrub, places.of(image.repo), catalog, image.repo, image.root, progress)
        missing += [f"{image.name}: {node.digest}" for node in lost]
    progress.complete_at = time.time()
    return {**_progress_json(progress), "missing": missing, "dangling": []}


async def _verify_all(storage: Storage, places: BlobPlaces, scrub: Scrub, set_total: _SetTotal) -> dict[str, Any]:
    store = places.contents
    lease = await storage.locks.try_hold(SCRUB_LOCK)
    if lease is None:
        raise MirrorError("another process is verifying this store")
    with lease:
        notes = scrub_records(storage.layout)
        before = await asyncio.to_thread(read_progress, notes)
        done = 0
        if before and before.complete_at is None and before.after:
            complain(f"continuing after {before.after}; this pass began {format_minute(before.begun_at)}")
            done = before.bytes
        set_total(await asyncio.to_thread(lambda: sum(info.size for info in store.walk())), done)
        progress = await scrub_all(scrub, store, notes)
    dangling = await asyncio.to_thread(lambda: list(dangling_records(storage.catalog, places)))
    return {**_progress_json(progress), "missing": [], "dangling": dangling}


def _progress_json(progress: ScrubProgress) -> dict[str, Any]:
    stored = progress.to_json()
    counts = {name: stored[name] for name in stored if name not in ("after", "waiting", "begunAt", "completeAt")}
    return {**counts, "begun_at": moment(progress.begun_at), "complete_at": moment(progress.complete_at)}


def _print_report(report: dict[str, Any]) -> None:
    for record in report["dangling"]:
        say(f"record without content: {record}")
    for digest in report["lost"]:
        say(f"damaged and not repaired, set aside: {digest}")
    for digest in report["unreadable"]:
        say(f"cannot be read, left in place: {digest}")
    for missing in report["missing"]:
        say(f"missing: {missing}")
    say(
        f"{counted(report['blobs'], 'blob')}, {format_size(report['bytes'])} hashed; {report['damaged']} damaged: "
        f"{report['repaired']} repaired, {report['unneeded']} not needed by any image, "
        f"{len(report['lost']) + len(report['unreadable'])} not repaired"
    )


def _parse_rate(rate: str | None) -> float | None:
    try:
        limit = None if rate is None else parse_size(rate.removesuffix("/s"))
    except ValueError as error:
        raise ConfigError([f"--rate: {error}"]) from error
    if limit == 0:
        raise ConfigError(["--rate: must be more than 0; without it, there is no limit"])
    return limit


# --------------------------------------------------------------------------------------------------------- misses


@application.command()
def misses(
    config: ConfigFile = None,
    as_json: JsonOption = False,
    images: Annotated[
        bool, typer.Option("--images", help="Print one image per line, without those that are complete now.")
    ] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Delete the list after printing it.")] = False,
) -> None:
    """List the requests that a sealed mirror could not answer."""
    loaded = _load(config)
    if as_json and images:
        raise ConfigError(["--json and --images exclude each other"])
    if clear:
        check_owner(loaded)
    asyncio.run(_misses(loaded, _printer(as_json, images), clear))


def _printer(as_json: bool, images: bool) -> Callable[[list[tuple[Miss, str]]], None]:
    if as_json:
        return _print_misses_json
    return _print_images if images else _print_misses


async def _misses(loaded: settings.Config, write: Callable[[list[tuple[Miss, str]]], None], clear: bool) -> None:
    async with open_storage(loaded) as storage:
        report = LocalMisses(storage.layout)
        overview = await asyncio.to_thread(_overview, loaded, storage)

        async def list_them() -> None:
            write([(miss, await _now(overview, miss)) for miss in await asyncio.to_thread(report.read)])

        if not clear:
            await list_them()
            return
        # new misses wait until the list is cleared, so that none is deleted unseen
        async with storage.locks.hold(MISSES_LOCK):
            await list_them()
            sys.stdout.flush()
            await asyncio.to_thread(report.clear)


async def _now(overview: Overview, miss: Miss) -> str:
    """Whether the image is here now: an import may have brought it since."""
    if miss.reference is None:
        return "unknown"
    image = await overview.image(miss.repo, miss.reference)
    return "absent" if image is None else "complete" if image.complete else "incomplete"


def _print_misses(misses: list[tuple[Miss, str]]) -> None:
    table = TextTable("image", "requests", "first", "last", "now", "missing blobs")
    for miss, now in misses:
        blobs = "\n".join(map(str, miss.blobs))
        table.add_row(miss.image, str(miss.count), format_minute(miss.first), format_minute(miss.last), now, blobs)
    if misses:
        table.show()
    say(f"{counted(len(misses), 'image')} requested, but missing or incomplete at that time")


def _print_images(misses: list[tuple[Miss, str]]) -> None:
    for miss, now in misses:
        if now in ("absent", "incomplete"):
            say(miss.image)


def _print_misses_json(misses: list[tuple[Miss, str]]) -> None:
    listed = [
        {
            "image": miss.image,
            "repository": str(miss.repo),
            "reference": None if miss.reference is None else str(miss.reference),
            "requests": miss.count,
            "first": moment(miss.first),
            "last": moment(miss.last),
            "now": now,
            "blobs": [str(digest) for digest in miss.blobs],
        }
        for miss, now in misses
    ]
    say_json(listed)


# ------------------------------------------------------------------------------------------------- what they share


def _load(config: Path | None) -> settings.Config:
    loaded = load(config)
    check_there(loaded)
    return loaded


def _overview(loaded: settings.Config, storage: Storage) -> Overview:
    pinned = pinned_images(storage.pins, pin_rules(loaded), storage.catalog, time.time())
    freezes, unread = storage.freezes.look()
    places, rules = blob_places(loaded, storage), StayRules(immutable=immutable_tags(loaded))
    return Overview(places, storage.catalog, storage.index, pinned, freezes, rules, unread)


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"

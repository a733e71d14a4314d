"""`export`, `inventory` and `keygen`: what the side with internet needs for bundles, and what it is told."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from mirror import config as settings
from mirror.bundles.export import export, select
from mirror.bundles.inventory import Inventory, read_inventory, take_inventory
from mirror.bundles.layout_target import create_layout
from mirror.bundles.signing import make_key_pair, read_private_key
from mirror.cli.base import ConfigFile, TextTable, application, say, say_json
from mirror.cli.long_running import Json, check_there, fail, from_file, in_thread, load, progress
from mirror.errors import ConfigError
from mirror.intake.tag_history import TagHistories
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.image_names import Image
from mirror.policy.routing import RoutingTable
from mirror.prefetch.list_files import plain_file
from mirror.prefetch.lists import Listed, ListMalformed, Named, resolve_images
from mirror.values.platforms import parse_platforms
from mirror.values.sizes import format_size


@application.command("export")
def export_images(
    images: Annotated[
        list[str] | None, typer.Argument(metavar="[IMAGE]...", help="Images that this mirror has.")
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="A tar, or a folder if it ends in / or is one.")] = "",
    lists: Annotated[
        list[Path] | None, typer.Option("--from-file", help="A list of images, one a line; - is standard input.")
    ] = None,
    since: Annotated[
        Path | None, typer.Option("--since", help="The other side's inventory: blobs that it names are left out.")
    ] = None,
    platform: Annotated[
        list[str] | None,
        typer.Option("--platform", help="os/architecture[/variant], several by commas; else all here."),
    ] = None,
    referrers: Annotated[bool, typer.Option("--referrers", help="With signatures, SBOMs and the like.")] = False,
    partial: Annotated[
        bool, typer.Option("--allow-incomplete", help="Also images of which something is missing here.")
    ] = False,
    sign: Annotated[Path | None, typer.Option("--sign", help="PEM file with the Ed25519 key to sign with.")] = None,
    as_json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Write images of this mirror as a bundle: an OCI image layout with an inventory."""
    loaded = load(config)
    if not output:
        raise ConfigError(["export: say with --output where to write"])
    from mirror.app.storage import open_storage
    from mirror.config import routing_table

    check_there(loaded)
    chosen = _chosen(images or [], lists or [], routing_table(loaded))
    try:
        platforms = parse_platforms(platform or [])
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    key = from_file(read_private_key, sign)
    there = from_file(read_inventory, since)
    place = Path(output)
    is_folder = output.endswith("/") or place.is_dir()

    async def work() -> tuple[Inventory, Digest]:
        async with open_storage(loaded) as storage:
            with progress() as begin:
                selection = await in_thread(
                    lambda _: select(
                        storage.store,
                        storage.catalog,
                        chosen,
                        answers=_answers(loaded, storage),
                        platforms=platforms,
                        referrers=referrers,
                        partial=partial,
                        since=there,
                    )
                )
                told = begin("writing", selection.inventory(there).size)
                target = create_layout(place, folder=is_folder)
                return await in_thread(
                    lambda stoppable: export(
                        selection, storage.store, target, since=there, key=key, on_read=stoppable(told)
                    )
                )

    _tell(output, *asyncio.run(work()), signed=key is not None, as_json=as_json)


def _tell(output: str, written: Inventory, digest: Digest, *, signed: bool, as_json: bool) -> None:
    left_out = sum(written.left_out.values())
    if as_json:
        summary = {
            "output": output,
            "images": [image.name for image in written.images],
            "blobs": len(written.blobs),
            "bytes": written.size,
            "leftOut": {"blobs": len(written.left_out), "bytes": left_out},
            "missing": [str(one) for one in written.missing],
            "inventory": str(digest),
            "signed": signed,
        }
        say_json(summary)
        return
    say(f"{output}: {len(written.images)} images, {len(written.blobs)} blobs, {format_size(written.size)}")
    if written.left_out:
        count = len(written.left_out)
        say(f"left out, because the other side has them: {count} blobs, {format_size(left_out)}")
    if written.missing:
        say(f"missing: {len(written.missing)} blobs")


def _answers(loaded: settings.Config, storage: Any) -> Callable[[Repo, str], Digest | None]:
    """What a tag answers now, as for a client."""
    from mirror.app.routes import age_rule

    histories = TagHistories(storage.catalog, storage.freezes)

    def answers(repo: Repo, tag: str) -> Digest | None:
        return histories.answer(repo, tag, age_rule(loaded, repo))

    return answers


def _chosen(images: list[str], files: list[Path], table: RoutingTable) -> list[Image]:
    """Those on the command line, then those of lists. Raises `ConfigError` with all that is wrong with them."""
    listed = Listed(tuple(Named(image, "") for image in images))
    mistakes = []
    for path in files:
        try:
            listed += plain_file(path)
        except ListMalformed as error:
            mistakes.append(str(error))
    chosen, more = resolve_images(listed.images, table)
    if mistakes or more:
        raise ConfigError([*mistakes, *more])
    if not chosen:
        raise ConfigError(["export: no image is named, here or in a list"])
    return list(chosen)


# -------------------------------------------------------------------------------------------- inventory, keygen


@application.command()
def inventory(
    as_json: Annotated[bool, typer.Option("--json", help="Print the file that `export --since` reads.")] = False,
    config: ConfigFile = None,
) -> None:
    """Print which images and blobs this mirror has, from the disk."""
    loaded = load(config)
    check_there(loaded)

    async def work() -> Inventory:
        from mirror.app.storage import open_storage

        async with open_storage(loaded) as storage:
            return await in_thread(lambda _: take_inventory(storage.store, storage.catalog))

    taken = asyncio.run(work())
    if as_json:
        sys.stdout.write(taken.to_bytes().decode())
        return
    table = TextTable("image", "digest")
    for image in sorted(taken.images, key=lambda image: image.order):
        table.add_row(image.name if image.tag else str(image.repo), str(image.root.digest))
    if taken.images:
        table.show()
    say(f"{len(taken.images)} images, {len(taken.blobs)} blobs, {format_size(taken.size)}")


@application.command()
def keygen(
    prefix: Annotated[str, typer.Argument(help="Writes PREFIX.key, to be kept secret, and PREFIX.pub.")],
) -> None:
    """Make a pair of keys to sign bundles with."""
    private, public = make_key_pair()
    _write_new(Path(f"{prefix}.key"), private, 0o600)
    _write_new(Path(f"{prefix}.pub"), public, 0o644)
    say(f"{prefix}.key signs (keep it secret), {prefix}.pub verifies")


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Never over another key."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        fail(path, error)

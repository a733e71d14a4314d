"""`export`, `inventory` and `keygen`: the commands that write bundles, their inventories and their keys."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from mirror import config as settings
from mirror.bundles.blob_rights import blob_rights
from mirror.bundles.export import export, select
from mirror.bundles.inventory import Inventory, read_inventory, take_inventory
from mirror.bundles.layout_target import create_layout
from mirror.bundles.signing import make_key_pair, read_private_key
from mirror.cli.base import ConfigFile, JsonOption, TextTable, application, counted, load, say, say_json
from mirror.cli.long_running import fail, from_file, in_thread, progress
from mirror.cli.store_checks import check_there
from mirror.errors import ConfigError
from mirror.intake.grants import Grants
from mirror.intake.tag_history import TagHistories
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.image_names import Image
from mirror.policy.routing import RoutingTable
from mirror.prefetch.documents import ListMalformed
from mirror.prefetch.list_files import plain_file
from mirror.prefetch.lists import Listed, Named, resolve_images
from mirror.values.platforms import parse_platforms
from mirror.values.sizes import format_size


@application.command("export")
def export_images(
    images: Annotated[
        list[str] | None, typer.Argument(metavar="[IMAGE]...", help="Images that this mirror has.")
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="A tar file, or a folder if it ends in /.")] = "",
    lists: Annotated[
        list[Path] | None, typer.Option("--from-file", help="A list with one image per line; - is standard input.")
    ] = None,
    since: Annotated[
        Path | None, typer.Option("--since", help="Inventory of the other side; the blobs in it are left out.")
    ] = None,
    platform: Annotated[
        list[str] | None,
        typer.Option("--platform", help="os/architecture[/variant], separated by commas; default: all."),
    ] = None,
    referrers: Annotated[bool, typer.Option("--referrers", help="Also signatures, SBOMs and other referrers.")] = False,
    partial: Annotated[
        bool, typer.Option("--allow-incomplete", help="Also write images that are incomplete here.")
    ] = False,
    sign: Annotated[Path | None, typer.Option("--sign", help="PEM file with the Ed25519 key to sign with.")] = None,
    as_json: JsonOption = False,
    config: ConfigFile = None,
) -> None:
    """Write images of this mirror as a bundle: an OCI image layout with an inventory."""
    loaded = load(config)
    if not output:
        raise ConfigError(["export: --output is missing: where to write the bundle"])
    from mirror.app.storage import blob_places, open_storage
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
            places = blob_places(loaded, storage)
            may_serve = blob_rights(
                places, Grants(storage.index, storage.catalog, storage.store), storage.hosted.strict.repositories
            )
            with progress() as begin:
                selection = await in_thread(
                    lambda _: select(
                        storage.store,
                        storage.catalog,
                        chosen,
                        answers=_answers(loaded, storage),
                        may_serve=may_serve,
                        places=places,
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
                        selection, storage.contents, target, since=there, key=key, on_read=stoppable(told)
                    )
                )

    _print_summary(output, *asyncio.run(work()), signed=key is not None, as_json=as_json)


def _print_summary(output: str, written: Inventory, digest: Digest, *, signed: bool, as_json: bool) -> None:
    left_out = sum(written.left_out.values())
    if as_json:
        summary = {
            "output": output,
            "images": [image.name for image in written.images],
            "blobs": len(written.blobs),
            "bytes": written.size,
            "left_out": {"blobs": len(written.left_out), "bytes": left_out},
            "missing": [str(one) for one in written.missing],
            "inventory": str(digest),
            "signed": signed,
        }
        say_json(summary)
        return
    _print_totals(f"{output}: ", written)
    if written.left_out:
        count = len(written.left_out)
        say(f"left out, because the other side has them: {counted(count, 'blob')}, {format_size(left_out)}")
    if written.missing:
        say(f"missing: {counted(len(written.missing), 'blob')}")


def _print_totals(prefix: str, written: Inventory) -> None:
    images, blobs = counted(len(written.images), "image"), counted(len(written.blobs), "blob")
    say(f"{prefix}{images}, {blobs}, {format_size(written.size)}")


def _answers(loaded: settings.Config, storage: Any) -> Callable[[Repo, str], Digest | None]:
    """A function that returns the digest with which a tag is answered now."""
    from mirror.app.routes import age_rule

    histories = TagHistories(storage.catalog, storage.freezes)

    def answers(repo: Repo, tag: str) -> Digest | None:
        return histories.answer(repo, tag, age_rule(loaded, repo))

    return answers


def _chosen(images: list[str], files: list[Path], table: RoutingTable) -> list[Image]:
    """The images on the command line, then those of the lists. Raises `ConfigError` with every mistake in them."""
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
        raise ConfigError(["export: name an image, or a list that contains one"])
    return list(chosen)


# -------------------------------------------------------------------------------------------- inventory, keygen


@application.command()
def inventory(
    as_json: Annotated[bool, typer.Option("--json", help="Print the file that `export --since` reads.")] = False,
    config: ConfigFile = None,
) -> None:
    """List the images and blobs that this mirror has on disk."""
    loaded = load(config)
    check_there(loaded)

    async def work() -> Inventory:
        from mirror.app.storage import blob_places, open_storage

        async with open_storage(loaded) as storage:
            places = blob_places(loaded, storage)
            return await in_thread(lambda _: take_inventory(places, storage.catalog))

    taken = asyncio.run(work())
    if as_json:
        sys.stdout.write(taken.to_bytes().decode())
        return
    table = TextTable("image", "digest")
    for image in sorted(taken.images, key=lambda image: image.order):
        table.add_row(image.name if image.tag else str(image.repo), str(image.root.digest))
    if taken.images:
        table.show()
    _print_totals("", taken)


@application.command()
def keygen(
    prefix: Annotated[str, typer.Argument(help="The names of the files: PREFIX.key (keep it secret) and PREFIX.pub.")],
) -> None:
    """Create a key pair for signing bundles."""
    private, public = make_key_pair()
    _write_new(Path(f"{prefix}.key"), private, 0o600)
    _write_new(Path(f"{prefix}.pub"), public, 0o644)
    say(f"{prefix}.key signs bundles (keep it secret), {prefix}.pub verifies them")


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that must not exist yet, so that no key is overwritten."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        fail(path, error)

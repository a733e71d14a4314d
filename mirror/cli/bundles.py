"""`export`, `import`, `inventory` and `keygen`: images across an air gap, and out of another registry's data."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from mirror import config as settings
from mirror import telemetry
from mirror.cli.base import ConfigFile, application, table_console
from mirror.errors import BundleError, ConfigError, RequestError
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.images import Image, parse_image
from mirror.policy.platforms import parse_platforms
from mirror.policy.routing import RoutingTable
from mirror.policy.sizes import format_size
from mirror.repository.tag_history import TagHistories
from mirror.transfer.admit import Admitted, Plan, Site, Told, admit, plan_images
from mirror.transfer.bundle import Bundle, read_bundle, verify_bytes
from mirror.transfer.export import export, select
from mirror.transfer.inventory import Inventory, ListedImage, read_inventory, take_inventory
from mirror.transfer.layout_source import LayoutSource
from mirror.transfer.layout_target import create_layout
from mirror.transfer.registry_data import RegistryData, RegistryRepository
from mirror.transfer.signing import make_key_pair, read_private_key, read_public_key

__all__ = ["export_images", "import_images", "inventory", "keygen"]

_T = TypeVar("_T")

Json = Annotated[bool, typer.Option("--json", help="Print a summary for scripts.")]


# ------------------------------------------------------------------------------------------------------ export


@application.command("export")
def export_images(
    images: Annotated[
        list[str] | None, typer.Argument(metavar="[IMAGE]...", help="Images that this mirror has.")
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="A tar, or a folder if it ends in / or is one.")] = "",
    from_file: Annotated[
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
    partial: Annotated[bool, typer.Option("--partial", help="Also images of which something is missing here.")] = False,
    sign: Annotated[Path | None, typer.Option("--sign", help="PEM file with the Ed25519 key to sign with.")] = None,
    as_json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Write images of this mirror as a bundle: an OCI image layout with an inventory."""
    loaded = _load(config)
    if not output:
        raise ConfigError(["export: say with --output where to write"])
    from mirror.app import open_storage, routing_table

    chosen = _parse(_listed(images or [], from_file or []), routing_table(loaded))
    try:
        platforms = parse_platforms(platform or [])
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    key = _from_file(read_private_key, sign)
    there = _from_file(read_inventory, since)
    place = Path(output)
    is_folder = output.endswith("/") or place.is_dir()

    async def work() -> tuple[Inventory, Digest]:
        async with open_storage(loaded) as storage:
            with _progress() as begin:
                selection = await _in_thread(
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
                return await _in_thread(
                    lambda stoppable: export(
                        selection, storage.store, target, since=there, key=key, told=stoppable(told)
                    )
                )

    written, digest = asyncio.run(work())
    summary = {
        "output": output,
        "images": [image.name for image in written.images],
        "blobs": len(written.blobs),
        "bytes": written.size,
        "leftOut": {"blobs": len(written.left_out), "bytes": sum(written.left_out.values())},
        "missing": [str(one) for one in written.missing],
        "inventory": str(digest),
        "signed": key is not None,
    }
    if as_json:
        print(json.dumps(summary, indent=1))
        return
    print(f"{output}: {len(written.images)} images, {len(written.blobs)} blobs, {format_size(written.size)}")
    if written.left_out:
        size = format_size(sum(written.left_out.values()))
        print(f"left out, because the other side has them: {len(written.left_out)} blobs, {size}")
    if written.missing:
        print(f"missing: {len(written.missing)} blobs")


def _answers(loaded: settings.Config, storage: Any) -> Callable[[Repo, str], Digest | None]:
    """What a tag answers now, as for a client."""
    from mirror.app import age_rule

    histories = TagHistories(storage.catalog, storage.freezes)

    def answers(repo: Repo, tag: str) -> Digest | None:
        return histories.answer(repo, tag, age_rule(loaded, repo))

    return answers


def _listed(images: list[str], files: list[Path]) -> list[str]:
    """Those on the command line, then those of lists: a line each, `#` begins a comment."""
    found = list(images)
    for path in files:
        lines = (
            (sys.stdin.buffer.read() if str(path) == "-" else _read_file(path)).decode(errors="replace").splitlines()
        )
        found += [text for line in lines if (text := line.partition("#")[0].strip())]
    if not found:
        raise ConfigError(["export: no image is named"])
    return found


def _parse(images: list[str], table: RoutingTable) -> list[Image]:
    parsed, mistakes = [], []
    for text in images:
        try:
            parsed.append(parse_image(text, table))
        except RequestError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ConfigError(mistakes)
    return parsed


# ------------------------------------------------------------------------------------------------------ import


@application.command("import")
def import_images(
    source: Annotated[Path | None, typer.Argument(help="A bundle, or any OCI image layout: a tar or a folder.")] = None,
    from_registry: Annotated[
        Path | None, typer.Option("--from-registry", help="Data directory of a docker-registry instead.")
    ] = None,
    as_registry: Annotated[
        str | None, typer.Option("--as", help="The registry that its images are filed under; else the default one.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="What the image is called, where the layout does not say it.")
    ] = None,
    verify: Annotated[
        Path | None, typer.Option("--verify", help="PEM file with the public key of who must have signed.")
    ] = None,
    require_signature: Annotated[
        bool, typer.Option("--require-signature", help="Refuse to run without --verify.")
    ] = False,
    partial: Annotated[bool, typer.Option("--partial", help="Also images that would lack something.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check everything.")] = False,
    as_json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Take images in, so that they are served like pulled ones. Safe beside a running server."""
    loaded = _load(config)
    _check_import(source, from_registry, as_registry, name, verify, require_signature)
    importing = _Import(loaded, partial=partial, dry_run=dry_run)
    if from_registry is not None:
        done = asyncio.run(importing.of_registry(from_registry, as_registry))
    elif source is not None:
        key = _from_file(read_public_key, verify)
        done = asyncio.run(importing.of_layout(source, name, key))
    if as_json:
        print(json.dumps(done, indent=1))
    else:
        _tell(done)
    if done["refused"] or done["damaged"]:
        raise typer.Exit(1)


def _check_import(
    source: Path | None,
    from_registry: Path | None,
    as_registry: str | None,
    name: str | None,
    verify: Path | None,
    require_signature: bool,
) -> None:
    mistakes = []
    if (source is None) == (from_registry is None):
        mistakes.append("import: say either a bundle or --from-registry")
    if from_registry is not None and (name or verify or require_signature):
        mistakes.append("import: --name, --verify and --require-signature are for bundles; a registry's data has none")
    if as_registry is not None and from_registry is None:
        mistakes.append("import: --as belongs to --from-registry")
    if require_signature and verify is None:
        mistakes.append("import: --require-signature needs --verify with the key of who must have signed")
    if mistakes:
        raise ConfigError(mistakes)


class _Import:
    def __init__(self, loaded: settings.Config, *, partial: bool, dry_run: bool) -> None:
        self._loaded = loaded
        self._partial = partial
        self._dry_run = dry_run

    async def of_layout(self, path: Path, name: str | None, key: Any) -> dict[str, Any]:
        from mirror.app import open_storage, routing_table

        table = routing_table(self._loaded)
        async with open_storage(self._loaded) as storage:
            try:
                with LayoutSource(path) as layout, _progress() as begin:
                    bundle = await _in_thread(lambda _: read_bundle(layout, table, name=name, key=key))
                    images = [(image, layout) for image in bundle.images]
                    plan = await _in_thread(lambda _: plan_images(images, storage.store))
                    plan.expect_whole(partial=self._partial)
                    told = begin("checking", sum(plan.contents().values()))
                    await _in_thread(lambda stoppable: verify_bytes(layout, plan, stoppable(told)))
                    admitted = await self._admit(plan, _site(self._loaded, storage), begin)
            except BundleError as error:
                raise BundleError(f"{path}: {error}") from error
        return {**_summary(path, plan, admitted, self._dry_run), **_origin(bundle)}

    async def of_registry(self, path: Path, registry: str | None) -> dict[str, Any]:
        from mirror.app import open_storage, routing_table

        table = routing_table(self._loaded)
        filed_under = registry or self._loaded.default_registry
        if not filed_under or table.registry(filed_under) is None:
            raise ConfigError(
                [f"import: {filed_under!r} is not a registry of this mirror; say with --as which one the images are of"]
            )
        async with open_storage(self._loaded) as storage:
            with _progress() as begin:
                data = RegistryData(path)
                plan = await _in_thread(lambda _: _plan_registry(data, filed_under, table, storage.store))
                admitted = await self._admit(plan, _site(self._loaded, storage), begin, pass_over_damaged=True)
        return _summary(path, plan, admitted, self._dry_run)

    async def _admit(
        self, plan: Plan, site: Site, begin: Callable[[str, int], Told], *, pass_over_damaged: bool = False
    ) -> Admitted:
        if self._dry_run:
            return Admitted()
        told = begin("taking in", sum(plan.contents().values()))
        return await admit(plan, site, told=told, pass_over_damaged=pass_over_damaged)


def _plan_registry(data: RegistryData, registry: str, table: RoutingTable, store: Any) -> Plan:
    """Blocking."""
    images: list[tuple[ListedImage, RegistryRepository]] = []
    refused: dict[str, str] = {}
    for repository in data.repositories():
        try:
            found, lost = repository.images(registry, table)
        except RequestError as error:
            refused[repository.name] = str(error)
            continue
        images += [(image, repository) for image in found]
        refused |= {f"{repository.name}:{tag}": "its manifest is gone or damaged" for tag in lost}
    plan = plan_images(images, store, pass_over_damaged=True)
    plan.refused |= refused
    return plan


def _site(loaded: settings.Config, storage: Any) -> Site:
    from mirror.app import age_rule

    return Site(
        store=storage.store,
        catalog=storage.catalog,
        index=storage.index,
        room=storage.evictor,
        histories=TagHistories(storage.catalog, storage.freezes),
        touch=storage.evictor.touch,
        exclusive=storage.locks.exclusive,
        age=lambda repo: age_rule(loaded, repo),
    )


def _summary(path: Path, plan: Plan, admitted: Admitted, dry_run: bool) -> dict[str, Any]:
    return {
        "source": str(path),
        "dryRun": dry_run,
        "images": [planned.image.name for planned in plan.images],
        "written": {"blobs": len(admitted.written), "bytes": sum(admitted.written.values())},
        "here": {"blobs": len(admitted.here), "bytes": sum(admitted.here.values())},
        "absent": {str(digest): image for digest, image in plan.absent.items()},
        "damaged": {str(digest): reason for digest, reason in admitted.damaged.items()},
        "refused": plan.refused,
        "moved": {name: str(digest) for name, digest in admitted.moved.items()},
        "indexTold": admitted.index_told,
    }


def _origin(bundle: Bundle) -> dict[str, Any]:
    return {"verified": bundle.verified, "hasInventory": bundle.inventory is not None}


def _tell(done: dict[str, Any]) -> None:
    count, written, here = len(done["images"]), done["written"], done["here"]
    if done["dryRun"]:
        print(f"{done['source']}: good: {count} images; nothing was taken in")
    else:
        print(
            f"{done['source']}: {count} images taken in, {written['blobs']} blobs written ({_size(written)}), ", end=""
        )
        print(f"{here['blobs']} here already ({_size(here)})")
    for image, was in done["moved"].items():
        print(f"moved: {image} was {was}")
    for digest, image in done["absent"].items():
        print(f"missing: {digest} of {image}", file=sys.stderr)
    for digest, reason in done["damaged"].items():
        print(f"damaged: {digest}: {reason}", file=sys.stderr)
    for image, reason in done["refused"].items():
        print(f"not taken in: {image}: {reason}", file=sys.stderr)
    if not done["indexTold"]:
        print("the index did not answer; it takes note when it is compared with the disk", file=sys.stderr)


def _size(counted: dict[str, int]) -> str:
    return format_size(counted["bytes"])


# -------------------------------------------------------------------------------------------- inventory, keygen


@application.command()
def inventory(
    as_json: Annotated[bool, typer.Option("--json", help="Print the file that `export --since` reads.")] = False,
    config: ConfigFile = None,
) -> None:
    """Print which images and blobs this mirror has, from the disk."""
    loaded = _load(config)

    async def work() -> Inventory:
        from mirror.app import open_storage

        async with open_storage(loaded) as storage:
            return await _in_thread(lambda _: take_inventory(storage.store, storage.catalog))

    taken = asyncio.run(work())
    if as_json:
        sys.stdout.write(taken.to_bytes().decode())
        return
    table = Table("image", "digest")
    for image in sorted(taken.images, key=lambda image: image.order):
        table.add_row(image.name if image.tag else str(image.repo), str(image.root.digest))
    if taken.images:
        table_console().print(table)
    print(f"{len(taken.images)} images, {len(taken.blobs)} blobs, {format_size(taken.size)}")


@application.command()
def keygen(
    prefix: Annotated[str, typer.Argument(help="Writes PREFIX.key, to be kept secret, and PREFIX.pub.")],
) -> None:
    """Make a pair of keys to sign bundles with."""
    private, public = make_key_pair()
    _write_new(Path(f"{prefix}.key"), private, 0o600)
    _write_new(Path(f"{prefix}.pub"), public, 0o644)
    print(f"{prefix}.key signs (keep it secret), {prefix}.pub verifies")


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Never over another key."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        _fail(path, error)


# ------------------------------------------------------------------------------------------- what they share


def _load(config: Path | None) -> settings.Config:
    loaded = settings.load(config)
    telemetry.set_up_logging("warning")
    return loaded


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        _fail(path, error)


def _fail(path: Path, error: OSError) -> NoReturn:
    raise ConfigError([f"{path}: {error.strerror or error}"]) from error


def _from_file(read: Callable[[bytes], _T], path: Path | None) -> _T | None:
    """A key or an inventory that was given; a file that holds none is an unusable argument."""
    if path is None:
        return None
    try:
        return read(_read_file(path))
    except BundleError as error:
        raise ConfigError([f"{path}: {error}"]) from error


async def _in_thread(work: Callable[[Callable[[Told], Told]], _T]) -> _T:
    """Blocking work off the loop. It is given what makes a `Told` that ends it once we are cancelled."""
    stopped = threading.Event()

    def stoppable(told: Told) -> Told:
        def tell(count: int) -> None:
            if stopped.is_set():
                raise BundleError("stopped")
            told(count)

        return tell

    running = asyncio.ensure_future(asyncio.to_thread(work, stoppable))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stopped.set()
        with suppress(Exception):
            await running
        raise


@contextmanager
def _progress() -> Iterator[Callable[[str, int], Told]]:
    """Bars on standard error where that is a terminal: begin one with what is done and its bytes."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bars:

        def begin(what: str, size: int) -> Told:
            task = bars.add_task(what, total=size)
            return lambda count: bars.advance(task, count)

        yield begin

"""`import`: images from a bundle, from any OCI image layout, or from the data of another registry."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from mirror import config as settings
from mirror.bundles.blob_rights import blob_rights
from mirror.bundles.bundle import Bundle, read_bundle, verify_bytes
from mirror.bundles.import_plan import ImportPlan, MayServe, plan_images
from mirror.bundles.importing import ImportResult, ImportTarget, run_import
from mirror.bundles.inventory import ListedImage
from mirror.bundles.layout_source import LayoutSource, OnRead
from mirror.bundles.registry_bucket import RegistryBucket
from mirror.bundles.registry_data import RegistryData, RegistryFolder, RegistryRepository
from mirror.bundles.signing import read_public_key
from mirror.cli.audit_command import audited, cli_caller
from mirror.cli.base import ConfigFile, JsonOption, application, complain, counted, load, say, say_json
from mirror.cli.long_running import from_file, in_thread, progress
from mirror.cli.store_checks import check_owner
from mirror.errors import BundleError, ConfigError, Denied, RequestError
from mirror.graph.blob_places import BlobPlaces
from mirror.hosting.hosted_imports import HostedImports
from mirror.intake.grants import Grants
from mirror.oci.digest import Digest
from mirror.policy.routing import RoutingTable
from mirror.values.sizes import format_size


@application.command("import")
def import_images(
    source: Annotated[Path | None, typer.Argument(help="A bundle or OCI image layout: a tar file or a folder.")] = None,
    registry_data: Annotated[
        str | None,
        typer.Option(
            "--registry-data",
            help="Instead: the data of a docker-registry, a directory or s3://bucket/rootdirectory (gs://, az://).",
        ),
    ] = None,
    bucket_config: Annotated[
        Path | None,
        typer.Option(
            "--bucket-config",
            help="TOML file whose [bucket] says how that bucket is reached; without it, the configuration's own.",
        ),
    ] = None,
    as_registry: Annotated[
        str | None,
        typer.Option("--as", help="The registry of these images; without it, the default registry."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The name of the image, if the layout does not contain it.")
    ] = None,
    verify: Annotated[
        Path | None, typer.Option("--verify", help="PEM file with the public key by which the bundle must be signed.")
    ] = None,
    require_signature: Annotated[
        bool, typer.Option("--require-signature", help="Refuse to run without --verify.")
    ] = False,
    incomplete: Annotated[bool, typer.Option("--allow-incomplete", help="Also import incomplete images.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check; import nothing.")] = False,
    as_json: JsonOption = False,
    config: ConfigFile = None,
) -> None:
    """Import images, so that they are served like pulled ones. Safe beside a running server."""
    loaded = load(config)
    _check_import(source, registry_data, as_registry, name, verify, require_signature)
    if bucket_config is not None and not (registry_data and _is_bucket(registry_data)):
        raise ConfigError(["import: --bucket-config is for --registry-data with a bucket only"])
    check_owner(loaded)
    importing = _Import(loaded, partial=incomplete, dry_run=dry_run)
    with audited(loaded, "import", dry_run=dry_run, source=str(registry_data or source)) as about:
        if registry_data is not None:
            opened = partial(_open_registry, registry_data, config, bucket_config)
            done = asyncio.run(importing.of_registry(registry_data, opened, as_registry))
        elif source is not None:
            key = from_file(read_public_key, verify)
            done = asyncio.run(importing.of_layout(source, name, key))
        about |= {field: len(done[field]) for field in ("images", "refused", "damaged")}
    if as_json:
        say_json(done)
    else:
        _print_summary(done)
    if done["refused"] or done["damaged"]:
        raise typer.Exit(1)


def _check_import(
    source: Path | None,
    registry_data: str | None,
    as_registry: str | None,
    name: str | None,
    verify: Path | None,
    require_signature: bool,
) -> None:
    mistakes = []
    if (source is None) == (registry_data is None):
        mistakes.append("import: give either a bundle or --registry-data")
    if registry_data is not None and (name or verify or require_signature):
        mistakes.append("import: --name, --verify and --require-signature are for bundles, not for --registry-data")
    if as_registry is not None and registry_data is None:
        mistakes.append("import: --as is for --registry-data only")
    if require_signature and verify is None:
        mistakes.append("import: --require-signature needs --verify")
    if mistakes:
        raise ConfigError(mistakes)


class _Import:
    def __init__(self, loaded: settings.Config, *, partial: bool, dry_run: bool) -> None:
        self._loaded = loaded
        self._partial = partial
        self._dry_run = dry_run

    async def of_layout(self, path: Path, name: str | None, key: Any) -> dict[str, Any]:
        from mirror.app.hosting import open_hosted_imports
        from mirror.app.import_target import import_target
        from mirror.app.storage import blob_places, open_storage
        from mirror.config import routing_table

        table = routing_table(self._loaded)
        async with open_storage(self._loaded) as storage:
            try:
                with LayoutSource(path) as layout, progress() as begin:
                    hosted = open_hosted_imports(self._loaded, storage, cli_caller())
                    places = blob_places(self._loaded, storage)
                    may_serve = _rights(storage, places)
                    bundle = await in_thread(lambda _: read_bundle(layout, table, name=name, key=key))
                    images = [(image, layout) for image in bundle.images]
                    plan = await in_thread(
                        lambda _: plan_images(images, places, may_serve=may_serve, left_out=_left_out(bundle))
                    )
                    _refuse_names(plan, hosted)
                    plan.require_complete(partial=self._partial)
                    on_read = begin("checking", sum(plan.contents().values()))
                    await in_thread(lambda stoppable: verify_bytes(layout, plan, stoppable(on_read)))
                    result = await self._import(plan, import_target(self._loaded, storage, hosted), begin)
                await _written_behind(storage)
            except BundleError as error:
                raise BundleError(f"{path}: {error}") from error
        return {**_summary(path, plan, result, self._dry_run), **_origin(bundle)}

    async def of_registry(
        self, address: str, opened: Callable[[], AbstractContextManager[RegistryData]], registry: str | None
    ) -> dict[str, Any]:
        from mirror.app.hosting import open_hosted_imports
        from mirror.app.import_target import import_target
        from mirror.app.storage import blob_places, open_storage
        from mirror.config import routing_table

        table = routing_table(self._loaded)
        filed_under = registry or self._loaded.default_registry
        if not filed_under or table.registry(filed_under) is None:
            raise ConfigError(
                [f"import: {filed_under!r} is not a registry of this mirror; name the registry of the images with --as"]
            )
        async with open_storage(self._loaded) as storage:
            with progress() as begin:
                hosted = open_hosted_imports(self._loaded, storage, cli_caller())
                places = blob_places(self._loaded, storage)
                may_serve = _rights(storage, places)
                with ExitStack() as stack:
                    data = await in_thread(lambda _: stack.enter_context(opened()))
                    plan = await in_thread(lambda _: _plan_registry(data, filed_under, table, places, may_serve))
                    _refuse_names(plan, hosted)
                    result = await self._import(
                        plan, import_target(self._loaded, storage, hosted), begin, skip_damaged=True
                    )
            await _written_behind(storage)
        return _summary(address, plan, result, self._dry_run)

    async def _import(
        self,
        plan: ImportPlan,
        site: ImportTarget,
        begin: Callable[[str, int], OnRead],
        *,
        skip_damaged: bool = False,
    ) -> ImportResult:
        if self._dry_run:
            return ImportResult()
        on_read = begin("importing", sum(plan.contents().values()))
        return await run_import(plan, site, on_read=on_read, skip_damaged=skip_damaged)


async def _written_behind(storage: Any) -> None:
    """Returns once the bucket has what was imported into cached repositories, if it keeps that. Says so if it does not
    answer: the images are here.
    """
    cache = storage.bucket_cache
    if cache is not None and (left := await cache.uploads.settle(math.inf)):
        complain(
            f"mirror: {counted(left, 'object')} not written to the bucket, which gets them when they are next used: "
            f"{cache.uploads.trouble}"
        )


def _left_out(bundle: Bundle) -> Collection[Digest]:
    """The blobs that a signed bundle may leave out: its signer asserts that this side has them for these images."""
    return bundle.inventory.left_out.keys() if bundle.verified and bundle.inventory else ()


def _refuse_names(plan: ImportPlan, hosted: HostedImports) -> None:
    """Refuse the images whose hosted registry does not allow repositories of their names."""
    for planned in list(plan.images):
        repo = planned.image.repo
        try:
            if hosted.is_hosted(repo):
                hosted.check_name(repo)
        except Denied as error:
            plan.refused[planned.image.name] = str(error)
            plan.images.remove(planned)


def _rights(storage: Any, places: BlobPlaces) -> MayServe:
    grants = Grants(storage.index, storage.catalog, storage.store)
    return blob_rights(places, grants, storage.hosted.strict.repositories)


def _plan_registry(
    data: RegistryData, registry: str, table: RoutingTable, places: BlobPlaces, may_serve: MayServe
) -> ImportPlan:
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
        refused |= {f"{repository.name}:{tag}": "its manifest is missing or damaged" for tag in lost}
    plan = plan_images(images, places, may_serve=may_serve, skip_damaged=True)
    plan.refused |= refused
    return plan


def _is_bucket(address: str) -> bool:
    return "://" in address


@contextmanager
def _open_registry(address: str, config: Path | None, bucket_config: Path | None) -> Iterator[RegistryData]:
    """The data of a registry at this address. Blocking; raises `BundleError`, `ConfigError`, `BucketUnavailable`."""
    if not _is_bucket(address):
        yield RegistryFolder(Path(address))
        return
    from mirror.app.bucket import open_bucket

    try:
        loaded = settings.load(bucket_config or config, {"store": {"bucket": address}})
    except ConfigError as error:
        advice = ["import: name a file whose [bucket] is for this bucket with --bucket-config"]
        raise ConfigError([*error.mistakes, *([] if bucket_config else advice)]) from error
    bucket = open_bucket(loaded)
    if bucket is not None:
        with closing(bucket):
            yield RegistryBucket(bucket, address)


def _summary(path: Path | str, plan: ImportPlan, result: ImportResult, dry_run: bool) -> dict[str, Any]:
    return {
        "source": str(path),
        "dry_run": dry_run,
        "images": [planned.image.name for planned in plan.images],
        "written": {"blobs": len(result.written), "bytes": sum(result.written.values())},
        "here": {"blobs": len(result.here), "bytes": sum(result.here.values())},
        "absent": {str(digest): image for digest, image in plan.absent.items()},
        "damaged": {str(digest): reason for digest, reason in result.damaged.items()},
        "refused": plan.refused,
        "moved": {name: str(digest) for name, digest in result.moved.items()},
        "index_updated": result.index_updated,
    }


def _origin(bundle: Bundle) -> dict[str, Any]:
    return {"verified": bundle.verified, "has_inventory": bundle.inventory is not None}


def _print_summary(done: dict[str, Any]) -> None:
    count, written, here = len(done["images"]), done["written"], done["here"]
    if done["dry_run"]:
        say(f"{done['source']}: good: {counted(count, 'image')}; nothing was imported")
    else:
        say(
            f"{done['source']}: {counted(count, 'image')} imported, {counted(written['blobs'], 'blob')} written "
            f"({_size(written)}), {here['blobs']} already here ({_size(here)})"
        )
    for image, was in done["moved"].items():
        say(f"moved: {image} was {was} before")
    for digest, image in done["absent"].items():
        complain(f"missing: {digest} of {image}")
    for digest, reason in done["damaged"].items():
        complain(f"damaged: {digest}: {reason}")
    for image, reason in done["refused"].items():
        complain(f"not imported: {image}: {reason}")
    if not done["index_updated"]:
        complain("the index did not answer; it is updated when it is next compared with the disk")


def _size(counted: dict[str, int]) -> str:
    return format_size(counted["bytes"])

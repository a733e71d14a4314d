"""`prefetch`: downloads images into the cache before clients ask for them, in a process beside the server."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column

from mirror import config as settings
from mirror import telemetry
from mirror.cli.audit_command import audited
from mirror.cli.base import (
    ConfigFile,
    JsonOption,
    TextTable,
    application,
    complain,
    counted,
    description_column,
    say,
    say_json,
)
from mirror.cli.store_checks import check_owner
from mirror.errors import ConfigError
from mirror.graph.closure import Role
from mirror.oci.digest import Digest
from mirror.policy.image_names import Image
from mirror.prefetch import pulling
from mirror.prefetch.batch import PrefetchCounts, Prefetched
from mirror.prefetch.batch import prefetch as bring_in
from mirror.prefetch.documents import ListMalformed
from mirror.prefetch.list_files import compose_file, kubernetes, plain_file
from mirror.prefetch.lists import Listed, Named, resolve_images
from mirror.values.platforms import Platform, parse_platforms
from mirror.values.sizes import format_size

T = TypeVar("T")

_Report = Callable[[Image, pulling.BlobProgress], None]


@application.command()
def prefetch(
    images: Annotated[
        list[str] | None, typer.Argument(help="alpine, quay.io/org/app:1.2, ghcr.io/owner/app@sha256:…")
    ] = None,
    config: ConfigFile = None,
    platform: Annotated[
        list[str] | None, typer.Option(help="Only these platforms, such as linux/amd64,linux/arm64; without it, all.")
    ] = None,
    from_file: Annotated[
        list[Path] | None, typer.Option(help="A list with one image per line; - is standard input. May be repeated.")
    ] = None,
    from_k8s: Annotated[
        list[Path] | None, typer.Option(help="A file or folder of Kubernetes manifests, or -. May be repeated.")
    ] = None,
    from_compose: Annotated[list[Path] | None, typer.Option(help="A Compose file, or -. May be repeated.")] = None,
    referrers: Annotated[bool, typer.Option("--referrers", help="Also signatures, SBOMs and attestations.")] = False,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Number of simultaneous downloads.")] = 8,
    as_json: JsonOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the images.")] = False,
) -> None:
    """Download images into the cache. To resume, run it again. Safe beside a running server."""
    loaded = settings.load(config)
    chosen = _platforms(platform or [])
    listed = _listed(images or [], from_file or [], from_k8s or [], from_compose or [])
    from mirror.config import routing_table

    wanted, mistakes = resolve_images(listed.images, routing_table(loaded))
    if mistakes:
        raise ConfigError(mistakes)
    for warning in listed.warnings:
        complain(f"mirror: warning: {warning}")
    if not wanted:
        raise ConfigError(["name an image, or a list that contains one"])
    if dry_run:
        _print_list(wanted, listed, as_json)
        return
    check_owner(loaded)
    with audited(loaded, "prefetch", images=[str(image) for image in wanted]) as about:
        with _display() as report:
            done = _interruptible(lambda: _bring_in(loaded, list(wanted), chosen, referrers, concurrency, report))
        about |= {"bytes": done.fetched.bytes, "failures": len(done.failures)}
        if done.failures:
            about["reason"] = str(done.failures[0])
    if as_json:
        say_json({**done.to_json(), "warnings": list(listed.warnings)})
    else:
        _print_summary(done)
    if not done.ok:
        raise typer.Exit(1)


# ---------------------------------------------------------------------------------------------------- arguments


def _platforms(texts: list[str]) -> tuple[Platform, ...]:
    try:
        return parse_platforms(texts)
    except ValueError as error:
        raise ConfigError([f"--platform: {error}"]) from error


def _listed(images: list[str], files: list[Path], manifests: list[Path], compose: list[Path]) -> Listed:
    """All images that are named. Raises `ConfigError` with every list that cannot be read."""
    found = Listed(tuple(Named(image, "") for image in images))
    mistakes = []
    readings: list[tuple[Callable[[Path], Listed], list[Path]]] = [
        (plain_file, files),
        (kubernetes, manifests),
        (lambda path: compose_file(path, os.environ), compose),
    ]
    for read, paths in readings:
        for path in paths:
            try:
                found += read(path)
            except ListMalformed as error:
                mistakes.append(str(error))
    if mistakes:
        raise ConfigError(mistakes)
    return found


def _print_list(wanted: dict[Image, list[str]], listed: Listed, as_json: bool) -> None:
    """Print the images in the format that `--from-file` reads."""
    if as_json:
        items = [
            {"image": str(image), "from": [place for place in places if place]} for image, places in wanted.items()
        ]
        say_json({"images": items, "warnings": list(listed.warnings)})
        return
    for image, places in wanted.items():
        named = ", ".join(place for place in places if place)
        say(f"{image}  # {named}" if named else str(image))


# --------------------------------------------------------------------------------------------------- the work


async def _bring_in(
    loaded: settings.Config,
    images: list[Image],
    platforms: tuple[Platform, ...],
    referrers: bool,
    concurrency: int,
    report: _Report,
) -> Prefetched:
    from mirror.app.building import build

    async with build(loaded, housework=False) as app:
        return await bring_in(
            app.router.guarded,
            images,
            platforms=platforms,
            referrers=referrers,
            blobs_at_once=concurrency,
            report=report,
        )


def _interruptible(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run the work. SIGINT and SIGTERM end it in order, so that unfinished downloads stay as partials."""

    async def run() -> T:
        task = asyncio.current_task()
        if task is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work()

    try:
        return asyncio.run(run())
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        complain("mirror: interrupted; the downloaded parts are kept, and the same command continues with them")
        number = signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM
        raise typer.Exit(128 + number) from error


# ------------------------------------------------------------------------------------------------- the display


@contextmanager
def _display() -> Iterator[_Report]:
    """Progress bars if standard error is a terminal, else lines; both on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        telemetry.set_up_logging("warning")
        yield _Lines()
        return
    columns = (
        description_column(table_column=Column(no_wrap=True, ratio=1)),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, expand=True) as progress:
        # the display now owns standard error: log lines go above the bars
        telemetry.set_up_logging("warning")
        yield _Bars(progress)
    telemetry.set_up_logging("warning")


class _Lines:
    """One line for each digest that was fetched or failed."""

    def __call__(self, image: Image, progress: pulling.BlobProgress) -> None:
        if progress.state in (pulling.State.FETCHED, pulling.State.FAILED):
            size = f" ({format_size(progress.size)})" if progress.size is not None else ""
            complain(f"{image}: {progress.role.value} {progress.digest} {progress.state.value}{size}")


class _Bars:
    """One bar for each blob that is being downloaded, and one for the total.

    Manifests name all blobs with their sizes, so the total is known early; blobs that are already here are subtracted.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._whole = progress.add_task("in total", total=None)
        self._bars: dict[Digest, TaskID] = {}
        self._known: dict[Digest, tuple[int, int]] = {}
        self._ended: set[Digest] = set()
        self._received = self._total = 0

    def __call__(self, image: Image, progress: pulling.BlobProgress) -> None:
        if progress.role not in (Role.CONFIG, Role.LAYER) or progress.digest in self._ended:
            return
        if progress.state in (pulling.State.HERE, pulling.State.FAILED):
            self._count(progress.digest, 0, 0)
        else:
            self._count(progress.digest, progress.received, progress.size or progress.received)
        if progress.state is not None:
            self._ended.add(progress.digest)
            with suppress(KeyError):
                self._progress.remove_task(self._bars.pop(progress.digest))
        elif progress.received:
            bar = self._bars.get(progress.digest)
            if bar is None:
                description = f"{progress.digest.hex[:12]} {image}"
                bar = self._bars[progress.digest] = self._progress.add_task(description, total=progress.size)
            self._progress.update(bar, completed=progress.received, total=progress.size)
        self._progress.update(self._whole, completed=self._received, total=self._total)

    def _count(self, digest: Digest, received: int, size: int) -> None:
        had, of = self._known.get(digest, (0, 0))
        self._known[digest] = received, size
        self._received += received - had
        self._total += size - of


def _print_summary(done: Prefetched) -> None:
    failures = done.failures
    failed = Counter(failure.image for failure in failures)
    table = TextTable("image", "new", "already here", "failed")
    for image, result in done.images.items():
        blobs = result.blobs.values()
        table.add_row(
            str(image),
            _words(PrefetchCounts.of(blob for blob in blobs if blob.state is pulling.State.FETCHED)),
            _words(PrefetchCounts.of(blob for blob in blobs if blob.state is pulling.State.HERE)),
            str(failed[image] or ""),
        )
    table.show()
    for image in done.stale:
        say(f"{image}: upstream did not answer for the tag; the cached image stays")
    for failure in failures:
        say(f"failed: {failure}")
    say(
        f"{counted(len(done.images), 'image')}: {_words(done.fetched) or 'nothing'} new, "
        f"{_words(done.here) or 'nothing'} already here, {counted(len(failures), 'failure')}"
    )


def _words(counts: PrefetchCounts) -> str:
    return f"{counts.count} ({format_size(counts.bytes)})" if counts.count else ""

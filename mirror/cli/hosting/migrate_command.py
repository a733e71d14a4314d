"""`migrate`: moves hosted content between the disk and the bucket of a configuration."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final, TypeVar

import typer

from mirror import config as settings
from mirror import telemetry
from mirror.aio.threads import uninterrupted
from mirror.app.object_storage.migrating import MigrationWay, SiteMigration, open_cached_copy, open_migration
from mirror.bucket_cache.cached_copy import CachedCopyReport
from mirror.cli.admin_client import ask_if_running
from mirror.cli.audit_command import audited
from mirror.cli.base import ConfigFile, JsonOption, application, complain, counted, progress_bars, say, say_json
from mirror.cli.store_checks import check_owner, check_there
from mirror.config import values
from mirror.errors import ConfigError, MirrorError, StoreError
from mirror.migration.progress import MigrationProgress, MigrationReport
from mirror.values.durations import format_duration
from mirror.values.sizes import format_size, parse_size

T = TypeVar("T")

#: Seconds between two looks at the progress, and between two lines about it where there is no terminal.
_LOOK: Final = 0.5
_LINE: Final = 30.0
#: How many conflicts and problems are printed.
_SHOWN: Final = 50


@application.command()
def migrate(
    to_bucket: Annotated[bool, typer.Option("--to-bucket", help="Copy hosted content into [store] bucket.")] = False,
    to_disk: Annotated[bool, typer.Option("--to-disk", help="Copy it out of the bucket to the disk.")] = False,
    final: Annotated[
        bool,
        typer.Option("--final", help="The last pass, while nothing is pushed or deleted; then the other side counts."),
    ] = False,
    cached: Annotated[
        bool, typer.Option("--cached", help="Instead: copy what is cached into the bucket, for cache_in_bucket.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be done.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also replace and delete what others have put into the target.")
    ] = False,
    allow_damaged: Annotated[
        bool, typer.Option("--allow-damaged", help="Finish although the source has no sound bytes of some content.")
    ] = False,
    rate: Annotated[str | None, typer.Option("--rate", help="Bytes per second to copy at most, such as 50MB.")] = None,
    root: Annotated[
        Path | None, typer.Option("--root", help="The folder of the disk's store, if it is not [store] root.")
    ] = None,
    config: ConfigFile = None,
    as_json: JsonOption = False,
) -> None:
    """Copy all hosted images, and what operators decided, from the disk to the bucket or back. Safe beside a running
    server; run it again to copy what is new. The configuration is the one with the bucket.
    """
    if to_bucket == to_disk:
        raise ConfigError(["migrate: give either --to-bucket or --to-disk"])
    if cached and (to_disk or final or dry_run or overwrite or allow_damaged):
        raise ConfigError(["migrate: --cached goes with --to-bucket and --rate alone"])
    limit = None if rate is None else _rate(rate)
    loaded = settings.load(config, {"store": {"root": root}})
    if cached and not loaded.store.cache_in_bucket:
        raise ConfigError(["migrate: --cached needs [store] cache_in_bucket = true"])
    telemetry.set_up_logging("error")
    if to_bucket:
        check_there(loaded)
    check_owner(loaded)
    way = MigrationWay.TO_BUCKET if to_bucket else MigrationWay.TO_DISK
    if cached:
        with audited(loaded, "migrate", way=way.value, cached=True) as about:
            brought = _copy_cached(loaded, limit, quiet=as_json)
            about |= {"blobs": brought.blobs, "records": brought.records}
        say_json(asdict(brought)) if as_json else _print_cached(brought)
        if brought.unreadable:
            raise typer.Exit(1)
        return
    if final and not dry_run:
        _require_still(loaded)
    with audited(loaded, "migrate", dry_run=dry_run, way=way.value, final=final) as about:
        with open_migration(loaded, way, final=final, dry_run=dry_run) as opened:
            run = _Run(opened, limit, overwrite=overwrite, quiet=as_json)
            if final and not dry_run:
                report, is_finished = run.final(allow_damaged=allow_damaged)
            else:
                report, is_finished = run.once(dry_run=dry_run), False
        about |= {"changes": report.changes, "bytes": report.bytes_copied, "finished": is_finished}
    if as_json:
        done = {"way": way.value, "dry_run": dry_run, "finished": is_finished, "complete": report.is_complete}
        say_json({**done, **asdict(report)})
    else:
        # the bucket goes on to count beside a copy in another folder
        is_copy = to_disk and root is not None
        _print(report, way, dry_run=dry_run, final=final, is_finished=is_finished, is_copy=is_copy)
    if not (is_finished if final and not dry_run else report.is_complete):
        raise typer.Exit(1)


def _rate(text: str) -> float:
    try:
        return float(parse_size(values.rate(text)))
    except ValueError as error:
        raise ConfigError([f"--rate: {error}"]) from error


def _require_still(loaded: settings.Config) -> None:
    """Raises `MirrorError` if the mirror that runs still takes pushes."""
    shown = ask_if_running(loaded, "GET", "/admin/v1/config")
    writable = [entry["name"] for entry in (shown or {}).get("hosted", []) if not entry["read_only"]]
    if writable:
        raise MirrorError(
            f"the mirror that runs takes pushes to {', '.join(writable)}: set read_only = true in each [[hosted]] of "
            "its configuration, reload it, and run the final pass again"
        )


def _copy_cached(loaded: settings.Config, rate: float | None, *, quiet: bool) -> CachedCopyReport:
    """Bring what is cached into the bucket."""
    progress, stopped = MigrationProgress(), threading.Event()

    def wait(seconds: float) -> None:
        if stopped.wait(seconds) if seconds > 0 else stopped.is_set():
            raise StoreError("the copy was stopped; run it again to continue")

    with open_cached_copy(loaded, progress, rate=rate, wait=wait) as copy:
        return asyncio.run(_watched(copy.run, stopped.set, progress, quiet=quiet))


def _print_cached(report: CachedCopyReport) -> None:
    repositories = "1 repository" if report.repositories == 1 else f"{report.repositories} repositories"
    say(
        f"what is cached of {repositories} is in the bucket: {counted(report.blobs, 'blob')}, "
        f"{counted(report.records, 'record')}"
    )
    if report.unreadable:
        complain(f"not copied: {report.unreadable} that cannot be read on the disk; they come from upstream again")


class _Run:
    """The passes of one command, with their progress on standard error."""

    def __init__(self, opened: SiteMigration, rate: float | None, *, overwrite: bool, quiet: bool) -> None:
        self._opened = opened
        self._rate = rate
        self._overwrite = overwrite
        self._quiet = quiet

    def once(self, *, dry_run: bool) -> MigrationReport:
        """One pass."""
        progress = MigrationProgress()
        migration = self._opened.make_pass(progress, rate=self._rate, dry_run=dry_run, overwrite=self._overwrite)

        def work() -> MigrationReport:
            if not self._quiet:
                migration.plan()
            return migration.run()

        return asyncio.run(_watched(work, migration.stop, progress, quiet=self._quiet))

    def final(self, *, allow_damaged: bool) -> tuple[MigrationReport, bool]:
        """The last pass, and a look whether the source stood still. True if the target counts now."""
        self._opened.begin_final()
        report = self.once(dry_run=False)
        if report.conflicts or (report.problems and not allow_damaged):
            return report, False
        again = self.once(dry_run=True)
        if again.changes:
            raise MirrorError(
                f"{counted(again.changes, 'record')} of the source changed during the last pass: end what pushes, "
                "deletes, pins or makes robots, and run it again"
            )
        self._opened.finish()
        return report, True


async def _watched(work: Callable[[], T], stop: Callable[[], None], progress: MigrationProgress, *, quiet: bool) -> T:
    """The result of the work, with its progress until then. If the caller is cancelled, the work stops first."""
    task = asyncio.ensure_future(uninterrupted(asyncio.to_thread(work), stop=stop))
    began_at, said_at = time.monotonic(), time.monotonic()
    with progress_bars(quiet=quiet) as bars:
        bar = bars.add_task("comparing", total=None)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_LOOK)
                bars.update(
                    bar,
                    description=_records(progress),
                    completed=progress.read_bytes,
                    total=progress.all_bytes or None,
                )
                if not quiet and bars.disable and time.monotonic() - said_at >= _LINE:
                    said_at = time.monotonic()
                    complain(_line(progress, said_at - began_at))
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
    return task.result()


def _records(progress: MigrationProgress) -> str:
    all_records = max(progress.all_records, progress.records)
    return f"{progress.records:,} of {all_records:,} records"


def _line(progress: MigrationProgress, seconds: float) -> str:
    """How far it has come, for a log."""
    done, rest = progress.read_bytes, max(0, progress.all_bytes - progress.read_bytes)
    left = f", {format_duration(rest / (done / seconds))} left" if done and rest else ""
    return f"{format_size(done)} of {format_size(max(done, progress.all_bytes))}, {_records(progress)}{left}"


def _print(
    report: MigrationReport, way: MigrationWay, *, dry_run: bool, final: bool, is_finished: bool, is_copy: bool
) -> None:
    would = "would be " if dry_run else ""
    repositories = "1 repository" if report.repositories == 1 else f"{report.repositories} repositories"
    say(
        f"{way.value}: {repositories}; {would}copied: {counted(report.blobs_copied, 'blob')} "
        f"({format_size(report.bytes_copied)}), {report.blobs_present} were there"
    )
    say(
        f"records: {report.records_written} {would}written, {report.records_deleted} {would}deleted, "
        f"{report.records_same} the same"
    )
    _complain("left alone", report.conflicts)
    _complain("not copied", report.problems)
    if report.more:
        complain(f"and {report.more} more")
    if is_finished:
        say(_FINISHED[way])
    elif final and not dry_run:
        complain("not finished: the source still counts")
    elif report.is_complete and not dry_run and not is_copy:
        say("once hosted registries are read-only, run it again with --final")


_FINISHED: Final = {
    MigrationWay.TO_BUCKET: (
        "finished: the bucket counts now; restart the mirror with [store] bucket and without read_only"
    ),
    MigrationWay.TO_DISK: (
        "finished: the disk counts now; restart the mirror without [store] bucket and without read_only"
    ),
}


def _complain(what: str, found: dict[str, str]) -> None:
    for about, reason in list(found.items())[:_SHOWN]:
        complain(f"{what}: {about}: {reason}")
    if len(found) > _SHOWN:
        complain(f"{what}: and {len(found) - _SHOWN} more")

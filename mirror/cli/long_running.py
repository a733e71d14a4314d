"""What commands that take long share: blocking work that Ctrl-C ends, bars of its progress, and files given to them."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from mirror import config as settings
from mirror import telemetry
from mirror.aio.threads import uninterrupted
from mirror.bundles.layout_source import OnRead
from mirror.cli.base import description_column
from mirror.errors import BundleError, ConfigError
from mirror.store.local.layout import Layout

_T = TypeVar("_T")

Json = Annotated[bool, typer.Option("--json", help="Print a summary for scripts.")]


def load(config: Path | None) -> settings.Config:
    """The settings, and a log that is silent but for trouble. Raises `ConfigError`."""
    loaded = settings.load(config)
    telemetry.set_up_logging("warning")
    return loaded


def check_there(loaded: settings.Config) -> None:
    """Who only looks makes no store: not as root where a mirror of another user will want it, and not in a wrong place,
    which an empty list would be a poor hint of. Raises `ConfigError`.
    """
    try:
        Layout(loaded.store.root).marker.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            [
                f"there is no store at {loaded.store.root}: has a mirror run with this configuration? "
                "--config names the file of another"
            ]
        ) from None
    except OSError:
        return


def check_owner(loaded: settings.Config, does: str) -> None:
    """Files of the store are readable for their owner alone: what root writes, a server of another user cannot read.

    `does` is what the command does with them. Raises `ConfigError`.
    """
    whose = owner(loaded)
    if whose is not None and whose != os.geteuid():
        raise ConfigError(
            [
                f"the store at {loaded.store.root} is user {whose}'s, and this is user {os.geteuid()}: what it "
                f"{does} the server could not read; run it as that user, such as with sudo -u '#{whose}'"
            ]
        )


def owner(loaded: settings.Config) -> int | None:
    """The user whom the store belongs to; None: there is none yet, or it is not to be seen."""
    try:
        return Layout(loaded.store.root).marker.stat().st_uid
    except OSError:
        return None


def read_file(path: Path) -> bytes:
    """Raises `ConfigError`."""
    try:
        return path.read_bytes()
    except OSError as error:
        fail(path, error)


def fail(path: Path, error: OSError) -> NoReturn:
    """Raises `ConfigError`."""
    raise ConfigError([f"{path}: {error.strerror or error}"]) from error


def from_file(read: Callable[[bytes], _T], path: Path | None) -> _T | None:
    """A key or an inventory that was given; a file that holds none is an unusable argument.

    Raises `ConfigError`.
    """
    if path is None:
        return None
    try:
        return read(read_file(path))
    except BundleError as error:
        raise ConfigError([f"{path}: {error}"]) from error


async def in_thread(work: Callable[[Callable[[OnRead], OnRead]], _T]) -> _T:
    """Blocking work off the loop. It is given what makes a `OnRead` that ends it once we are cancelled."""
    stopped = threading.Event()

    def stoppable(told: OnRead) -> OnRead:
        def tell(count: int) -> None:
            if stopped.is_set():
                raise BundleError("stopped")
            told(count)

        return tell

    return await uninterrupted(asyncio.to_thread(work, stoppable), stop=stopped.set)


@contextmanager
def progress() -> Iterator[Callable[[str, int], OnRead]]:
    """Bars on standard error where that is a terminal: begin one with what is done and its bytes."""
    columns = (
        description_column(),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bars:

        def begin(what: str, size: int) -> OnRead:
            task = bars.add_task(what, total=size)
            return lambda count: bars.advance(task, count)

        yield begin

"""What long-running commands share: blocking work that Ctrl-C ends, progress bars, and files given as arguments."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from mirror.aio.threads import uninterrupted
from mirror.bundles.layout_source import OnRead
from mirror.cli.base import progress_bars
from mirror.errors import BundleError, ConfigError, reason_of
from mirror.prefetch.progress import ProgressMeter

_T = TypeVar("_T")

#: Seconds between two drawings of a progress bar.
_DRAW_EVERY: Final = 0.2


def read_file(path: Path) -> bytes:
    """The content of a file that is an argument. Raises `ConfigError`."""
    try:
        return path.read_bytes()
    except OSError as error:
        fail(path, error)


def fail(path: Path, error: OSError) -> NoReturn:
    """Raise `ConfigError` about a file that is an argument."""
    raise ConfigError([f"{path}: {reason_of(error)}"]) from error


def from_file(read: Callable[[bytes], _T], path: Path | None) -> _T | None:
    """The key or inventory in a file; None if there is no file. Raises `ConfigError`."""
    if path is None:
        return None
    try:
        return read(read_file(path))
    except BundleError as error:
        raise ConfigError([f"{path}: {error}"]) from error


async def in_thread(work: Callable[[Callable[[OnRead], OnRead]], _T]) -> _T:
    """Run blocking work in a thread. The work wraps its progress callback with the function that it gets, so that the
    next progress ends the work after a cancellation.
    """
    stopped = threading.Event()

    def stoppable(on_read: OnRead) -> OnRead:
        def report(count: int) -> None:
            if stopped.is_set():
                raise BundleError("stopped")
            on_read(count)

        return report

    return await uninterrupted(asyncio.to_thread(work, stoppable), stop=stopped.set)


async def watched(title: str, work: Coroutine[Any, Any, _T], meter: ProgressMeter, *, quiet: bool = False) -> _T:
    """The result of the work, with a progress bar until then. If the caller is cancelled, the work is, too, and is
    waited for.
    """
    task = asyncio.ensure_future(work)
    with progress_bars(quiet=quiet) as bars:
        bar = bars.add_task(title, total=None)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_DRAW_EVERY)
                bars.update(bar, completed=meter.received, total=meter.size or None)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
    return task.result()


@contextmanager
def progress() -> Iterator[Callable[[str, int], OnRead]]:
    """Yields a function that begins a progress bar, given a description and a size in bytes. The bars are shown if
    standard error is a terminal.
    """
    with progress_bars() as bars:

        def begin(what: str, size: int) -> OnRead:
            task = bars.add_task(what, total=size)
            return lambda count: bars.advance(task, count)

        yield begin

"""The counters of ended workers, merged into one file of each kind instead of one for each worker.

    <kind>_<pid>.db    a worker counts in it, mapped into its memory (the library's format)
         │ the worker has ended
         ├── counters, histograms ──> added to <kind>_ended.db
         ├── most recent gauges ────> the later of this value and that in <kind>_ended.db
         └── live gauges ───────────> deleted

The library has no public interface to these files. tests/ports/test_worker_files.py checks how it names and writes
them; raise the limit on its version in pyproject.toml only after that test has passed.

Without this, every reload and every crash would leave files in memory for good, and each scrape would read all of them.
Scrapes share a lock, and adding up takes it exclusively: otherwise a scrape in between would count numbers twice.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

_ENDED: Final = "ended"
#: A file of its own, because the process that owns the folder locks the folder itself.
_LOCK: Final = "adding-up.lock"
#: Bytes of an entry besides its key, and bytes to multiples of which files are rounded up.
_ENTRY: Final = 32
_BLOCK: Final = 4096

#: By key: a value and when it was set, in epoch seconds; 0 if the time does not matter.
_Values = dict[str, tuple[float, float]]


class WorkerCounters(MultiProcessCollector):
    """Collects the counters of all workers in a folder."""

    def __init__(self, registry: CollectorRegistry, folder: str) -> None:
        super().__init__(registry, folder)  # type: ignore[no-untyped-call]  # the library leaves it so
        self._folder = Path(folder)

    def collect(self) -> Iterable[Metric]:
        """The metrics of all workers. A worker that is starting makes a file and then gives it its size: in between it
        has counted nothing, and the library could not read the file.
        """
        files = [str(file) for file in self._folder.glob("*.db") if not _is_empty(file)]
        metrics: Iterable[Metric] = self.merge(files, accumulate=True)  # type: ignore[no-untyped-call]  # likewise
        return metrics


def _is_empty(file: Path) -> bool:
    """False also if there is no such file: the library knows which files may vanish."""
    try:
        return file.stat().st_size == 0
    except FileNotFoundError:
        return False


@contextmanager
def summing(folder: str) -> Iterator[None]:
    """Inside the `with`, no counters of ended workers are added up. Waits for an addition under way. Raises
    `OSError`.
    """
    with _locked(folder, fcntl.LOCK_SH):
        yield


def add_ended(folder: str, pid: int) -> bool:
    """Add up the counters of a process, which must have ended. False: a scrape is reading the files, so try again
    later.

    Raises `OSError` if there is no room; the file in question then stays as it is, and still counts.
    """
    # no lock is needed: a scrape tolerates that these files vanish
    for gauge in Path(folder).glob(f"gauge_live*_{pid}.db"):
        gauge.unlink(missing_ok=True)
    try:
        with _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            for file in Path(folder).glob(f"*_{pid}.db"):
                _add(file)
                file.unlink()
    except BlockingIOError:
        return False
    return True


@contextmanager
def _locked(folder: str, how: int) -> Iterator[None]:
    lock = os.open(os.path.join(folder, _LOCK), os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, how)
        yield
    finally:
        os.close(lock)


def _add(file: Path) -> None:
    kind = file.name.rpartition("_")[0]
    ended = file.with_name(f"{kind}_{_ENDED}.db")
    sums = _read(ended) if ended.exists() else {}
    for key, (value, at) in _read(file).items():
        before, since = sums.get(key, (0.0, 0.0))
        if not kind.startswith("gauge"):
            sums[key] = before + value, 0.0
        elif at >= since:
            sums[key] = value, at
    _write(ended, sums)


def _read(file: Path) -> _Values:
    if _is_empty(file):
        # of a worker that died while it started
        return {}
    values = MmapedDict.read_all_values_from_file(str(file))  # type: ignore[no-untyped-call]  # the library leaves it so
    return {key: (value, at) for key, value, at, _ in values}


def _write(file: Path, values: _Values) -> None:
    """Write the whole file beside the old one, then replace the old one."""
    beside = file.with_suffix(".new")
    size = 8 + sum(_ENTRY + len(key.encode()) for key in values)
    try:
        with open(beside, "wb") as made:
            # writing into a mapped file without room on the disk would kill this process
            os.posix_fallocate(made.fileno(), 0, -(-size // _BLOCK) * _BLOCK)
        written = MmapedDict(str(beside))  # type: ignore[no-untyped-call]
        for key, (value, at) in values.items():
            written.write_value(key, value, at)  # type: ignore[no-untyped-call]
        written.close()  # type: ignore[no-untyped-call]
        beside.replace(file)
    except OSError:
        with suppress(OSError):
            beside.unlink()
        raise

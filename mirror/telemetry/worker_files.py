"""What workers that are gone have counted, in one file of each kind instead of one of each worker.

    <kind>_<pid>.db    a worker counts in it, mapped into its memory (the library's format)
         │ the worker has ended
         ├── counters, histograms ──> added to <kind>_ended.db
         ├── the most recent of a gauge ──> it, or what is in <kind>_ended.db: the later one
         └── gauges of who lives ──> gone

The library has no public way to these files: how it names and writes them is held by tests/ports/test_counts.py, and
the bound on its version in pyproject.toml is raised after that has passed.

Without this every reload and every crash would leave files in memory for good, and each scrape would read all of them.
Whoever sums up holds a lock together with others, whoever adds holds it alone: in between, numbers would
count twice.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from prometheus_client.mmap_dict import MmapedDict

__all__ = ["add_ended", "summing"]

_ENDED: Final = "ended"
#: The folder itself is locked by whoever owns it.
_LOCK: Final = "adding-up.lock"
#: Bytes: of an entry beside its key, and what files are rounded up to.
_ENTRY: Final = 32
_BLOCK: Final = 4096

#: By key: a number and when it was set, in epoch seconds; 0 where that does not matter.
_Values = dict[str, tuple[float, float]]


@contextmanager
def summing(folder: str) -> Iterator[None]:
    """Meanwhile nothing is added up; waits for that. Raises `OSError`."""
    with _locked(folder, fcntl.LOCK_SH):
        yield


def add_ended(folder: str, pid: int) -> bool:
    """What a process has left; False: somebody sums up, so later. The process must have ended.

    Raises `OSError` where there is no room; the file in question is left as it is then, and counts as before.
    """
    # those who sum up can do without these
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
    held = os.open(os.path.join(folder, _LOCK), os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(held, how)
        yield
    finally:
        os.close(held)


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
    values = MmapedDict.read_all_values_from_file(str(file))  # type: ignore[no-untyped-call]  # the library leaves it so
    return {key: (value, at) for key, value, at, _ in values}


def _write(file: Path, values: _Values) -> None:
    """Whole: beside the old one, then in its place."""
    beside = file.with_suffix(".new")
    size = 8 + sum(_ENTRY + len(key.encode()) for key in values)
    try:
        with open(beside, "wb") as made:
            # to write into a mapped file for which there is no room would kill us
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

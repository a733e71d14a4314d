"""What is seen of the mirror from outside over time: its disk, and its workers in /proc."""

from __future__ import annotations

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.soaking.cluster import MirrorUnderTest

_DISK_EVERY: Final = 0.5
_WORKERS_EVERY: Final = 5
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
#: Samples of a worker before a slope is told, and the part of them at the begin that is warm-up.
_ENOUGH: Final = 24
_WARM_UP: Final = 0.3


@dataclass(frozen=True, slots=True)
class Sample:
    """Of one worker at one moment, `at` in seconds; `memory` is its resident set in bytes."""

    at: float
    memory: int
    descriptors: int
    threads: int


@dataclass(slots=True)
class Watch:
    """Bounded: a few numbers for each worker and every five seconds."""

    mirror: MirrorUnderTest
    limit: int
    began: float
    workers: defaultdict[int, list[Sample]] = field(default_factory=lambda: defaultdict(list))
    most: int = 0
    most_at: float = 0.0
    #: The most in each minute.
    minutes: dict[int, int] = field(default_factory=dict)
    #: Samples of the disk, and how many of them were above the limit.
    looks: int = 0
    above: int = 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            at = time.monotonic() - self.began
            used = await asyncio.to_thread(disk_use, self.mirror.store)
            if used > self.limit:
                # what was moved or dropped while we were counting may have been counted twice
                used = min(used, await asyncio.to_thread(disk_use, self.mirror.store))
            self.looks += 1
            self.above += used > self.limit
            self.minutes[int(at / 60)] = max(used, self.minutes.get(int(at / 60), 0))
            if used > self.most:
                self.most, self.most_at = used, at
            if self.looks % int(_WORKERS_EVERY / _DISK_EVERY) == 0:
                for pid in self.mirror.workers():
                    if (taken := sample(pid, at)) is not None:
                        self.workers[pid].append(taken)
            await asyncio.sleep(_DISK_EVERY)

    def slopes(self) -> dict[int, tuple[float, float]]:
        """MiB an hour, and the minutes it was taken over, for each worker that lived long enough."""
        found = {}
        for pid, samples in self.workers.items():
            kept = samples[int(len(samples) * _WARM_UP) :]
            if len(kept) >= _ENOUGH:
                rate = slope([one.at for one in kept], [one.memory for one in kept])
                found[pid] = rate * 3600 / (1 << 20), (kept[-1].at - kept[0].at) / 60
        return found

    def most_of(self, what: Callable[[Sample], int]) -> int:
        """The highest value of all samples."""
        return max((what(one) for samples in self.workers.values() for one in samples), default=0)


def sample(pid: int, at: float) -> Sample | None:
    """One worker now; None: it is gone."""
    try:
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
        return Sample(at, resident, len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")))
    except (FileNotFoundError, ProcessLookupError):
        return None


def slope(at: Sequence[float], values: Sequence[float]) -> float:
    """Least squares: how much a value grows for each unit of `at`."""
    count = len(at)
    middle, mean = sum(at) / count, sum(values) / count
    spread = sum((one - middle) ** 2 for one in at)
    return sum((one - middle) * (value - mean) for one, value in zip(at, values, strict=True)) / spread


def disk_use(store: Path) -> int:
    """Bytes of blobs, present and growing. A file that is moved meanwhile counts once; notes beside them do not."""
    found: dict[int, int] = {}
    for folder in (store / "ingest", store / "blobs"):
        for place, _, names in os.walk(folder):
            for name in names:
                if name.endswith(".state") or name.startswith("tmp-"):
                    continue
                try:
                    status = os.lstat(os.path.join(place, name))
                except FileNotFoundError:
                    continue
                found[status.st_ino] = status.st_size
    return sum(found.values())


def store_files(pids: Sequence[int], store: Path) -> int:
    """Descriptors of blobs and of growing files that these processes have open."""
    places = (f"{store}/blobs/", f"{store}/ingest/")
    found = 0
    for pid in pids:
        try:
            for link in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    found += os.readlink(link).startswith(places)
                except FileNotFoundError:
                    continue
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def held_locks(folder: Path) -> int:
    """Files of a folder on which somebody holds a `flock` (proc(5))."""
    inodes = {entry.inode() for entry in os.scandir(folder)}
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    # number, kind, ADVISORY, WRITE, process, device and inode, …; one that waits has an arrow after the number
    return len(inodes & {int(words[5].rpartition(":")[2]) for words in locks if words[1] == "FLOCK"})

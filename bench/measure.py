"""How each figure is measured. Systems take turns within a round, and the first one changes from round to round."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.check import check_image, pull_small
from bench.client import Download, Stalled, download
from bench.content import Image
from bench.load import get_rate, head_rate
from bench.machine import hash_alone, touch_memory
from bench.origin import Origin
from bench.process import cpu_seconds, memory, settle
from bench.results import Results
from bench.systems import LOGGING, MIRROR, SYSTEMS, Running

_MIB: Final = 1 << 20
_GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is done: sizes in bytes, times in seconds. `pause` lies between two looks at what settles."""

    rounds: int
    blob: int
    stampede: int
    clients: int
    slow: int
    load: int
    readers: int
    pause: float


@dataclass(frozen=True, slots=True)
class Bench:
    """Everything that a measurement needs. `say` tells the person who waits."""

    directory: Path
    scale: Scale
    origin: Origin
    blob: Image
    shared: Image
    systems: Sequence[str]
    results: Results
    say: Callable[[str], None]

    def turns(self) -> Iterator[str]:
        """Every system once a round: A B C, B C A, …"""
        for number in range(self.scale.rounds):
            shift = number % len(self.systems)
            yield from (*self.systems[shift:], *self.systems[:shift])

    @contextmanager
    def running(self, name: str, upstream: str) -> Iterator[Running]:
        """A system with an empty cache of its own, gone afterwards: pages that it has not written yet go with it."""
        directory = self.directory / name
        system = SYSTEMS[name](directory, upstream)
        try:
            yield system
        finally:
            system.stop()
            shutil.rmtree(directory)


@contextmanager
def _all_running(bench: Bench, start: Mapping[str, Callable[[Path, str], Running]]) -> Iterator[Mapping[str, Running]]:
    systems = {}
    try:
        for name in bench.systems:
            systems[name] = start[name](bench.directory / name, bench.origin.fast)
        yield systems
    finally:
        for system in systems.values():
            system.stop()
            shutil.rmtree(bench.directory / system.name)


def settled_cpu(bench: Bench, system: Running) -> float:
    """CPU seconds of a system's processes, once they have nothing left to do."""
    # one hundredth of a second is the unit of the kernel's account
    return settle(lambda: cpu_seconds(system.pid), change=0.02, pause=bench.scale.pause)


def _settled_memory(bench: Bench, system: Running) -> float:
    return settle(lambda: memory(system.pid), change=_MIB, pause=bench.scale.pause)


# ------------------------------------------------------------------------------------------------------------ warm


def _warm_blob(bench: Bench, systems: Mapping[str, Running]) -> None:
    for key, connections, repeat in (("warm1", 1, 4), ("warm16", 16, 1)):
        for name in bench.turns():
            system = systems[name]
            before = cpu_seconds(system.pid)
            done = download(system.port, bench.blob.layer_path, bench.blob.size, connections, repeat)
            size = bench.blob.size * connections * repeat
            bench.results.add(f"{key}.rate", name, size / _MIB / done.seconds)
            bench.results.add(f"{key}.cpu", name, (settled_cpu(bench, system) - before) / (size / _GIB))


def _small(bench: Bench, systems: Mapping[str, Running]) -> None:
    image = bench.blob
    seconds = bench.scale.load

    def by_tag(port: int) -> tuple[float, int]:
        return get_rate(port, image.manifest_path("latest"), seconds, bench.directory)

    def by_digest(port: int) -> tuple[float, int]:
        return get_rate(port, image.manifest_path(image.manifest), seconds, bench.directory)

    def head(port: int) -> tuple[float, int]:
        return head_rate(port, image.layer_path, image.size, seconds)

    for key, measured in (("tag", by_tag), ("digest", by_digest), ("head", head)):
        for name in bench.turns():
            before = cpu_seconds(systems[name].pid)
            rate, count = measured(systems[name].port)
            bench.results.add(f"{key}.rate", name, rate)
            bench.results.add(f"{key}.cpu", name, (settled_cpu(bench, systems[name]) - before) / count * 1e6)


#: Measured on systems that have everything in their cache, in one go.
WARM: Final[Mapping[str, Callable[[Bench, Mapping[str, Running]], None]]] = {
    "warm": _warm_blob,
    "small": _small,
}


def measure_warm(bench: Bench, groups: Sequence[str]) -> None:
    """For each group start every system, pull through each cold and warm with all bytes compared, then measure."""
    for group in groups:
        with _all_running(bench, LOGGING if group == "small" else SYSTEMS) as systems:
            for system in systems.values():
                bench.say(f"comparing bytes of {system.name}")
                check_image(system.port, bench.blob)
                settled_cpu(bench, system)
                check_image(system.port, bench.blob)
            bench.say(group)
            WARM[group](bench, systems)


# ------------------------------------------------------------------------------------------------------------ cold


#: Bytes of memory that are touched before each cold measurement, as a multiple of the blob: the file that the system
#: writes, the buffers of the sockets and what the kernel keeps free.
_TOUCHED: Final = 2.5


def touch_for(size: int) -> None:
    """Touch the memory that a system will need to take in `size` bytes; see `touch_memory`."""
    touch_memory(int(_TOUCHED * size))


def add_hash(bench: Bench, key: str) -> None:
    """Measure what hashing the blob alone costs: beside it, a system that does not hash can be compared with one that
    does.
    """
    layer = bench.origin.files / bench.blob.layer_path.lstrip("/")
    bench.results.add(key, MIRROR, hash_alone(layer) / (bench.blob.size / _GIB))


def _cold(bench: Bench) -> None:
    for _ in range(bench.scale.rounds):
        add_hash(bench, "cold.hash")
    for name in bench.turns():
        with bench.running(name, bench.origin.fast) as system:
            pull_small(system.port, bench.blob)
            before, mark = settled_cpu(bench, system), bench.origin.mark()
            touch_for(bench.blob.size)
            done = download(system.port, bench.blob.layer_path, bench.blob.size, 1)
            bench.results.add("cold.rate", name, bench.blob.size / _MIB / done.seconds)
            bench.results.add("cold.cpu", name, (settled_cpu(bench, system) - before) / (bench.blob.size / _GIB))
            sent = bench.origin.sent(bench.blob.layer_path, mark)
            bench.results.add("cold.upstream", name, sent.size / bench.blob.size)


def _stampede(bench: Bench) -> None:
    _crowd(bench, "stampede", bench.origin.fast)


def _slow(bench: Bench) -> None:
    _crowd(bench, "slow", bench.origin.slow)


def _crowd(bench: Bench, key: str, upstream: str) -> None:
    image = bench.shared
    for name in bench.turns():
        with bench.running(name, upstream) as system:
            pull_small(system.port, image)
            before, mark = settled_cpu(bench, system), bench.origin.mark()
            touch_for(image.size)
            done = download(system.port, image.layer_path, image.size, bench.scale.clients)
            cpu = settled_cpu(bench, system) - before
            bench.results.add(f"{key}.seconds", name, done.seconds)
            bench.results.add(f"{key}.first", name, statistics.median(done.first) * 1000)
            bench.results.add(f"{key}.worst", name, max(done.first) * 1000)
            sent = bench.origin.sent(image.layer_path, mark)
            bench.results.add(f"{key}.upstream", name, sent.size / image.size)
            if key == "stampede":
                bench.results.add(f"{key}.warm", name, _worst_when_warm(bench, system, done))
                bench.results.add(f"{key}.cpu", name, cpu)
                bench.results.add(f"{key}.requests", name, sent.requests)


def _worst_when_warm(bench: Bench, system: Running, cold: Download) -> float:
    """Milliseconds until the slowest of a crowd has its first byte of a blob that the system has; of the mirror, of the
    blob that it did not have.
    """
    image = bench.shared
    done = cold if system.name == MIRROR else download(system.port, image.layer_path, image.size, bench.scale.clients)
    return max(done.first) * 1000


def _stalled(bench: Bench) -> None:
    image = bench.shared
    for name in bench.turns():
        # a process that has had as many readers before would have the memory for them already
        with bench.running(name, bench.origin.fast) as system:
            pull_small(system.port, image)
            download(system.port, image.layer_path, image.size, 1)
            settled_cpu(bench, system)
            # buffers that a process has once, however many readers there are, are not a reader's
            download(system.port, image.layer_path, image.size, 8)
            before = _settled_memory(bench, system)
            with Stalled(system.port, image.layer_path, image.size, bench.scale.readers):
                after = _settled_memory(bench, system)
            bench.results.add("stalled.memory", name, (after - before) / 1024 / bench.scale.readers)


#: Measured on systems that start empty, anew in every round.
COLD: Final[Mapping[str, Callable[[Bench], None]]] = {
    "cold": _cold,
    "stampede": _stampede,
    "slow": _slow,
    "stalled": _stalled,
}


def measure_cold(bench: Bench, groups: Sequence[str]) -> None:
    """Measure `groups` one after the other."""
    for group in groups:
        bench.say(group)
        COLD[group](bench)

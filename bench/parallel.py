"""One cold blob that may come over several connections: from an upstream that limits each of them, where they bring
several times as much, and from one that does not, where they bring nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from bench.check import pull_small
from bench.client import download
from bench.measure import Bench, settled_cpu, touch_for
from bench.origin import Origin
from bench.process import BenchFailed
from bench.systems import COMPARED, MIRROR

_MIB: Final = 1 << 20
_GIB: Final = 1 << 30
#: Bytes a second of each connection to the upstream that limits them.
_RATE: Final = 40 * _MIB


def measure_parallel(bench: Bench) -> None:
    """Both, before an upstream of its own that has the same files. Raises `BenchFailed`."""
    systems = [name for name in bench.systems if name in COMPARED]
    if MIRROR not in systems:
        raise BenchFailed(f"several connections are measured of the {MIRROR}")
    origin = Origin(bench.directory / "limiting-origin", bench.origin.files, (bench.blob,), _RATE)
    try:
        beside = replace(bench, origin=origin, systems=systems)
        bench.say(f"parallel: {_RATE // _MIB} MiB/s a connection")
        _cold(beside, "limited", origin.slow)
        bench.say("parallel: no limit")
        _cold(beside, "unlimited", origin.fast)
    finally:
        origin.stop()


def _cold(bench: Bench, key: str, upstream: str) -> None:
    for name in bench.turns():
        with bench.running(name, upstream) as system:
            pull_small(system.port, bench.blob)
            before, mark = settled_cpu(bench, system), bench.origin.mark()
            touch_for(bench.blob.size)
            done = download(system.port, bench.blob.layer_path, bench.blob.size, 1)
            bench.results.add(f"{key}.rate", name, bench.blob.size / _MIB / done.seconds)
            bench.results.add(f"{key}.cpu", name, (settled_cpu(bench, system) - before) / (bench.blob.size / _GIB))
            sent = bench.origin.sent(bench.blob.layer_path, mark)
            bench.results.add(f"{key}.requests", name, sent.requests)
            bench.results.add(f"{key}.upstream", name, sent.size / bench.blob.size)

"""The command line: options, a private directory, one run, the table."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from bench.content import make_image
from bench.machine import facts, private_directory
from bench.measure import COLD, WARM, Bench, Scale, measure_cold, measure_warm
from bench.origin import Origin
from bench.parallel import measure_parallel
from bench.process import BenchFailed, say
from bench.pushing import measure_pushes
from bench.results import Results
from bench.systems import (
    COMPARED,
    ENCRYPTED,
    MIRROR,
    MIRROR_1S,
    MIRROR_ON_DISK,
    NGINX,
    NGINX_DEFAULTS,
    NGINX_PASSING,
    ONE_MIRROR,
    REGISTRY,
    SYSTEMS,
)
from bench.table import as_json, as_table

_MIB: Final = 1 << 20
_GROUPS: Final = [*WARM, *COLD, "parallel", "push", "tls", "bucket", "replicas"]
#: What needs an object store is measured only if it is asked for.
_USUAL: Final = _GROUPS[:-2]
#: The systems of the figures about the bucket, in the order of the table's columns.
_WITH_BUCKET: Final = [NGINX, NGINX_DEFAULTS, NGINX_PASSING, REGISTRY, MIRROR, MIRROR_ON_DISK]
#: Those of the figures about replicas.
_REPLICAS: Final = [ONE_MIRROR, MIRROR, MIRROR_1S, MIRROR_ON_DISK]

FULL: Final = Scale(
    rounds=5, blob=1024 * _MIB, stampede=200 * _MIB, clients=100, slow=10, load=5, readers=1000, pause=0.4
)
QUICK: Final = Scale(rounds=1, blob=128 * _MIB, stampede=32 * _MIB, clients=100, slow=3, load=1, readers=200, pause=0.1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; the exit code is 0 whether targets are met or not, 1 where something could not be measured."""
    options = _parser().parse_args(argv)
    scale = QUICK if options.quick else FULL
    if options.rounds:
        scale = replace(scale, rounds=options.rounds)
    if options.mib:
        scale = replace(scale, blob=options.mib * _MIB, stampede=max(options.mib // 5, 1) * _MIB)
    try:
        results, machine = _measure(scale, options.only, options.systems, options.dir)
    except BenchFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    over_tls = [name for name in options.systems if name in ENCRYPTED]
    systems = {"bucket": _WITH_BUCKET, "replicas": _REPLICAS, "tls": over_tls}.get(
        ",".join(options.only), options.systems
    )
    print(as_table(results, systems, machine))
    if options.json:
        options.json.write_text(json.dumps(as_json(results, machine), indent=1, ensure_ascii=False) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench/run.py", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of small sizes: does everything work?")
    groups = ",".join(_GROUPS)
    parser.add_argument("--only", type=_names(_GROUPS), default=_USUAL, help=f"of {groups}")
    parser.add_argument("--systems", type=_names([*SYSTEMS]), default=[*COMPARED], help=f"of {','.join(SYSTEMS)}")
    parser.add_argument("--rounds", type=int, help="how often each figure is measured")
    parser.add_argument("--mib", type=int, help="size of the blob; of the one for many clients a fifth")
    parser.add_argument("--dir", type=Path, help="where the private directory is made; a disk, not memory")
    parser.add_argument("--json", type=Path, help="write every value to this file as well")
    return parser


class _names:
    """An option's comma-separated names, each one of those known."""

    def __init__(self, known: Sequence[str]) -> None:
        self._known = known

    def __call__(self, text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in self._known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(self._known)}")
        return names


def _measure(
    scale: Scale, only: Sequence[str], systems: Sequence[str], place: Path | None
) -> tuple[Results, dict[str, str]]:
    with private_directory(place) as directory:
        machine = facts(directory)
        files = directory / "files"
        say("making content")
        blob = make_image(files, "bench/blob", scale.blob)
        shared = make_image(files, "bench/shared", scale.stampede)
        origin = Origin(directory / "origin", files, (blob, shared), shared.size // scale.slow)
        try:
            results = Results()
            bench = Bench(directory, scale, origin, blob, shared, systems, results, say)
            if warm := [group for group in WARM if group in only]:
                measure_warm(bench, warm)
            measure_cold(bench, [group for group in COLD if group in only])
            if "parallel" in only:
                measure_parallel(bench)
            if "push" in only:
                say("push")
                measure_pushes(bench)
            if "tls" in only:
                # imported here, like the following: it needs what the tests need
                from bench.encrypted import measure_encrypted

                measure_encrypted(bench)
            if "bucket" in only:
                from bench.bucket import measure_bucket

                measure_bucket(bench)
            if "replicas" in only:
                from bench.replicas import measure_replicas

                measure_replicas(bench)
        finally:
            origin.stop()
        return results, machine

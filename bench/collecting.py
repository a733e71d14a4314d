"""Garbage collection over a store of many hosted blobs: what a step costs, and the walk over a repository.

    files are written ──> round 1 ── grace ──> round 2 ── grace ──> round 3 ── grace ──> round 4
                          unused links wait    they go, and          the bytes go         nothing is left to do
                                               their bytes wait

The store is written file by file, without a mirror: a repository of a thousand blobs has a hundred images, and every
twentieth blob is in no image. Time is made to pass between the rounds. The steps are called one after another, without
the pauses that a mirror makes between them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.content import MANIFEST_TYPE
from bench.machine import facts, private_directory
from bench.process import BenchFailed, say
from bench.results import quantile
from mirror.app.collecting import collection_rules
from mirror.app.hosting import disk_parts
from mirror.app.storage import open_storage
from mirror.collection.collection_report import CollectionReport
from mirror.collection.collection_round import collection_round
from mirror.config import Config, load
from mirror.hosting.parts import HostedParts
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted.collection import ClockReading, CollectionRules
from mirror.policy.hosted.push_checks import linked
from mirror.policy.records import ManifestRecord
from mirror.store.local.layout import Layout
from mirror.store.records.record_keys import file_name

_PER_REPOSITORY: Final = 1000
_PER_IMAGE: Final = 10
#: Of so many blobs, one is in no image.
_UNUSED: Final = 20
#: Seconds by which everything in the store is older than the grace time.
_AGE: Final = 10 * 86400.0
_ROUNDS: Final = 4
#: Names that one file may have: some file systems allow no more than 65,000.
_NAMES: Final = 50_000


@dataclass(slots=True)
class MeasuredRound:
    """One round. Seconds of processor time: of each step, and of the steps of each repository."""

    number: int
    steps: list[float] = field(default_factory=list)
    walks: list[float] = field(default_factory=list)
    #: Seconds by the clock of each step.
    waits: list[float] = field(default_factory=list)
    report: CollectionReport | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Write a store, collect in it, and print a table."""
    parser = argparse.ArgumentParser(prog="bench/collect.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--blobs", type=int, default=100_000, help="default: 100000; a million takes 2 GiB of the disk")
    parser.add_argument("--bucket", choices=("memory", "seaweedfs"), help="of a bucket instead of a disk")
    parser.add_argument("--dir", type=Path, help="where the private directory is made; a disk, not memory")
    parser.add_argument("--json", type=Path, help="write every figure to this file as well")
    options = parser.parse_args(argv)
    try:
        with private_directory(options.dir) as directory:
            machine = facts(directory)
            measure = _in_bucket if options.bucket else _on_disk
            rows, measured, rounds = measure(directory, options)
    except BenchFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    facts_of_run = {**measured, "memory at most": f"{peak} MiB", **machine}
    print("\n".join([*rows, "", *(f"{name}: {value}" for name, value in facts_of_run.items())]))
    if options.json:
        options.json.write_text(json.dumps({"run": facts_of_run, "rounds": rounds}) + "\n")
    return 0


#: The table of a run, what it was about, and the figures of each round.
_Measured = tuple[list[str], dict[str, str], Any]


def _on_disk(directory: Path, options: argparse.Namespace) -> _Measured:
    config = _config(directory)
    say(f"writing {options.blobs} blobs")
    manifests = asyncio.run(_with_parts(config, lambda parts: _write_store(parts, config, options.blobs)))
    say("collecting")
    rounds = asyncio.run(_with_parts(config, lambda parts: _collect(parts, collection_rules(config))))
    about = {"blobs": str(options.blobs), "manifests": str(manifests)}
    return _table(rounds), about, [_figures(each) for each in rounds]


def _in_bucket(directory: Path, options: argparse.Namespace) -> _Measured:
    # imported here: only this needs what tests use to start an object store
    from bench.collecting_bucket import measure

    rows, figures = measure(directory, options.bucket, options.blobs)
    return rows, {name: str(value) for name, value in figures["bucket"].items()}, figures["rounds"]


def _config(directory: Path) -> Config:
    path = directory / "mirror.toml"
    path.write_text(f'[store]\nroot = "{directory}/store"\ncapacity = "1TB"\n[[hosted]]\nname = "corp"\n')
    return load(path)


async def _with_parts(config: Config, work: Callable[[HostedParts], Any]) -> Any:
    async with open_storage(config) as storage:
        return work(disk_parts(config, storage))


# ----------------------------------------------------------------------------------------------------------- the store


def _write_store(parts: HostedParts, config: Config, blobs: int) -> int:
    """Writes so many blobs with their links, and the images that name them. Returns the number of images."""
    layout, since, manifests, files = Layout(config.store.root), parts.now() - _AGE, 0, _Files()
    for begin in range(0, blobs, _PER_REPOSITORY):
        repo = Repo("corp", f"bench/repository-{begin // _PER_REPOSITORY}")
        used = []
        for number in range(begin, min(begin + _PER_REPOSITORY, blobs)):
            digest = Digest.of(str(number).encode())
            files.repeat(layout.hosted_blob(digest), b"x")
            files.repeat(f"{layout.links(repo)}/{file_name(digest)}", linked(digest, 1, since).to_json())
            if number % _UNUSED:
                used.append(digest)
        for start in range(0, len(used), _PER_IMAGE):
            content = _manifest(used[start : start + _PER_IMAGE])
            digest = Digest.of(content)
            record = ManifestRecord(digest, MANIFEST_TYPE, len(content), since)
            files.write(layout.hosted_blob(digest), content)
            files.repeat(f"{layout.manifests(repo)}/{file_name(digest)}", record.to_json())
            manifests += 1
    return manifests


def _manifest(blobs: Sequence[Digest]) -> bytes:
    kinds = ["config.v1+json", *["layer.v1.tar"] * (len(blobs) - 1)]
    config, *layers = (
        {"mediaType": f"application/vnd.oci.image.{kind}", "digest": str(digest), "size": 1}
        for kind, digest in zip(kinds, blobs, strict=True)
    )
    body = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers}
    return json.dumps(body).encode()


class _Files:
    """Writes files. Those of equal content are names of a few files: that is ten times as fast, and whoever replaces or
    deletes such a file does so by its name.
    """

    def __init__(self) -> None:
        self._first: dict[bytes, tuple[str, int]] = {}

    def write(self, path: str, content: bytes) -> None:
        """Writes a file that has a content of its own."""
        self._in_its_folder(path, lambda: self._create(path, content))

    def repeat(self, path: str, content: bytes) -> None:
        """Writes a file whose content is that of many others."""
        first, names = self._first.get(content, ("", _NAMES))
        if names >= _NAMES:
            self.write(path, content)
            self._first[content] = path, 1
        else:
            self._in_its_folder(path, lambda: os.link(first, path))
            self._first[content] = first, names + 1

    @staticmethod
    def _create(path: str, content: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.write(descriptor, content)
        os.close(descriptor)

    @staticmethod
    def _in_its_folder(path: str, make: Callable[[], None]) -> None:
        try:
            make()
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), mode=0o700)
            make()


# ------------------------------------------------------------------------------------------------------------- rounds


def _collect(parts: HostedParts, rules: CollectionRules) -> list[MeasuredRound]:
    now = parts.now()
    rounds = []
    for number in range(_ROUNDS):
        at = now + number * (rules.grace + 60.0)
        rounds.append(measure_round(number + 1, parts, rules, at))
        say(f"round {number + 1}: {sum(rounds[-1].steps):.1f} s of the processor")
    return rounds


def measure_round(number: int, parts: HostedParts, rules: CollectionRules, at: float) -> MeasuredRound:
    measured, report = MeasuredRound(number), CollectionReport(at)
    steps: Iterator[None] = collection_round(parts, rules, lambda: ClockReading(at, at), report)
    repositories, walk, ended = 0, 0.0, False
    while not ended:
        clock, began = time.perf_counter(), time.thread_time()
        ended = next(steps, report) is report
        took = time.thread_time() - began
        measured.steps.append(took)
        measured.waits.append(time.perf_counter() - clock)
        if report.repositories != repositories:
            if repositories:
                measured.walks.append(walk)
            repositories, walk = report.repositories, 0.0
        walk += took
    measured.report = report
    return measured


# ------------------------------------------------------------------------------------------------------------- figures


def _figures(measured: MeasuredRound) -> dict[str, float]:
    """Milliseconds, unless a name says otherwise."""
    report = measured.report or CollectionReport(0.0)
    return {
        "round": measured.number,
        "steps": len(measured.steps),
        **_spread("step", measured.steps),
        **_spread("step by the clock", measured.waits),
        **_spread("repository", measured.walks),
        "processor s": sum(measured.steps),
        "links queued": report.links_queued,
        "links gone": report.links,
        "blobs queued": report.blobs_queued,
        "blobs gone": report.blobs,
    }


def _spread(name: str, seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    ranks = {"median": 0.5, "p99": 0.99, "max": 1.0}
    return {f"{name} {rank}": quantile(ordered, at) * 1000 for rank, at in ranks.items()}


def _table(rounds: Sequence[MeasuredRound]) -> list[str]:
    columns = [_figures(each) for each in rounds]
    lines = [
        "| figure | " + " | ".join(f"round {each.number}" for each in rounds) + " |",
        "|---" * (len(rounds) + 1) + "|",
    ]
    for name in [name for name in columns[0] if name != "round"]:
        cells = [
            f"{column[name]:,.2f}" if isinstance(column[name], float) else f"{column[name]:,}" for column in columns
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines

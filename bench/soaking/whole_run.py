"""The command line, and the run: begin, load and faults, quiet, look, end.

publish ──> start ──> load and faults ──> faults end (9/10) ──> clients end ──> quiet ──> look ──> stop ──> check
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.machine import facts
from bench.process import BenchFailed, say
from bench.results import quantile
from bench.soaking.clients import Clients
from bench.soaking.cluster import WORKERS, MirrorUnderTest, Settings, start_registry
from bench.soaking.faulty import Faulty
from bench.soaking.harm import Harm
from bench.soaking.history import History, check
from bench.soaking.library import Library, Size, publish
from bench.soaking.livez import latencies, start_asking
from bench.soaking.report import Report, damaged_files, read_logs
from bench.soaking.schedule import draw_schedule
from bench.soaking.watch import Watch, held_locks, sample, store_files
from tests.support.redis_server import RedisServer

_MIB: Final = 1 << 20
#: The store holds a part of what is pulled: the rest of it has to be evicted, again and again.
_PART: Final = 3
#: Seconds that the clients may still take for what they have begun, and the mirror to come to rest.
_LAST_WORDS: Final = 120.0
_REST: Final = 30.0
#: From this part of the run on one worker is spared, so that its memory can be watched.
_SPARED: Final = 0.5
#: Seconds around the end of a worker or of the mirror in which its successor is still starting.
_DISTURBED: Final = 5.0


@dataclass(frozen=True, slots=True)
class Scale:
    """What a run is made of. `judges_disk`: whether a disk above its limit fails it."""

    size: Size
    clients: int
    high: float
    low: float
    read_timeout: int
    judges_disk: bool


#: A store of a few MiB is turned over within the second between two looks of the evictor, so its disk is not judged.
SHORT: Final = Scale(Size(60, 5, 4 << 10, 1 << 20), clients=8, high=0.6, low=0.4, read_timeout=1, judges_disk=False)
LONG: Final = Scale(Size(160, 6, 16 << 10, 6 << 20), clients=16, high=0.95, low=0.85, read_timeout=5, judges_disk=True)
_SHORTER: Final = 120.0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 for corrupt bodies, failed warm pulls, a disk over its limit, crashes; 2 if it could not be run."""
    options = _parser().parse_args(argv)
    try:
        with _directory(options.keep, options.dir) as directory:
            report = asyncio.run(
                _interruptible(soak(directory, options.seconds, options.seed, redis=options.index == "redis"))
            )
            print(report.text())
            print("; ".join(f"{name}: {value}" for name, value in facts(directory).items()))
            if options.json:
                found = {"figures": report.figures, "failed": report.failed_pulls, "problems": report.problems}
                options.json.write_text(json.dumps(found, indent=1) + "\n")
    except BenchFailed as error:
        print(f"soak: {error}", file=sys.stderr)
        return 2
    except asyncio.CancelledError:
        print("soak: interrupted", file=sys.stderr)
        return 2
    return 1 if report.problems else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench/soak.py", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800.0, help="of load; from 20 on")
    parser.add_argument("--seed", type=int, default=1, help="what content, clients and faults are drawn from")
    parser.add_argument("--index", choices=("redis", "embedded"), default="redis")
    parser.add_argument("--dir", type=Path, help="where the private directory is made")
    parser.add_argument("--keep", type=Path, help="a directory, made for this run and left: logs, history, store")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    return parser


@contextmanager
def _directory(keep: Path | None, place: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="mirror-soak-", dir=place) as name:
        yield Path(name)


async def _interruptible(work: Coroutine[Any, Any, Report]) -> Report:
    """SIGTERM and SIGINT cancel it, so that everything that was started is ended."""
    task = asyncio.ensure_future(work)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await task


async def soak(directory: Path, seconds: float, seed: int, *, redis: bool) -> Report:
    """One run in an empty directory. Raises `BenchFailed` where a program does not start."""
    scale = SHORT if seconds < _SHORTER else LONG
    with ExitStack() as stack:
        registry, port = start_registry(directory / "registry")
        stack.callback(registry.stop)
        say("publishing")
        library = await asyncio.to_thread(publish, f"http://127.0.0.1:{port}", directory / "content", seed, scale.size)
        faulty = Faulty(port, seed, stall=scale.read_timeout * 2.0)
        await faulty.start()
        server = stack.enter_context(RedisServer()) if redis else None
        settings = Settings(
            upstream=faulty.port,
            index=server.url if server is not None else "",
            capacity=library.size // _PART,
            high=scale.high,
            low=scale.low,
            read_timeout=scale.read_timeout,
        )
        mirror = MirrorUnderTest(directory / "mirror", settings)
        stack.callback(mirror.stop)
        try:
            await asyncio.to_thread(mirror.start)
            return await _Run(directory, seconds, seed, scale, library, faulty, server, mirror, settings).run()
        finally:
            await faulty.stop()


@dataclass(slots=True)
class _Run:
    directory: Path
    seconds: float
    seed: int
    scale: Scale
    library: Library
    faulty: Faulty
    redis: RedisServer | None
    mirror: MirrorUnderTest
    settings: Settings

    async def run(self) -> Report:
        report = Report()
        report.figures["run"] = (
            f"{self.seconds:g} s, seed {self.seed}, {WORKERS} workers, {self.scale.clients} clients, "
            f"index: {'Redis' if self.redis else 'embedded'}, capacity {self.settings.capacity / _MIB:.0f} MiB "
            f"for {self.library.size / _MIB:.0f} MiB in {len(self.library.images)} images"
        )
        idle = self._held()
        asking = start_asking(self.mirror.port, self.directory / "livez")
        began, began_at = time.monotonic(), time.time()
        watch = Watch(self.mirror, self.settings.capacity, began)
        watching = asyncio.create_task(watch.run())
        harm = Harm(self.mirror, self.faulty, self.redis, self.seed, say)
        clients = Clients(
            self.mirror.port,
            self.library,
            History(self.directory / "history.jsonl"),
            self.mirror.store / "blobs",
            self.seed,
            began,
            began + self.seconds,
        )
        try:
            await self._load(clients, harm, began, report)
        finally:
            asking.stop()
            watching.cancel()
            await asyncio.wait({watching})
        await self._rest(report, idle)
        await asyncio.to_thread(self.mirror.stop)
        say("checking")
        place = clients.history.close()
        sizes = {digest: len(content) for digest, content in self.library.contents.items()}
        checked = await asyncio.to_thread(check, place, sizes)
        report.figures["faults: events"] = ", ".join(
            f"{kind} {harm.carried_out[kind]}" for kind in sorted(harm.carried_out)
        )
        report.figures["faults: answers of upstream hit"] = ", ".join(
            f"{kind} {self.faulty.injected[kind]}" for kind in sorted(self.faulty.injected)
        )
        report.add_clients(clients, checked)
        report.figures["upstream"] = (
            f"{self.faulty.blob_requests} blob requests, {self.faulty.blob_bytes / _MIB:,.0f} MiB: "
            f"{self.faulty.blob_bytes / max(1, checked.unique):.2f} of the unique bytes pulled"
        )
        self._report_watch(report, watch)
        quiet = [(at - 0.5, at + _DISTURBED) for at in harm.disturbed]
        every, calm, silent = latencies(self.directory / "livez", began_at, quiet)
        report.figures["/livez from outside, every 50 ms"] = (
            f"p50 {quantile(every, 0.5):.1f}, p99 {quantile(every, 0.99):.1f} ms; away from restarts and kills p50 "
            f"{quantile(calm, 0.5):.1f}, p99 {quantile(calm, 0.99):.1f} ms; "
            f"{silent} of {len(every) + silent} unanswered"
        )
        count, damaged = await asyncio.to_thread(damaged_files, self.mirror.store / "blobs")
        report.figures["blobs in the store at the end"] = f"{count}, {len(damaged)} of them damaged"
        report.expect(not damaged, f"{len(damaged)} blobs in the store are damaged: {damaged[:5]}")
        report.add_logs(await asyncio.to_thread(read_logs, self.mirror.logs))
        return report

    async def _load(self, clients: Clients, harm: Harm, began: float, report: Report) -> None:
        events = draw_schedule(self.seed, self.seconds, redis=self.redis is not None)
        say("schedule:\n" + "\n".join(map(str, events)))
        spare = self.seconds * _SPARED
        harming = asyncio.create_task(harm.run(events, began, spare))
        working = [asyncio.create_task(clients.run(number)) for number in range(self.scale.clients)]
        try:
            await harming
            self.faulty.be_fair()
            _, late = await asyncio.wait(working, timeout=max(0.0, clients.ends - time.monotonic()) + _LAST_WORDS)
            report.expect(not late, f"{len(late)} clients were still waiting {_LAST_WORDS:g} s after the end")
        finally:
            for task in (harming, *working):
                task.cancel()
            ended = await asyncio.gather(harming, *working, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error

    # ----------------------------------------------------------------------------------- at rest, and after

    def _held(self) -> str:
        """Descriptors and threads of each worker."""
        taken = [sample(pid, 0.0) for pid in self.mirror.workers()]
        return " ".join(f"{one.descriptors}/{one.threads}" for one in taken if one is not None)

    async def _rest(self, report: Report, idle: str) -> None:
        """Nobody asks any more: what is still held was forgotten."""
        say("waiting for rest")
        deadline = time.monotonic() + _REST
        while True:
            files = store_files(self.mirror.workers(), self.mirror.store)
            flights = await asyncio.to_thread(_flights, self.mirror.port)
            locks = held_locks(self.mirror.store / "ingest")
            if (files, flights, locks) == (0, 0, 0) or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.5)
        names = [entry.name for entry in (self.mirror.store / "ingest").iterdir()]
        partials = sum(not name.endswith(".state") and not name.startswith("tmp-") for name in names)
        states = {name.removesuffix(".state") for name in names if name.endswith(".state")}
        report.figures["at rest"] = (
            f"{flights:g} downloads under way, {files} files of the store open, {locks} growing files locked, "
            f"{partials} partials, {len(states - set(names))} notes without one, "
            f"{sum(name.startswith('tmp-') for name in names)} unfinished small files"
        )
        report.figures["descriptors/threads of each worker"] = f"before {idle}, after {self._held()}"
        report.expect(not files and not flights and not locks, "something is still held long after the last client")

    def _report_watch(self, report: Report, watch: Watch) -> None:
        report.figures["disk"] = (
            f"at most {watch.most / watch.limit:.1%} of the limit (at {watch.most_at:.0f} s), "
            f"above it in {watch.above} of {watch.looks} looks"
        )
        report.figures["disk, most in each minute, % of the limit"] = " ".join(
            f"{most / watch.limit * 100:.0f}" for most in watch.minutes.values()
        )
        if self.scale.judges_disk:
            report.expect(watch.most <= watch.limit, f"the disk held {watch.most} bytes, the limit is {watch.limit}")
        report.figures["most of one worker"] = (
            f"{watch.most_of(lambda one: one.memory) / _MIB:.0f} MiB, {watch.most_of(lambda one: one.descriptors)} "
            f"descriptors, {watch.most_of(lambda one: one.threads)} threads"
        )
        slopes = [f"{rate:+.1f} over {minutes:.0f} min" for rate, minutes in watch.slopes().values()]
        report.figures["memory of workers that lived long, MiB an hour"] = ", ".join(slopes) or "none lived long enough"


def _flights(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith("mirror_flights "))

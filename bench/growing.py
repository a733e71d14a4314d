"""Stores of several sizes: what starts, rebuilds, lists, pulls, evictions and collections cost in each, and the slope.

    store written ──> mirror, index lost ── whole ──> restarted ── lists, first pulls ──> ended ── commands, steps

The figures of one size are seconds by the clock and, of commands, of the processor, so they are worth what the machine
is: read the slopes, and compare runs of one machine. Nothing is judged. Everything is in a directory of the run.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import itertools
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

from bench.collecting import measure_round
from bench.content import MANIFEST_TYPE
from bench.growing_index import measure_redis, measure_sqlite
from bench.growing_store import CACHED, HOSTED, INDEX_TYPE, GrownStore, room_needed, write_store
from bench.machine import facts, private_directory
from bench.process import BenchFailed, Server, cpu_seconds, memory_of_each, say
from bench.results import quantile
from bench.systems import listening_port
from mirror.app.collecting import collection_rules
from mirror.app.hosting import disk_parts
from mirror.app.storage import open_storage
from mirror.config import Config, load
from mirror.errors import IndexUnavailable
from mirror.eviction.candidates import from_index
from mirror.eviction.reconcile import MARK
from mirror.hosting.ledger_upkeep import LedgerUpkeep
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout

_ROOT: Final = Path(__file__).resolve().parent.parent
_WORKERS: Final = 2
#: Four repositories, of which the last one is hosted.
_SMALLEST: Final = 2_496
#: Blobs to which slopes refer.
_PER: Final = 100_000
#: Tags that are pulled for the first time after a start, and requests that show what pulls cost without a rebuild.
_FIRST_PULLS: Final = 200
_AT_REST: Final = 2000
#: A prime, so that requests come to every tag of every repository.
_STEP: Final = 7919
#: Seconds for which a client pulls while an index is rebuilt.
_BESIDE: Final = 20.0
#: Seconds that a rebuild may take before the run gives up.
_PATIENCE: Final = 7200.0
#: The part of the bytes that an eviction is planned for.
_EVICTED: Final = 0.01

T = TypeVar("T")

Figures = dict[str, float]
#: Seconds of each answer, by the kind of request.
Waits = dict[str, list[float]]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the stores one after the other, measure, and print a table with slopes."""
    parser = argparse.ArgumentParser(prog="bench/growth.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", default="10000,100000", help="numbers of blobs; default: 10000,100000")
    parser.add_argument("--index-sizes", default="", help="numbers of records in the index alone: 1000000,10000000")
    parser.add_argument("--redis", action="store_true", help="an index in Redis as well; needs redis-server")
    parser.add_argument("--dir", type=Path, help="where the private directory is made; a disk, not memory")
    parser.add_argument("--keep", type=Path, help="a directory of stores that are used again, and left there")
    parser.add_argument("--json", type=Path, help="write every figure to this file as well")
    options = parser.parse_args(argv)
    sizes, index_sizes = _numbers(options.sizes), _numbers(options.index_sizes)
    if sizes and sizes[0] < _SMALLEST:
        parser.error(f"--sizes: at least {_SMALLEST} blobs, so that there is a hosted repository")
    results: dict[int, Figures] = {}
    indexes: dict[int, Figures] = {}
    try:
        with private_directory(options.dir) as directory:
            machine = facts(directory)
            for size in sizes:
                place = (options.keep or directory) / str(size)
                results[size] = _measure(place, size, redis=options.redis)
                if not options.keep:
                    shutil.rmtree(place)
            for size in index_sizes:
                say(f"an index of {size} blobs in SQLite")
                indexes[size] = asyncio.run(measure_sqlite(directory / "index.sqlite", size))
                if options.redis:
                    say(f"an index of {size} blobs in Redis")
                    indexes[size] |= asyncio.run(measure_redis(size))
    except BenchFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    tables = [table(results), table(indexes)] if indexes else [table(results)]
    print("\n\n".join([*("\n".join(each) for each in tables if each)]))
    print("\n" + "\n".join(f"{name}: {value}" for name, value in machine.items()))
    if options.json:
        options.json.write_text(json.dumps({"stores": results, "indexes": indexes, "machine": machine}) + "\n")
    return 0


def _numbers(text: str) -> list[int]:
    return sorted(int(each) for each in text.split(",") if each.strip())


def _check_room(directory: Path, blobs: int) -> None:
    size, files = room_needed(blobs)
    status = os.statvfs(directory)
    if status.f_bavail * status.f_frsize < size or (status.f_files and status.f_favail < files):
        raise BenchFailed(f"{blobs} blobs need {size >> 20} MiB and {files} files in {directory}")


# --------------------------------------------------------------------------------------------------------- the figures


def table(results: Mapping[int, Figures]) -> list[str]:
    """A row for each figure, a column for each size, and how much is added by 100,000 blobs."""
    if not results:
        return []
    sizes = sorted(results)
    lines = [
        f"| figure | {' | '.join(f'{size:,}' for size in sizes)} | for each {_PER:,} more |",
        "|---" * (len(sizes) + 2) + "|",
    ]
    for name in dict.fromkeys(itertools.chain.from_iterable(results.values())):
        values = [results[size].get(name) for size in sizes]
        cells = ["–" if value is None else f"{value:,.4g}" for value in values]
        added = slope([(size, value) for size, value in zip(sizes, values, strict=True) if value is not None])
        lines.append(f"| {name} | {' | '.join(cells)} | {'–' if added is None else f'{added:,.3g}'} |")
    return lines


def slope(points: Sequence[tuple[int, float]]) -> float | None:
    """What 100,000 blobs more add, by least squares; None for a single size."""
    if len(points) < 2:
        return None
    return statistics.linear_regression(*zip(*points, strict=True)).slope * _PER


# ------------------------------------------------------------------------------------------------------------ one size


def _measure(directory: Path, blobs: int, *, redis: bool) -> Figures:
    made = _store(directory, blobs)
    root = directory / "store"
    figures: Figures = {name: float(value) for name, value in made.facts().items()}
    say("filling the ledger")
    _lose(root, "hosted.sqlite")
    figures |= asyncio.run(_ledger(load(configuration(directory, ""))))
    if redis:
        # imported here: only this needs what tests use to start Redis
        from tests.support.redis_server import RedisServer

        with RedisServer() as server:
            config = configuration(directory, f'[index]\nurl = "{server.url}"\n')
            say("rebuilding the index in Redis")
            found = _rebuild(config, made, lambda: server.command("FLUSHALL"))
            figures |= {f"Redis: {name}": value for name, value in found.items()}
            figures["Redis: memory, MiB"] = _memory_of(server.command("INFO", "memory")) / 2**20
    config = configuration(directory, "")
    say("rebuilding the index in SQLite")
    figures |= _rebuild(config, made, lambda: _lose(root, "index.sqlite"))
    figures["size of the index, MiB"] = sum(file.stat().st_size for file in root.glob("index.sqlite*")) / 2**20
    say("asking a restarted mirror")
    figures |= _restarted(config, made)
    say("running commands and steps")
    figures |= _commands(config, made)
    figures |= asyncio.run(_steps(load(config)))
    return figures


def _store(directory: Path, blobs: int) -> GrownStore:
    """The store of this directory, which is written unless an earlier run has left it."""
    facts_of = directory / "made.json"
    if facts_of.exists():
        return GrownStore.from_json(facts_of.read_text())
    say(f"writing {blobs} blobs")
    root = directory / "store"
    root.mkdir(parents=True)
    _check_room(root, blobs)
    LocalStore(Layout(root))
    made = write_store(root, blobs)
    facts_of.write_text(made.to_json())
    return made


def configuration(directory: Path, more: str) -> Path:
    """Writes the settings of a mirror whose store is `store` in the directory. `more` are further tables."""
    path = directory / "mirror.toml"
    path.write_text(f"""[server]
listen = ["127.0.0.1:0"]
workers = {_WORKERS}
access_log = false
[store]
root = "{directory}/store"
capacity = "100TB"
{more}[[upstream]]
name = "{CACHED}"
url = "http://127.0.0.1:9"
[[route]]
match = "{CACHED}/**"
offline = true
[[hosted]]
name = "{HOSTED}"
[[access.rule]]
effect = "allow"
callers = ["*"]
actions = ["pull"]
repositories = ["**"]
""")
    return path


@contextmanager
def _mirror(config: Path) -> Iterator[tuple[Server, int, float]]:
    """A mirror, its port, and the seconds until it answered."""
    began = time.monotonic()
    argv = [sys.executable, "-m", "mirror", "serve", "--config", str(config)]
    server = Server(argv, log=config.with_name("output"), cwd=_ROOT)
    try:
        port = server.line(listening_port, "listening")

        def answers() -> bool | None:
            try:
                return _Client(port).get("/v2/") in (200, 401) or None
            except OSError:
                return None

        server.wait(answers, "answering")
        yield server, port, time.monotonic() - began
    finally:
        server.stop()


class _Client:
    """One connection that is kept."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def get(self, path: str, method: str = "GET") -> int:
        """The status of the answer, which is read whole."""
        self._connection.request(method, path, headers={"Accept": f"{MANIFEST_TYPE}, {INDEX_TYPE}"})
        response = self._connection.getresponse()
        response.read()
        return response.status


async def _ledger(config: Config) -> Figures:
    """The ledger of hosted content that was lost, and one that is complete, in this process."""
    figures: Figures = {}
    async with open_storage(config) as storage:
        strict = storage.hosted.strict.catalog
        registries = [entry.name for entry in config.hosted]
        upkeep = LedgerUpkeep(storage.hosted.ledger, storage.hosted.records, strict, registries)
        for name in ("ledger: filled, of the processor, s", "ledger: compared, of the processor, s"):
            began = time.process_time()
            await upkeep.complete()
            figures[name] = time.process_time() - began
    return figures


def _rebuild(config: Path, made: GrownStore, lose: Callable[[], object]) -> Figures:
    """Twice with an index that is not there: for some seconds beside pulls, and alone until it is whole."""
    lose()
    beside: Waits = {}
    with _mirror(config) as (_, port, _):
        whole = threading.Event()
        client = threading.Thread(target=_pull_until, args=(port, made, beside, whole))
        client.start()
        try:
            with suppress(TimeoutError):
                asyncio.run(asyncio.wait_for(_wait_whole(load(config)), _BESIDE))
        finally:
            whole.set()
            client.join()
    lose()
    with _mirror(config) as (server, port, ready):
        began = time.monotonic() - ready
        asyncio.run(_wait_whole(load(config)))
        figures = {
            "start until ready, s": ready,
            "rebuild of a lost index, s": time.monotonic() - began,
            "— of the processor, s": cpu_seconds(server.pid),
            "— memory of a worker (PSS), MiB": max(memory_of_each(server.pid)) / 2**20,
        }
        rest: Waits = {}
        _pull(port, made, rest, _AT_REST)
    for name, seconds in beside.items():
        figures |= _spread(f"{name} while it is rebuilt", seconds)
        figures |= _spread(f"{name} afterwards", rest[name])
    return figures


def _lose(root: Path, name: str) -> None:
    for file in root.glob(f"{name}*"):
        file.unlink()


def _memory_of(information: bytes) -> float:
    """In bytes, of what Redis says about its memory."""
    [used] = [line for line in information.decode().split() if line.startswith("used_memory:")]
    return float(used.partition(":")[2])


async def _wait_whole(config: Config) -> None:
    """Until the index has its mark. Raises `BenchFailed`."""
    deadline = time.monotonic() + _PATIENCE
    async with open_storage(config) as storage:
        while True:
            # a busy Redis may be late
            with suppress(IndexUnavailable):
                if await storage.index.marker() == MARK:
                    return
            if time.monotonic() > deadline:
                raise BenchFailed("the index is not whole in time")
            await asyncio.sleep(0.25)


def _requests(made: GrownStore) -> Iterator[tuple[str, str, str]]:
    """Manifests by tag, and HEADs of blobs, all over the store: kind, method and path."""
    tags, blobs = _all_over(made.tags), _all_over(made.wanted)
    while True:
        repo, tag = next(tags)
        yield "manifest by tag", "GET", f"/v2/{repo}/manifests/{tag}"
        repo, digest = next(blobs)
        yield "HEAD of a blob", "HEAD", f"/v2/{repo}/blobs/{digest}"


def _all_over(items: Sequence[T]) -> Iterator[T]:
    """The items without end, neighbours far from each other."""
    return (items[number * _STEP % len(items)] for number in itertools.count())


def _pull_until(port: int, made: GrownStore, waits: Waits, end: threading.Event) -> None:
    client, requests = _Client(port), _requests(made)
    while not end.is_set():
        kind, method, path = next(requests)
        waits.setdefault(kind, []).append(_timed(client, method, path))


def _pull(port: int, made: GrownStore, waits: Waits, count: int) -> None:
    client = _Client(port)
    for kind, method, path in itertools.islice(_requests(made), count):
        waits.setdefault(kind, []).append(_timed(client, method, path))


def _timed(client: _Client, method: str, path: str) -> float:
    began = time.perf_counter()
    if (status := client.get(path, method)) != 200:
        raise BenchFailed(f"{method} {path}: {status}")
    return time.perf_counter() - began


def _spread(name: str, seconds: Sequence[float]) -> Figures:
    ordered = sorted(seconds)
    ranks = {"median": 0.5, "p99": 0.99, "longest": 1.0}
    return {f"{name}, {rank}, ms": quantile(ordered, at) * 1000 for rank, at in ranks.items()}


def _restarted(config: Path, made: GrownStore) -> Figures:
    with _mirror(config) as (server, port, ready):
        figures = {"start with a whole index until ready, s": ready}
        began = cpu_seconds(server.pid)
        chosen = made.tags[:: max(1, len(made.tags) // _FIRST_PULLS)][:_FIRST_PULLS]
        client = _Client(port)
        for turn in ("first pull of a tag", "second pull of a tag"):
            figures |= _spread(turn, [_timed(client, "GET", f"/v2/{repo}/manifests/{tag}") for repo, tag in chosen])
        hosted = next(repo for repo, _ in made.tags if repo.registry == HOSTED)
        figures["tag list of a repository, ms"] = _timed(client, "GET", f"/v2/{hosted}/tags/list?n=50") * 1000
        figures["first page of the catalog, ms"] = _timed(client, "GET", "/v2/_catalog?n=50") * 1000
        figures["next page of the catalog, ms"] = _timed(client, "GET", f"/v2/_catalog?n=50&last={hosted}") * 1000
        ask = _Admin(Path(load(config).store.root) / "admin.sock")
        middle = quote(str(made.tags[len(made.tags) // 2][0]), safe="")
        for name, path in {
            "page of images, first": "images?limit=50",
            "page of images, again": "images?limit=50",
            "page of images, in the middle": f"images?limit=50&after={middle}",
            "page of a search": "images?limit=50&search=app-1",
            "page of hosted repositories": "hosted?limit=50",
            "one image": f"images/{quote(f'{hosted}:v1.5', safe='')}",
            "next to be evicted": "eviction?limit=20",
            "status": "status",
        }.items():
            figures[f"admin: {name}, ms"] = ask(path) * 1000
        output = config.with_name("output")
        server.wait(lambda: "reconcile ended" in output.read_text() or None, "comparing index and disk", _PATIENCE)
        figures["comparison with the disk, of the processor, s"] = cpu_seconds(server.pid) - began
        figures["memory of a worker (PSS), MiB"] = max(memory_of_each(server.pid)) / 2**20
        return figures


class _Admin:
    """Requests to the admin API, over its socket."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, path: str) -> float:
        """Seconds until the whole answer was read. Raises `BenchFailed`."""
        connection = http.client.HTTPConnection("localhost", timeout=600)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self._path))
        began = time.perf_counter()
        connection.request("GET", f"/admin/v1/{path}")
        response = connection.getresponse()
        body = response.read()
        took = time.perf_counter() - began
        connection.close()
        if response.status != 200:
            raise BenchFailed(f"{path}: {response.status} {body[:200]!r}")
        return took


def _commands(config: Path, made: GrownStore) -> Figures:
    cached = next(f"{repo}:{tag}" for repo, tag in made.tags if repo.registry == CACHED)
    hosted = next(f"{repo}:{tag}" for repo, tag in made.tags if repo.registry == HOSTED)
    figures: Figures = {}
    for name, words in {
        "mirror ls": ["ls"],
        "mirror ls --limit 50": ["ls", "--limit", "50"],
        "mirror ls, the last 50": ["ls", "--limit", "50", "--after", f"{made.tags[-1][0]}:v1.0"],
        "mirror show, cached": ["show", cached],
        "mirror show, hosted": ["show", hosted],
        "mirror gc": ["gc"],
        "mirror evict --dry-run": ["evict", "--dry-run"],
    }.items():
        took, processor, first = _command(config, words)
        figures[f"{name}, s"] = took
        figures[f"{name}, of the processor, s"] = processor
        if name == "mirror ls":
            figures["mirror ls, first line after, s"] = first
    return figures


def _command(config: Path, words: Sequence[str]) -> tuple[float, float, float]:
    """Seconds by the clock, of the processor, and until the first line of output."""
    began = time.monotonic()
    argv = [sys.executable, "-m", "mirror", *words, "--config", str(config)]
    # a file, not a pipe: many errors would fill a pipe that nobody reads yet, and the command would wait for ever
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=errors, cwd=_ROOT)
        assert process.stdout is not None
        process.stdout.readline()
        first = time.monotonic() - began
        while process.stdout.read(1 << 20):
            pass
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        if process.returncode:
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - 1000))
            raise BenchFailed(f"mirror {' '.join(words)}: {errors.read().decode(errors='replace')}")
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime, first


async def _steps(config: Config) -> Figures:
    """Eviction and collection, in this process."""
    figures: Figures = {}
    async with open_storage(config) as storage:
        usage = await storage.index.usage()
        for name, size in (("plan of one image", 1), ("plan of one percent", int(usage.bytes * _EVICTED))):
            began = time.perf_counter()
            victims, _ = await from_index(storage.index, size, frozenset[Digest](), time.time())
            took = time.perf_counter() - began
            figures[f"eviction: {name}, ms"] = took * 1000
            figures[f"eviction: {name}, victims"] = len(victims)
        repo, digest = Repo(CACHED, "team-0/app-0"), Digest.of(b"absent")
        figures["index: one link, ms"] = await _median(lambda: storage.index.linked(repo, digest)) * 1000
        parts = disk_parts(config, storage)
        measured = measure_round(1, parts, collection_rules(config), time.time())
        ordered = sorted(measured.steps)
        figures["collection: a step, median, ms"] = quantile(ordered, 0.5) * 1000
        figures["collection: a step, p99, ms"] = quantile(ordered, 0.99) * 1000
        figures["collection: a round, of the processor, s"] = sum(ordered)
    return figures


async def _median(call: Callable[[], Any]) -> float:
    waits = []
    for _ in range(200):
        began = time.perf_counter()
        await call()
        waits.append(time.perf_counter() - began)
    return statistics.median(waits)

"""An object store behind the systems: a blob pulled from it through an empty cache, pushes to it, and whether hits of
cached manifests are slower with it.

The store is SeaweedFS (the test extra brings it). Whatever the systems do, it does its part on the same cores.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from bench.client import download
from bench.load import get_rate
from bench.measure import Bench, add_hash, settled_cpu, touch_for
from bench.process import BenchFailed
from bench.push_client import push_blobs
from bench.pushing import AT_ONCE, random_file
from bench.systems import (
    HOSTED,
    MIRROR,
    MIRROR_ON_DISK,
    NGINX,
    NGINX_DEFAULTS,
    NGINX_PASSING,
    REGISTRY,
    Running,
    nginx_before,
    registry_with,
    start_mirror,
)
from tests.support.engines.s3_engine import BUCKET
from tests.support.engines.seaweedfs import SeaweedFS

_MIB: Final = 1 << 20
_GIB: Final = 1 << 30
#: Bytes of the blob that is pulled before each measurement, and how often it is, by connections of their own.
_SMALL: Final = 10_000
_WARMING: Final = 8
_REPOSITORY: Final = "corp/bench/blobs"


def measure_bucket(bench: Bench) -> None:
    """Everything about one store, which is empty in the beginning."""
    with SeaweedFS(bench.directory / "store", anonymous=True) as store:
        bench.say("bucket: a cold blob")
        _cold(bench, store)
        bench.say("bucket: pushes")
        _pushes(bench, store)
        bench.say("bucket: manifests of cached content")
        _manifests(bench, store)


# ------------------------------------------------------------------------------------------------------------ cold


def _cold(bench: Bench, store: SeaweedFS) -> None:
    """One blob, pushed through a mirror. nginx is given its object. Small ones are pulled before, as clients do: they
    make the connections, and what a process makes once.
    """
    folder = bench.directory / "pulled"
    folder.mkdir()
    blobs = [random_file(folder / name, size) for name, size in (("blob", bench.scale.blob), ("small", _SMALL))]
    with _mirror(bench, store, "cold") as mirror:
        push_blobs(mirror.port, _REPOSITORY, blobs)
    shutil.rmtree(folder)
    objects = [f"/{BUCKET}/{_key(store, digest)}" for _, digest in blobs]
    hosted = [f"/v2/{_REPOSITORY}/blobs/{digest}" for _, digest in blobs]

    def before(name: str) -> tuple[Callable[[], Running], list[str]]:
        return lambda: nginx_before(name, bench.directory / name, store.endpoint), objects

    systems = {name: before(name) for name in (NGINX, NGINX_DEFAULTS, NGINX_PASSING)}
    systems[MIRROR] = (lambda: _start_mirror(bench, store, "cold"), hosted)
    for _ in range(bench.scale.rounds):
        add_hash(bench, "bucketcold.hash")
    # the first pull warms the store, and is not counted
    for number, name in enumerate((NGINX_PASSING, *_turns(bench, [*systems]))):
        start, (large, small) = systems[name]
        with _running(bench, start) as system:
            for _ in range(_WARMING):
                download(system.port, small, _SMALL, 1)
            mark = settled_cpu(bench, system)
            touch_for(bench.scale.blob)
            done = download(system.port, large, bench.scale.blob, 1)
            cpu = settled_cpu(bench, system) - mark
            if number:
                bench.results.add("bucketcold.rate", name, bench.scale.blob / _MIB / done.seconds)
                bench.results.add("bucketcold.cpu", name, cpu / (bench.scale.blob / _GIB))


def _key(store: SeaweedFS, digest: str) -> str:
    """The key of a hosted blob in the bucket."""
    hex_digits = digest.removeprefix("sha256:")
    prefix = f"cold/hosted/sha256/{hex_digits[:2]}/{hex_digits}"
    listing = store.call("GET", f"/{BUCKET}?list-type=2&prefix={prefix}").body.decode()
    found = listing.partition("<Key>")[2].partition("</Key>")[0]
    if not found.startswith(prefix):
        raise BenchFailed(f"the store does not have {prefix}: {listing[:500]}")
    return found


# ------------------------------------------------------------------------------------------------------------ pushes


def _pushes(bench: Bench, store: SeaweedFS) -> None:
    folder = bench.directory / "pushed-to-bucket"
    folder.mkdir()
    systems = {
        REGISTRY: lambda: registry_with(bench.directory / REGISTRY, _s3_driver(store)),
        MIRROR: lambda: _start_mirror(bench, store, f"push-{time.time_ns()}"),
    }
    for number, name in enumerate(_turns(bench, [*systems])):
        # new bytes for each: the store's own memory of a blob must not help the second system
        large = random_file(folder / "large", bench.scale.blob)
        parts = [random_file(folder / f"part-{part}", bench.scale.blob // AT_ONCE) for part in range(AT_ONCE)]
        with _running(bench, systems[name]) as system:
            small = random_file(folder / f"small-{number}", _MIB)
            push_blobs(system.port, _REPOSITORY, [small])
            for key, files in (("bucketpush1", [large]), ("bucketpush16", parts)):
                size = sum(path.stat().st_size for path, _ in files)
                before = settled_cpu(bench, system)
                touch_for(size)
                done = push_blobs(system.port, _REPOSITORY, files)
                bench.results.add(f"{key}.rate", system.name, size / _MIB / done.seconds)
                bench.results.add(f"{key}.cpu", system.name, (settled_cpu(bench, system) - before) / (size / _GIB))


def _s3_driver(store: SeaweedFS) -> str:
    settings = store.access.settings
    return (
        f"s3: {{accesskey: {settings['access_key']}, secretkey: {settings['secret_key']}, region: us-east-1, "
        f"regionendpoint: {store.endpoint}, bucket: {BUCKET}, rootdirectory: /registry, secure: false}}"
    )


# --------------------------------------------------------------------------------------------------------- manifests


def _manifests(bench: Bench, store: SeaweedFS) -> None:
    upstream = f'[[upstream]]\nname = "docker.io"\nurl = "{bench.origin.fast}"\n'
    access = store.access.below("cached")
    kept = f'bucket = "{access.url}"\ncache_in_bucket = true\n{access.table()}{upstream}'
    path = bench.blob.manifest_path(bench.blob.manifest)
    systems = {MIRROR: kept, MIRROR_ON_DISK: upstream}
    for name in _turns(bench, [*systems]):
        with _running(bench, lambda: start_mirror(bench.directory / name, systems[name], name)) as system:  # noqa: B023
            get_rate(system.port, path, 1, bench.directory)
            before = settled_cpu(bench, system)
            rate, count = get_rate(system.port, path, bench.scale.load, bench.directory)
            bench.results.add("bucketdigest.rate", name, rate)
            bench.results.add("bucketdigest.cpu", name, (settled_cpu(bench, system) - before) / count * 1e6)


# ----------------------------------------------------------------------------------------------------------- systems


def _turns(bench: Bench, names: Sequence[str]) -> Iterator[str]:
    for number in range(bench.scale.rounds):
        shift = number % len(names)
        yield from (*names[shift:], *names[:shift])


@contextmanager
def _running(bench: Bench, start: Callable[[], Running]) -> Iterator[Running]:
    system = start()
    try:
        yield system
    finally:
        system.stop()
        shutil.rmtree(bench.directory / system.name)


@contextmanager
def _mirror(bench: Bench, store: SeaweedFS, prefix: str) -> Iterator[Running]:
    with _running(bench, lambda: _start_mirror(bench, store, prefix)) as system:
        yield system


def _start_mirror(bench: Bench, store: SeaweedFS, prefix: str) -> Running:
    """A mirror on an empty disk, which hosts in a bucket."""
    access = store.access.below(prefix)
    return start_mirror(bench.directory / MIRROR, f'bucket = "{access.url}"\n{access.table()}{HOSTED}')

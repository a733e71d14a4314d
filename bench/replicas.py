"""Three replicas against one mirror: a crowd at one cold blob, many cold blobs, what a hop costs, hits, hosted tags.

All replicas and their clients share the machine's cores: so the figures say what replicas cost, not how much more of
them on machines of their own give out.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Final

from bench.check import pull_small
from bench.client import download_all
from bench.content import make_layers
from bench.load import get_rate
from bench.measure import Bench, touch_for
from bench.process import cpu_seconds, free_port, settle
from bench.push_client import push_images
from bench.pushing import small_image
from bench.systems import HOSTED, MIRROR, MIRROR_1S, MIRROR_ON_DISK, ONE_MIRROR, Running, start_mirror
from mirror.oci.digest import Digest
from mirror.policy.cluster.ownership import by_weight
from tests.support.engines.seaweedfs import SeaweedFS

_MIB: Final = 1 << 20
_GIB: Final = 1 << 30
_REPLICAS: Final = 3
_CROWD: Final = 200
_BLOBS: Final = 16


class _Replicas:
    """One or several mirrors that run."""

    def __init__(self, mirrors: Sequence[Running], members: Sequence[str]) -> None:
        self.mirrors = mirrors
        self.members = members

    @property
    def ports(self) -> list[int]:
        return [mirror.port for mirror in self.mirrors]

    def cpu(self, bench: Bench) -> float:
        """CPU seconds of all, once they have nothing left to do."""
        return settle(
            lambda: sum(cpu_seconds(mirror.pid) for mirror in self.mirrors), change=0.02, pause=bench.scale.pause
        )

    def in_order(self, path: str) -> list[int]:
        """The ports by the order in which the replicas are asked for a blob."""
        asked = by_weight("docker.io", Digest.parse(path.rpartition("/")[2]), self.members)
        return [self.ports[self.members.index(member)] for member in asked]


def measure_replicas(bench: Bench) -> None:
    """Everything about replicas; only hosted tags need a bucket."""
    layers = make_layers(bench.origin.files, "bench/layers", bench.scale.blob // _BLOBS, _BLOBS)
    for group in (_crowd, _hop, _hits):
        bench.say(f"replicas: {group.__name__.strip('_')}")
        group(bench)
    bench.say("replicas: cold blobs")
    _cold(bench, layers)
    bench.say("replicas: hosted tags")
    with SeaweedFS(bench.directory / "store") as store:
        _tags(bench, store)


# ------------------------------------------------------------------------------------------------- cached content


def _crowd(bench: Bench) -> None:
    image = bench.shared
    for name in _turns(bench, [ONE_MIRROR, MIRROR]):
        with _caching(bench, name) as replicas:
            for port in replicas.ports:
                pull_small(port, image)
            replicas.cpu(bench)
            mark = bench.origin.mark()
            touch_for(image.size * len(replicas.ports))
            done = download_all(replicas.ports, [image.layer_path], image.size, _CROWD)
            replicas.cpu(bench)
            bench.results.add("crowd.seconds", name, done.seconds)
            bench.results.add("crowd.first", name, statistics.median(done.first) * 1000)
            bench.results.add("crowd.worst", name, max(done.first) * 1000)
            bench.results.add("crowd.upstream", name, bench.origin.sent(image.layer_path, mark).size / image.size)


def _cold(bench: Bench, layers: Sequence[str]) -> None:
    size = bench.scale.blob // _BLOBS
    for name in _turns(bench, [ONE_MIRROR, MIRROR]):
        with _caching(bench, name) as replicas:
            for port in replicas.ports:
                pull_small(port, bench.blob)
                get_rate(port, "/v2/bench/layers/manifests/latest", 1, bench.directory)
            before, mark = replicas.cpu(bench), bench.origin.mark()
            touch_for(bench.scale.blob * len(replicas.ports))
            done = download_all(replicas.ports, layers, size, _BLOBS)
            cpu = replicas.cpu(bench) - before
            sent = sum(bench.origin.sent(path, mark).size for path in layers)
            bench.results.add("blobs16.rate", name, size * _BLOBS / _MIB / done.seconds)
            bench.results.add("blobs16.cpu", name, cpu / (size * _BLOBS / _GIB))
            bench.results.add("blobs16.upstream", name, sent / (size * _BLOBS))


def _hop(bench: Bench) -> None:
    """One blob, through a replica that does not own it while its owner has it; and through one mirror from upstream."""
    image = bench.blob
    for name in _turns(bench, [ONE_MIRROR, MIRROR]):
        with _caching(bench, name) as replicas:
            asked, *owner = reversed(replicas.in_order(image.layer_path)[:2])
            for port in (asked, *owner):
                pull_small(port, image)
            for port in owner:
                download_all([port], [image.layer_path], image.size, 1)
            before = replicas.cpu(bench)
            touch_for(image.size)
            done = download_all([asked], [image.layer_path], image.size, 1)
            bench.results.add("hop.rate", name, image.size / _MIB / done.seconds)
            bench.results.add("hop.cpu", name, (replicas.cpu(bench) - before) / (image.size / _GIB))
            bench.results.add("hop.first", name, done.first[0] * 1000)


def _hits(bench: Bench) -> None:
    path = bench.blob.manifest_path(bench.blob.manifest)
    for name in _turns(bench, [ONE_MIRROR, MIRROR]):
        with _caching(bench, name) as replicas:
            for port in replicas.ports:
                get_rate(port, path, 1, bench.directory)
            _measure_rate(bench, "hits", name, replicas, path)


def _measure_rate(bench: Bench, key: str, name: str, replicas: _Replicas, path: str) -> None:
    before = replicas.cpu(bench)
    with ThreadPoolExecutor(len(replicas.ports)) as pool:
        done = list(pool.map(lambda port: get_rate(port, path, bench.scale.load, bench.directory), replicas.ports))
    bench.results.add(f"{key}.rate", name, sum(rate for rate, _ in done))
    cpu = replicas.cpu(bench) - before
    bench.results.add(f"{key}.cpu", name, cpu / sum(count for _, count in done) * 1e6)


# ------------------------------------------------------------------------------------------------- hosted content


def _tags(bench: Bench, store: SeaweedFS) -> None:
    """One tag, asked for at all replicas; with a disk of its own there is one mirror."""
    for number, name in enumerate(_turns(bench, [MIRROR, MIRROR_1S, MIRROR_ON_DISK])):
        freshness = f'[hosting]\ntag_freshness = "{"1s" if name == MIRROR_1S else "0s"}"\n'
        access = store.access.below(f"tags-{number}")
        hosting = f"[access]\ntoken_key_file = {json.dumps(str(_key(bench)))}\n{HOSTED}"
        if name == MIRROR_ON_DISK:
            running = _running(bench, name, hosting, 1)
        else:
            running = _running(bench, name, f'bucket = "{access.url}"\n{freshness}{access.table()}{hosting}', _REPLICAS)
        with running as replicas:
            image = small_image(0)
            described = bench.directory / "image"
            described.write_text(json.dumps(image) + "\n")
            push_images(replicas.ports[0], described)
            path = f"/v2/{image['repository']}/manifests/{image['tag']}"
            for port in replicas.ports:
                get_rate(port, path, 1, bench.directory)
            _measure_rate(bench, "hostedtag", name, replicas, path)


# -------------------------------------------------------------------------------------------------------- systems


def _turns(bench: Bench, names: Sequence[str]) -> Iterator[str]:
    for number in range(bench.scale.rounds):
        shift = number % len(names)
        yield from (*names[shift:], *names[:shift])


def _key(bench: Bench) -> Path:
    """A key for tokens, and the secret of the cluster: what all replicas share."""
    key = bench.directory / "token.key"
    if not key.exists():
        key.write_bytes(base64.urlsafe_b64encode(os.urandom(32)) + b"\n")
        key.chmod(0o600)
    return key


def _caching(bench: Bench, name: str) -> AbstractContextManager[_Replicas]:
    """Mirrors of the upstream, without a bucket, all empty."""
    upstream = f'[[upstream]]\nname = "docker.io"\nurl = "{bench.origin.fast}"\n'
    return _running(bench, name, upstream, 1 if name == ONE_MIRROR else _REPLICAS)


@contextmanager
def _running(bench: Bench, name: str, more: str, count: int) -> Iterator[_Replicas]:
    ports = [free_port() for _ in range(count)]
    members = [f"http://127.0.0.1:{port}" for port in ports]
    secret = json.dumps(str(_key(bench)))
    with ExitStack() as stack:
        mirrors = []
        for number, (port, member) in enumerate(zip(ports, members, strict=True)):
            cluster = (
                f'[cluster]\nmembers = {json.dumps(members)}\naddress = "{member}"\nlisten = "127.0.0.1:{port}"\n'
                f"secret_file = {secret}\n"
            )
            directory = bench.directory / f"{name}-{number}"
            mirror = start_mirror(directory, more + (cluster if count > 1 else ""), name)
            stack.callback(shutil.rmtree, directory)
            stack.callback(mirror.stop)
            mirrors.append(mirror)
        yield _Replicas(mirrors, members)

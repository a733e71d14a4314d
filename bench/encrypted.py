"""What is measured over TLS: a cold blob from an HTTPS upstream, and a cold crowd, a warm blob and small requests of
clients that come over TLS as well.

Each system has the same certificate, and the same protocols and ciphers, as OpenSSL chooses them.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Final

from bench.check import check_image, pull_small
from bench.client import download, download_encrypted
from bench.load import get_rate, head_rate
from bench.measure import Bench, add_hash, settled_cpu, touch_for
from bench.origin import Origin
from bench.process import BenchFailed, cpu_seconds
from bench.systems import ENCRYPTED, Encryption, Running, nginx_tls, start_encrypted
from tests.support.certificates import Certificate

_MIB: Final = 1 << 20
_GIB: Final = 1 << 30
#: How often a warm blob is pulled for a figure, each time over a new connection.
_REPEAT: Final = 2


def measure_encrypted(bench: Bench) -> None:
    """Everything, before an upstream of its own: the same files over TLS. Raises `BenchFailed`."""
    systems = [name for name in bench.systems if name in ENCRYPTED]
    if not systems:
        raise BenchFailed(f"over TLS, only {', '.join(ENCRYPTED)} are measured")
    made = Certificate(bench.directory / "certificate")
    origin = Origin(
        bench.directory / "encrypted-origin",
        bench.origin.files,
        (bench.blob, bench.shared),
        bench.shared.size,
        scheme="https",
        listening="ssl",
        serving=nginx_tls(made.certificate, made.key),
    )
    try:
        _Encrypted(replace(bench, origin=origin, systems=systems), made).measure()
    finally:
        origin.stop()


class _Encrypted:
    """The measurements of one run, with their certificate."""

    def __init__(self, bench: Bench, certificate: Certificate) -> None:
        self._bench = bench
        self._certificate = certificate

    def __repr__(self) -> str:
        return f"<_Encrypted {', '.join(self._bench.systems)}>"

    def measure(self) -> None:
        self._bench.say("tls: cold")
        self._cold()
        self._bench.say("tls: 100 clients")
        self._crowd()
        with ExitStack() as stack:
            systems = {name: stack.enter_context(self._running(name)) for name in self._bench.systems}
            for system in systems.values():
                self._bench.say(f"tls: comparing bytes of {system.name}")
                check_image(system.port, self._bench.blob, tls=True)
                settled_cpu(self._bench, system)
                check_image(system.port, self._bench.blob, tls=True)
            self._bench.say("tls: warm")
            self._warm(systems)
            self._bench.say("tls: small")
            self._small(systems)

    @contextmanager
    def _running(self, name: str, *, to_clients: bool = True) -> Iterator[Running]:
        directory = self._bench.directory / name
        tls = Encryption(self._certificate.certificate, self._certificate.key, to_clients)
        system = start_encrypted(name, directory, self._bench.origin.fast, tls)
        try:
            yield system
        finally:
            system.stop()
            shutil.rmtree(directory)

    def _cold(self) -> None:
        bench, image = self._bench, self._bench.blob
        for _ in range(bench.scale.rounds):
            add_hash(bench, "tlscold.hash")
        for name in bench.turns():
            with self._running(name, to_clients=False) as system:
                pull_small(system.port, image)
                before, mark = settled_cpu(bench, system), bench.origin.mark()
                touch_for(image.size)
                done = download(system.port, image.layer_path, image.size, 1)
                bench.results.add("tlscold.rate", name, image.size / _MIB / done.seconds)
                bench.results.add("tlscold.cpu", name, (settled_cpu(bench, system) - before) / (image.size / _GIB))
                sent = bench.origin.sent(image.layer_path, mark)
                bench.results.add("tlscold.upstream", name, sent.size / image.size)

    def _crowd(self) -> None:
        bench, image = self._bench, self._bench.shared
        for name in bench.turns():
            with self._running(name) as system:
                pull_small(system.port, image, tls=True)
                before, mark = settled_cpu(bench, system), bench.origin.mark()
                touch_for(image.size)
                done = download_encrypted(system.port, image.layer_path, image.size, bench.scale.clients)
                bench.results.add("tlscrowd.seconds", name, done.seconds)
                bench.results.add("tlscrowd.cpu", name, settled_cpu(bench, system) - before)
                bench.results.add("tlscrowd.first", name, statistics.median(done.first) * 1000)
                bench.results.add("tlscrowd.worst", name, max(done.first) * 1000)
                sent = bench.origin.sent(image.layer_path, mark)
                bench.results.add("tlscrowd.upstream", name, sent.size / image.size)

    def _warm(self, systems: Mapping[str, Running]) -> None:
        bench, image = self._bench, self._bench.blob
        for key, connections, repeat in (("tlswarm1", 1, _REPEAT), ("tlswarm16", 16, 1)):
            for name in bench.turns():
                system = systems[name]
                before = cpu_seconds(system.pid)
                seconds = sum(
                    download_encrypted(system.port, image.layer_path, image.size, connections).seconds
                    for _ in range(repeat)
                )
                size = image.size * connections * repeat
                bench.results.add(f"{key}.rate", name, size / _MIB / seconds)
                bench.results.add(f"{key}.cpu", name, (settled_cpu(bench, system) - before) / (size / _GIB))

    def _small(self, systems: Mapping[str, Running]) -> None:
        bench, image = self._bench, self._bench.blob
        seconds, directory = bench.scale.load, bench.directory

        def by_tag(port: int) -> tuple[float, int]:
            return get_rate(port, image.manifest_path("latest"), seconds, directory, tls=True)

        def by_digest(port: int) -> tuple[float, int]:
            return get_rate(port, image.manifest_path(image.manifest), seconds, directory, tls=True)

        def head(port: int) -> tuple[float, int]:
            return head_rate(port, image.layer_path, image.size, seconds, tls=True)

        for key, measured in (("tlstag", by_tag), ("tlsdigest", by_digest), ("tlshead", head)):
            for name in bench.turns():
                before = cpu_seconds(systems[name].pid)
                rate, count = measured(systems[name].port)
                bench.results.add(f"{key}.rate", name, rate)
                bench.results.add(f"{key}.cpu", name, (settled_cpu(bench, systems[name]) - before) / count * 1e6)

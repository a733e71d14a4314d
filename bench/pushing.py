"""Pushes: a large blob, many at once, small images, mounts; and what receiving, hashing and writing cost alone."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.content import MANIFEST_TYPE
from bench.measure import Bench, settled_cpu, touch_for
from bench.process import BenchFailed
from bench.push_client import mount, push_blobs, push_images
from bench.systems import HOSTS, MIRROR, REGISTRY, Running

_ROOT: Final = Path(__file__).resolve().parent.parent
_MIB: Final = 1 << 20
_GIB: Final = 1 << 30
#: Pushes at once.
AT_ONCE: Final = 16
_SMALL: Final = 200
_LAYER: Final = 16 << 10
_PUSHERS: Final = (REGISTRY, MIRROR)


def measure_pushes(bench: Bench) -> None:
    """Every system takes its turn, empty; the floor is measured beside it."""
    folder = bench.directory / "pushed"
    folder.mkdir()
    large = random_file(folder / "large", bench.scale.blob)
    many = [random_file(folder / f"part-{number}", bench.scale.blob // AT_ONCE) for number in range(AT_ONCE)]
    systems = [name for name in _PUSHERS if name in bench.systems]
    for number in range(bench.scale.rounds):
        for name in systems[number % len(systems) :] + systems[: number % len(systems)]:
            with _hosting(bench, name) as system:
                _blobs(bench, system, "push1", [large])
                _blobs(bench, system, "push16", many)
                _images(bench, system, folder)
                _mounts(bench, system, folder, large[1])
        bench.results.add("push1.floor", MIRROR, _floor(bench.directory, [large]) / (bench.scale.blob / _GIB))
        bench.results.add("push16.floor", MIRROR, _floor(bench.directory, many) / (bench.scale.blob / _GIB))


@contextmanager
def _hosting(bench: Bench, name: str) -> Iterator[Running]:
    directory = bench.directory / f"hosting-{name}"
    system = HOSTS[name](directory)
    try:
        yield system
    finally:
        system.stop()
        shutil.rmtree(directory)


def _blobs(bench: Bench, system: Running, key: str, files: list[tuple[Path, str]]) -> None:
    size = sum(path.stat().st_size for path, _ in files)
    before = settled_cpu(bench, system)
    touch_for(size)
    done = push_blobs(system.port, "corp/bench/blobs", files)
    bench.results.add(f"{key}.rate", system.name, size / _MIB / done.seconds)
    bench.results.add(f"{key}.cpu", system.name, (settled_cpu(bench, system) - before) / (size / _GIB))


def _images(bench: Bench, system: Running, folder: Path) -> None:
    lines = folder / "images"
    # the system's first images are not counted: code is compiled, connections are made
    for count, measured in ((16, False), (_SMALL, True)):
        lines.write_text("\n".join(json.dumps(small_image(number)) for number in range(count)) + "\n")
        before = settled_cpu(bench, system)
        done = push_images(system.port, lines)
        if measured:
            bench.results.add("pushes.rate", system.name, count / done.seconds)
            bench.results.add("pushes.cpu", system.name, (settled_cpu(bench, system) - before) / count * 1000)


def _mounts(bench: Bench, system: Running, folder: Path, digest: str) -> None:
    lines = folder / "mounts"
    lines.write_text(
        "".join(
            f"/v2/corp/bench/mounted-{number}/blobs/uploads/?mount={digest}&from=corp/bench/blobs\n"
            for number in range(_SMALL)
        )
    )
    before = settled_cpu(bench, system)
    done = mount(system.port, lines)
    bench.results.add("mount.rate", system.name, _SMALL / done.seconds)
    bench.results.add("mount.cpu", system.name, (settled_cpu(bench, system) - before) / _SMALL * 1000)


def random_file(path: Path, size: int) -> tuple[Path, str]:
    """Writes a file of random bytes, and returns it with its digest."""
    hasher = hashlib.sha256()
    noise = os.urandom(_MIB)
    with path.open("wb") as file:
        for start in range(0, size, _MIB):
            chunk = (os.urandom(16) + noise[16:])[: size - start]
            hasher.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return path, f"sha256:{hasher.hexdigest()}"


def small_image(number: int) -> dict[str, str]:
    """An image that no other run has pushed: a config, one layer and the manifest, as text."""
    layer = os.urandom(_LAYER // 2).hex()
    config = json.dumps({"architecture": "amd64", "os": "linux", "name": os.urandom(16).hex()}).ljust(1024)
    blobs = {
        name: {"digest": "sha256:" + hashlib.sha256(text.encode()).hexdigest(), "size": len(text)}
        for name, text in (("config", config), ("layer", layer))
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **blobs["config"]},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", **blobs["layer"]}],
    }
    return {
        "repository": "corp/bench/small",
        "tag": f"v{number}-{os.urandom(8).hex()}",
        "config": config,
        "configDigest": str(blobs["config"]["digest"]),
        "layer": layer,
        "layerDigest": str(blobs["layer"]["digest"]),
        "manifest": json.dumps(manifest),
    }


# ----------------------------------------------------------------------------------------------------------- floor


def _floor(directory: Path, files: list[tuple[Path, str]]) -> float:
    """CPU seconds of a process that only receives the files, hashes them, writes them and syncs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.listen(AT_ONCE)
        argv = [sys.executable, "-m", "bench.pushing", str(listener.fileno()), str(len(files)), str(directory)]
        floor = subprocess.Popen(argv, cwd=_ROOT, stdout=subprocess.PIPE, pass_fds=[listener.fileno()], text=True)
        threads = [threading.Thread(target=_send, args=(listener.getsockname(), path)) for path, _ in files]
        for thread in threads:
            thread.start()
        said, _ = floor.communicate()
        for thread in threads:
            thread.join()
    if floor.returncode != 0:
        raise BenchFailed("the process that only receives has failed")
    answer = json.loads(said)
    if sorted(answer["digests"]) != sorted(digest for _, digest in files):
        raise BenchFailed("the process that only receives has got other bytes")
    return float(answer["cpu"])


def _send(address: tuple[str, int], path: Path) -> None:
    with socket.create_connection(address) as connection, path.open("rb") as file:
        connection.sendfile(file)


def _receive_only(listener: socket.socket, count: int, directory: Path) -> None:
    before = _own_cpu()
    digests: list[str] = []

    def receive(connection: socket.socket, path: Path) -> None:
        hasher, buffer = hashlib.sha256(), memoryview(bytearray(_MIB // 2))
        with connection, path.open("wb", buffering=0) as file:
            while received := connection.recv_into(buffer):
                hasher.update(buffer[:received])
                file.write(buffer[:received])
            os.fsync(file.fileno())
        digests.append(f"sha256:{hasher.hexdigest()}")
        path.unlink()

    threads = []
    for number in range(count):
        connection, _ = listener.accept()
        threads.append(threading.Thread(target=receive, args=(connection, directory / f"floor-{number}")))
        threads[-1].start()
    for thread in threads:
        thread.join()
    print(json.dumps({"cpu": _own_cpu() - before, "digests": digests}))


def _own_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    _receive_only(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), Path(sys.argv[3]))

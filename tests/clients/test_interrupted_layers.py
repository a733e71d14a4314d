"""Real clients, while upstream goes away in the middle of a layer and comes back (row 136).

The registry refuses connections from the moment in which half of a layer has come, until it has refused the mirror so
often that a mirror which counts its own circuit's refusals, too, would have given up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.clients.conftest import Library
from tests.support.containerd_process import PULLS, ContainerdProcess, write_hosts
from tests.support.dockerd_process import DockerdProcess
from tests.support.fake_registry import FakeRegistry, Fault, stall
from tests.support.images import Published, sha256
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.podman import Podman
from tests.support.process import PATIENCE, eventually
from tests.support.scripted import Stall
from tests.support.skopeo import Skopeo, compare_directory

#: Times that upstream refuses to go on, each after up to three dials. Four ended a fill when the circuit's counted.
_REFUSED: Final = 3

#: Pulls an image and looks at it.
Client = Callable[[Published], None]


@contextmanager
def _raw(directory: Path, mirror: MirrorProcess) -> Iterator[Client]:
    def pull(image: Published) -> None:
        assert mirror.get(f"/v2/{image.repository}/manifests/{image.tag}")[0] == 200
        for digest, size in image.native.blobs.items():
            status, headers, body = mirror.get(f"/v2/{image.repository}/blobs/{digest}")
            assert (status, headers["Content-Length"], sha256(body)) == (200, str(size), digest)

    yield pull


@contextmanager
def _skopeo(directory: Path, mirror: MirrorProcess) -> Iterator[Client]:
    def pull(image: Published) -> None:
        Skopeo(directory, mirror.address).copy(image.name, directory / "copy")
        compare_directory(directory / "copy", image, every_platform=True)

    yield pull


@contextmanager
def _podman(directory: Path, mirror: MirrorProcess) -> Iterator[Client]:
    podman = Podman(directory, mirror.address)

    def pull(image: Published) -> None:
        podman("pull", "--quiet", image.name)
        assert podman.inspect(image.name)["Id"] == image.native.config.digest.partition(":")[2]

    with closing(podman):
        yield pull


@contextmanager
def _containerd(directory: Path, mirror: MirrorProcess) -> Iterator[Client]:
    hosts = write_hosts(directory / "hosts", {"docker.io": f'[host."{mirror.url}"]{PULLS}'})
    with ContainerdProcess(directory / "c", hosts=hosts) as containerd:

        def pull(image: Published) -> None:
            options = ["--snapshotter", containerd.snapshotter, "--hosts-dir", str(hosts)]
            containerd.ctr("images", "pull", *options, image.name)
            containerd.compare(image, (image.native,))

        yield pull


@contextmanager
def _dockerd(directory: Path, mirror: MirrorProcess) -> Iterator[Client]:
    with DockerdProcess(directory / "d", mirror=mirror.url) as dockerd:

        def pull(image: Published) -> None:
            dockerd.pull(image.name)
            assert dockerd.inspect(image.name)["Id"] == image.native.config.digest

        yield pull


_CLIENTS: Final[dict[str, Callable[[Path, MirrorProcess], AbstractContextManager[Client]]]] = {
    "raw": _raw,
    "skopeo": _skopeo,
    "podman": _podman,
    "containerd": _containerd,
    "dockerd": _dockerd,
}


@pytest.fixture
def upstream(library: Library) -> Iterator[FakeRegistry]:
    """Has the images `oci` and `many`, and can go away."""
    with FakeRegistry() as registry:
        for name in ("oci", "many"):
            image = library.images[name]
            registry.add_manifest(image.repository, image.content, image.media_type, image.tag)
            for digest in image.native.blobs:
                added = registry.add_blob(image.repository, _blob_of(library.docker_root, digest))
                assert str(added) == digest
        yield registry


def _blob_of(root: Path, digest: str) -> bytes:
    encoded = digest.partition(":")[2]
    return (root / f"data/docker/registry/v2/blobs/sha256/{encoded[:2]}/{encoded}/data").read_bytes()


def _half_of(image: Published, digest: str, gate: Stall) -> Fault:
    """Of that blob half comes; what else is asked for comes whole."""
    half = stall(gate, after=image.native.blobs[digest] // 2)
    return lambda request, answer: half(request, answer) if digest in request.path else answer(request)


@pytest.mark.parametrize("name", ["oci", "many"])
@pytest.mark.parametrize("client", _CLIENTS)
def test_136_a_pull_outlives_an_outage(
    library: Library, upstream: FakeRegistry, directory: Path, client: str, name: str
) -> None:
    """The pull ends well, and each byte of the layer came from upstream once."""
    image = library.images[name]
    layer = max(image.native.layers, key=lambda one: one.size).digest
    gate = Stall()
    for _ in range(len(image.native.blobs)):
        upstream.fail("blobs", _half_of(image, layer, gate))
    config = write_config(directory, {"docker.io": upstream.url}, workers=2)
    with (
        MirrorProcess(config) as mirror,
        _CLIENTS[client](directory, mirror) as pull,
        ThreadPoolExecutor(1) as threads,
    ):
        pulling = threads.submit(pull, image)
        assert gate.reached.wait(PATIENCE)
        upstream.away()
        eventually(lambda: _refusals(mirror) >= _REFUSED, "upstream has refused to go on")
        upstream.back()
        pulling.result()
    starts = [request.start for request in upstream.of_kind("blobs", "GET") if layer in request.path]
    assert len(starts) == 2
    assert 0 < starts[1] <= image.native.blobs[layer] // 2


def _refusals(mirror: MirrorProcess) -> int:
    """How often upstream has not answered when it was asked to go on with any blob: if several wait for it, only one of
    them asks at a time.
    """
    interrupted = [entry["digest"] for entry in mirror.log if entry["event"] == "fill interrupted"]
    return len(interrupted) - len(set(interrupted))

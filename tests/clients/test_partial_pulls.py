"""podman pulls parts of zstd:chunked layers through the mirror: an update costs what has changed.

zstd:chunked names the files of a layer, and where each is, in a table at its end. podman reads the table by one range
(newer ones by two), then asks for the files that it lacks by up to 1,024 ranges in one request.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.images import Published, Pusher, sha256
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.mounts import overlay_works, unmount_below
from tests.support.process import run
from tests.support.pulls import OFFLINE
from tests.support.registry_process import RegistryProcess

#: More files than podman asks for at once; none of them compresses.
_FILES = 1_500
_EVERY = 75


class _Podman:
    """With partial pulls, which need the overlay driver."""

    def __init__(self, directory: Path, mirror: str) -> None:
        directory.mkdir()
        assert overlay_works(directory), "no overlay can be mounted here, and podman pulls parts into overlays alone"
        registries, storage = directory / "registries.conf", directory / "storage.conf"
        registries.write_text(
            f"""
            [[registry]]
            prefix = "docker.io"
            location = "docker.io"
            [[registry.mirror]]
            location = "{mirror}"
            insecure = true
            """
        )
        storage.write_text(
            f"""
            [storage]
            driver = "overlay"
            graphroot = "{directory}/root"
            runroot = "{directory}/run"
            [storage.options]
            pull_options = {{enable_partial_images = "true", use_hard_links = "false", ostree_repos = ""}}
            """
        )
        self._settings = {"CONTAINERS_REGISTRIES_CONF": str(registries), "CONTAINERS_STORAGE_CONF": str(storage)}
        self.directory = directory

    def __call__(self, *words: str) -> str:
        """Run one command and return what it says."""
        return run(["podman", "--events-backend=none", *words], env={**OFFLINE, **self._settings}).decode().strip()


@pytest.fixture
def registry(directory: Path) -> Iterator[RegistryProcess]:
    with RegistryProcess(directory / "registry") as running:
        yield running


@pytest.fixture
def mirror(directory: Path, registry: RegistryProcess) -> Iterator[MirrorProcess]:
    with MirrorProcess(write_config(directory, {"docker.io": registry.url})) as running:
        yield running


@pytest.fixture
def podman(directory: Path, mirror: MirrorProcess) -> Iterator[_Podman]:
    podman = _Podman(directory / "podman", mirror.address)
    yield podman
    unmount_below(podman.directory)


def _publish(registry: RegistryProcess, tag: str, files: dict[str, bytes]) -> Published:
    """As library/chunked, by skopeo's compression."""
    with Pusher(registry.url, "library/plain") as pusher:
        plain = pusher.tag("docker.io", tag, pusher.image([files]))
    options = ["--src-tls-verify=false", "--dest-tls-verify=false", "--format=oci"]
    options += ["--dest-compress-format=zstd:chunked"]
    names = [f"docker://{registry.address}/library/{name}:{tag}" for name in ("plain", "chunked")]
    run(["skopeo", "--insecure-policy", "copy", *options, *names], env=OFFLINE)
    return plain


def _compare(podman: _Podman, image: str, published: Published) -> None:
    mounted = Path(podman("image", "mount", image))
    try:
        found = {path: sha256((mounted / path).read_bytes()) for path in published.native.files}
    finally:
        podman("image", "unmount", image)
    assert found == dict(published.native.files)


def test_an_update_costs_what_has_changed(registry: RegistryProcess, mirror: MirrorProcess, podman: _Podman) -> None:
    """Every file of both images is right, no layer is sent whole, and the second image costs its table and the files
    that are new. Upstream sends each layer once.
    """
    noise = random.Random("chunked")
    files = {f"srv/{number // 50}/{number}": noise.randbytes(3_000 + number) for number in range(_FILES)}
    changed = {path: noise.randbytes(len(content)) for path, content in list(files.items())[::_EVERY]}
    images = {"1": _publish(registry, "1", files), "2": _publish(registry, "2", {**files, **changed})}
    before = len(registry.requests())
    sent: dict[str, int] = {}
    for tag, published in images.items():
        known = len(mirror.requests(path="library/chunked/blobs"))
        podman("pull", "--quiet", f"docker.io/library/chunked:{tag}")
        _compare(podman, f"docker.io/library/chunked:{tag}", published)
        parts = [line for line in mirror.requests(path="library/chunked/blobs")[known:] if line["status"] == 206]
        assert parts, "podman asked for no parts"
        # one range has no parts of its own
        assert any(line.get("parts", 1) > 1 for line in parts)
        assert not [line for line in parts if "error" in line]
        sent[tag] = sum(line["bytes"] for line in parts)
    whole = sum(len(content) for content in files.values())
    assert sent["1"] > whole, "the first has everything to fetch"
    assert sent["2"] < whole / 10
    # a layer is the only blob that has parts
    layers = {line["path"] for line in mirror.requests(path="library/chunked/blobs") if "parts" in line}
    asked = [request.path for request in registry.blob_gets(since=before) if request.path in layers]
    assert sorted(asked) == sorted(layers)
    assert not [line for line in mirror.requests() if line["path"] in layers and line["status"] != 206]

"""podman pulls parts of zstd:chunked layers through the mirror: an update costs what has changed.

zstd:chunked names the files of a layer, and where each is, in a table at its end. podman reads the table by one range
(newer ones by two), then asks for the files that it lacks by up to 1,024 ranges in one request.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.images import Published, Pusher, sha256
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.podman import Podman
from tests.support.process import run
from tests.support.pulls import OFFLINE
from tests.support.registry_process import RegistryProcess

#: More files than podman asks for at once; none of them compresses.
_FILES = 1_500
_EVERY = 75


@pytest.fixture
def registry(directory: Path) -> Iterator[RegistryProcess]:
    with RegistryProcess(directory / "registry") as running:
        yield running


@pytest.fixture
def mirror(directory: Path, registry: RegistryProcess) -> Iterator[MirrorProcess]:
    with MirrorProcess(write_config(directory, {"docker.io": registry.url})) as running:
        yield running


@pytest.fixture
def lazy_mirror(directory: Path, registry: RegistryProcess) -> Iterator[MirrorProcess]:
    config = write_config(directory, {"docker.io": registry.url})
    config.write_text(config.read_text().replace("[[route]]", '[[route]]\nranges = "lazy"'))
    with MirrorProcess(config) as running:
        yield running


@pytest.fixture
def podman(directory: Path, mirror: MirrorProcess) -> Iterator[Podman]:
    with closing(Podman(directory / "podman", mirror.address, partial=True)) as podman:
        yield podman


def _publish(registry: RegistryProcess, tag: str, files: dict[str, bytes]) -> Published:
    """As library/chunked, by skopeo's compression."""
    with Pusher(registry.url, "library/plain") as pusher:
        plain = pusher.tag("docker.io", tag, pusher.image([files]))
    options = ["--src-tls-verify=false", "--dest-tls-verify=false", "--format=oci"]
    options += ["--dest-compress-format=zstd:chunked"]
    names = [f"docker://{registry.address}/library/{name}:{tag}" for name in ("plain", "chunked")]
    run(["skopeo", "--insecure-policy", "copy", *options, *names], env=OFFLINE)
    return plain


def _compare(podman: Podman, image: str, published: Published) -> None:
    files = published.native.files
    with podman.mounted(image) as root:
        assert not [path for path in files if not (root / path).is_file()]
        assert {path: sha256((root / path).read_bytes()) for path in files} == dict(files)


def test_an_update_costs_what_has_changed(registry: RegistryProcess, mirror: MirrorProcess, podman: Podman) -> None:
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


def test_an_update_from_a_cold_layer(directory: Path, registry: RegistryProcess, lazy_mirror: MirrorProcess) -> None:
    """On a lazy route, what podman reads of a layer that is not here comes before the whole; every file is right."""
    noise = random.Random("lazy")
    files = {f"srv/{number // 50}/{number}": noise.randbytes(3_000 + number) for number in range(_FILES)}
    changed = {path: noise.randbytes(len(content)) for path, content in list(files.items())[: _FILES // _EVERY]}
    images = {"1": _publish(registry, "1", files), "2": _publish(registry, "2", {**files, **changed})}
    with closing(Podman(directory / "podman", lazy_mirror.address, partial=True)) as podman:
        for tag, published in images.items():
            podman("pull", "--quiet", f"docker.io/library/chunked:{tag}")
            _compare(podman, f"docker.io/library/chunked:{tag}", published)
    parts = [line for line in lazy_mirror.requests(path="library/chunked/blobs") if line["status"] == 206]
    assert [line for line in parts if line.get("unverified")]
    assert not [line for line in parts if "error" in line]

"""dockerd pulls images of Docker Hub through the mirror (`registry-mirrors`), the only registry it uses mirrors for."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.clients.conftest import Site
from tests.support.dockerd_process import DockerdProcess, PullFailed
from tests.support.images import Image, Published
from tests.support.pulls import ALL, expect_each_once, wanted_blobs


@pytest.fixture(scope="module")
def dockerd(site: Site) -> Iterator[DockerdProcess]:
    with DockerdProcess(site.directory / "d", mirror=site.mirror.url) as process:
        yield process


def _familiar(image: Published) -> str:
    """As `docker images` shows it: without `docker.io/` and `library/`."""
    return f"{image.repository.removeprefix('library/')}:{image.tag}"


def _sha256(file: IO[bytes]) -> str:
    whole = hashlib.sha256()
    while chunk := file.read(1 << 20):
        whole.update(chunk)
    return "sha256:" + whole.hexdigest()


def _compare(dockerd: DockerdProcess, image: Published, pulled: Image, scratch: Path) -> None:
    """Id, digest and layers as pushed, and every file as `docker save` gives it back."""
    known = dockerd.inspect(image.name)
    assert known["Id"] == pulled.config.digest
    assert f"{_familiar(image).partition(':')[0]}@{image.digest}" in known["RepoDigests"]
    assert tuple(known["RootFS"]["Layers"]) == pulled.diff_ids

    saved, files = scratch / "saved.tar", {}
    dockerd.save(image.name, saved)
    with tarfile.open(saved) as outer:
        manifest = outer.extractfile("manifest.json")
        assert manifest is not None
        listed = json.load(manifest)[0]
        for diff_id, name in zip(pulled.diff_ids, listed["Layers"], strict=True):
            layer = outer.extractfile(name)
            assert layer is not None
            assert _sha256(layer) == diff_id
            layer.seek(0)
            with tarfile.open(fileobj=layer) as inner:
                for entry in inner:
                    content = inner.extractfile(entry)
                    if content is not None:
                        files[entry.name] = _sha256(content)
    assert files == dict(pulled.files)


def _forget(dockerd: DockerdProcess, image: Published) -> None:
    dockerd.remove(image.name)
    assert _familiar(image) not in dockerd.names()


@pytest.mark.parametrize("name", ALL)
def test_pulls_cold_and_warm(site: Site, dockerd: DockerdProcess, tmp_path: Path, name: str) -> None:
    """A pulled image is what was pushed; pulled again after its removal, upstream is asked for no blob."""
    image = site.images[name]
    before = site.mark(image)
    dockerd.pull(image.name)
    _compare(dockerd, image, image.native, tmp_path)
    expect_each_once(site.fetched(image, before), wanted_blobs(image))

    _forget(dockerd, image)
    before = site.mark(image)
    dockerd.pull(image.name)
    _compare(dockerd, image, image.native, tmp_path)
    assert not site.fetched(image, before)
    _forget(dockerd, image)


def test_pulls_a_name_of_one_part(site: Site, dockerd: DockerdProcess, tmp_path: Path) -> None:
    """`docker pull of-oci:v1` means `library/of-oci` of docker.io."""
    image = site.images["oci"]
    dockerd.pull(_familiar(image))
    _compare(dockerd, image, image.native, tmp_path)
    _forget(dockerd, image)


@pytest.mark.parametrize("platform", ["linux/amd64", "linux/arm64"])
def test_pulls_a_platform_by_name(site: Site, dockerd: DockerdProcess, tmp_path: Path, platform: str) -> None:
    """`--platform` follows the index to the image asked for."""
    image = site.images["index"]
    dockerd.pull(image.name, platform=platform)
    _compare(dockerd, image, next(one for one in image.images if one.platform == platform), tmp_path)
    _forget(dockerd, image)


def test_pulls_while_upstream_is_stopped(site: Site, dockerd: DockerdProcess, tmp_path: Path) -> None:
    """An image that was pulled once can be pulled while upstream is down."""
    image = site.images["many"]
    dockerd.pull(image.name)
    _forget(dockerd, image)
    with site.docker.stopped():
        dockerd.pull(image.name)
    _compare(dockerd, image, image.native, tmp_path)


def test_an_unknown_image_is_not_found(site: Site, dockerd: DockerdProcess) -> None:
    """An image that Docker Hub does not have fails the pull, and the mirror goes on."""
    with pytest.raises(PullFailed):
        dockerd.pull("docker.io/library/never-was:v1")
    assert site.mirror.running

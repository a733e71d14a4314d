"""podman pulls images through the mirror into a storage of its own, where they are mounted and looked at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import Site
from tests.support.images import Image, sha256
from tests.support.mounts import overlay_works, unmount_below
from tests.support.process import run
from tests.support.pulls import ALL, OFFLINE, expect_each_once, wanted_blobs


@dataclass(frozen=True, slots=True)
class Podman:
    """podman with a storage and settings of its own."""

    directory: Path
    driver: str

    def __call__(self, *words: str) -> bytes:
        """Run one command and return what it says."""
        places = [f"--root={self.directory}/root", f"--runroot={self.directory}/run"]
        return run(
            ["podman", *places, f"--storage-driver={self.driver}", "--events-backend=none", *words],
            env={**OFFLINE, "CONTAINERS_REGISTRIES_CONF": str(self.directory / "registries.conf")},
        )

    def inspect(self, name: str) -> dict[str, Any]:
        """What it knows about an image."""
        found: dict[str, Any] = json.loads(self("image", "inspect", name))[0]
        return found


@pytest.fixture(scope="module")
def podman(site: Site) -> Iterator[Podman]:
    """docker.io by a mirror entry, ghcr.io by a location that is the mirror's."""
    directory = site.directory / "podman"
    directory.mkdir()
    (directory / "registries.conf").write_text(
        f"""
        [[registry]]
        prefix = "docker.io"
        location = "docker.io"
        [[registry.mirror]]
        location = "{site.mirror.address}"
        insecure = true
        [[registry]]
        prefix = "ghcr.io"
        location = "{site.mirror.address}/ghcr.io"
        insecure = true
        """
    )
    yield Podman(directory, "overlay" if overlay_works(directory) else "vfs")
    unmount_below(directory)


def _compare(podman: Podman, name: str, image: Image) -> None:
    """Digest, config and layers as pushed, and every file as a container would see it."""
    known = podman.inspect(name)
    # the name may be an index's: podman then knows the image by both digests
    assert image.digest in {known["Digest"], *(said.partition("@")[2] for said in known["RepoDigests"])}
    assert known["Id"] == image.config.digest.partition(":")[2]
    assert tuple(known["RootFS"]["Layers"]) == image.diff_ids
    mounted = Path(podman("image", "mount", name).decode().strip())
    try:
        found = {path: sha256((mounted / path).read_bytes()) for path in image.files}
    finally:
        podman("image", "unmount", name)
    assert found == dict(image.files)


def _forget(podman: Podman, name: str) -> None:
    podman("image", "rm", "--force", name)
    assert not podman("images", "--quiet", "--all", "--filter", f"reference={name}").strip()


@pytest.mark.parametrize("name", ALL)
def test_pulls_cold_and_warm(site: Site, podman: Podman, name: str) -> None:
    """A pulled image is what was pushed; pulled again after its removal, upstream is asked for no blob."""
    image = site.images[name]
    before = site.mark(image)
    podman("pull", "--quiet", image.name)
    _compare(podman, image.name, image.native)
    expect_each_once(site.fetched(image, before), wanted_blobs(image))

    _forget(podman, image.name)
    before = site.mark(image)
    podman("pull", "--quiet", image.name)
    _compare(podman, image.name, image.native)
    assert not site.fetched(image, before)


def test_a_pulled_image_runs(site: Site, podman: Podman) -> None:
    """ENTRYPOINT and CMD arrive, and the program in the layer runs."""
    image = site.images["oci"]
    podman("pull", "--quiet", image.name)
    config = podman.inspect(image.name)["Config"]
    root = podman("image", "mount", image.name).decode().strip()
    try:
        # no container: a network and control groups would be this machine's matter, not the mirror's
        said = run(["chroot", root, *config["Entrypoint"], *config["Cmd"]])
    finally:
        podman("image", "unmount", image.name)
    assert said.decode() == f"this is {image.repository}\n"


@pytest.mark.parametrize("platform", ["linux/amd64", "linux/arm64"])
def test_pulls_a_platform_by_name(site: Site, podman: Podman, platform: str) -> None:
    """`--platform` follows the index to the image asked for."""
    image = site.images["list"]
    wanted = next(one for one in image.images if one.platform == platform)
    pulled = podman("pull", "--quiet", "--platform", platform, image.name).decode().strip()
    _compare(podman, pulled, wanted)


def test_pulls_from_another_registry_by_path_prefix(site: Site, podman: Podman) -> None:
    """`/v2/ghcr.io/owner/…` reaches ghcr.io, and docker.io is not asked."""
    image = site.foreign["podman"]
    before, elsewhere = site.mark(image), len(site.docker.requests())
    podman("pull", "--quiet", image.name)
    _compare(podman, image.name, image.native)
    expect_each_once(site.fetched(image, before), wanted_blobs(image))
    assert len(site.docker.requests()) == elsewhere


def test_pulls_while_upstream_is_stopped(site: Site, podman: Podman) -> None:
    """What was pulled once is there when upstream is not."""
    image = site.images["many"]
    podman("pull", "--quiet", image.name)
    _forget(podman, image.name)
    with site.docker.stopped():
        podman("pull", "--quiet", image.name)
    _compare(podman, image.name, image.native)

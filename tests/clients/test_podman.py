"""podman pulls images through the mirror into a storage of its own, where they are mounted and looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.clients.conftest import Site
from tests.support.images import Image, sha256
from tests.support.podman import Podman
from tests.support.process import run
from tests.support.pulls import ALL, expect_each_once, wanted_blobs


@pytest.fixture(scope="module")
def podman(site: Site) -> Iterator[Podman]:
    """docker.io by a mirror entry, ghcr.io by a location that is the mirror's."""
    with closing(Podman(site.directory / "podman", site.mirror.address, moved=["ghcr.io"])) as podman:
        yield podman


def _compare(podman: Podman, name: str, image: Image) -> None:
    """Digest, config and layers as pushed, and every file as a container would see it."""
    known = podman.inspect(name)
    # the name may be an index's: podman then knows the image by both digests
    assert image.digest in {known["Digest"], *(said.partition("@")[2] for said in known["RepoDigests"])}
    assert known["Id"] == image.config.digest.partition(":")[2]
    assert tuple(known["RootFS"]["Layers"]) == image.diff_ids
    with podman.mounted(name) as root:
        assert {path: sha256((root / path).read_bytes()) for path in image.files} == dict(image.files)


def _forget(podman: Podman, name: str) -> None:
    podman("image", "rm", "--force", name)
    assert not podman("images", "--quiet", "--all", "--filter", f"reference={name}")


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
    with podman.mounted(image.name) as root:
        # no container: a network and control groups would be this machine's matter, not the mirror's
        output = run(["chroot", root, *config["Entrypoint"], *config["Cmd"]])
    assert output.decode() == f"this is {image.repository}\n"


@pytest.mark.parametrize("platform", ["linux/amd64", "linux/arm64"])
def test_pulls_a_platform_by_name(site: Site, podman: Podman, platform: str) -> None:
    """`--platform` follows the index to the image asked for."""
    image = site.images["list"]
    wanted = next(one for one in image.images if one.platform == platform)
    pulled = podman("pull", "--quiet", "--platform", platform, image.name)
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
    """An image that was pulled once can be pulled while upstream is down."""
    image = site.images["many"]
    podman("pull", "--quiet", image.name)
    _forget(podman, image.name)
    with site.docker.stopped():
        podman("pull", "--quiet", image.name)
    _compare(podman, image.name, image.native)

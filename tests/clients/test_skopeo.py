"""skopeo copies images through the mirror into a directory, where every byte can be looked at."""

from __future__ import annotations

import pytest

from tests.clients.conftest import Site
from tests.support.pulls import ALL, expect_each_once, wanted_blobs
from tests.support.skopeo import Skopeo, compare_directory


@pytest.fixture(scope="module")
def skopeo(site: Site) -> Skopeo:
    return Skopeo(site.directory, site.mirror.address)


@pytest.mark.parametrize("name", ALL)
def test_copies_every_platform_cold_and_warm(site: Site, skopeo: Skopeo, name: str) -> None:
    """A copy of all platforms is byte for byte what was pushed; the second one asks upstream for no blob."""
    image, target = site.images[name], site.directory / name
    before = site.mark(image)
    skopeo.copy(image.name, target, "--all")
    compare_directory(target, image, every_platform=True)
    expect_each_once(site.fetched(image, before), wanted_blobs(image, every_platform=True))

    before = site.mark(image)
    skopeo.copy(image.name, target, "--all")
    compare_directory(target, image, every_platform=True)
    assert not site.fetched(image, before)


@pytest.mark.parametrize("name", ["index", "list"])
def test_copies_the_platform_of_this_machine(site: Site, skopeo: Skopeo, name: str) -> None:
    """Without `--all` skopeo follows the index to the one image that fits."""
    image, target = site.images[name], site.directory / f"{name}-native"
    skopeo.copy(image.name, target)
    compare_directory(target, image, every_platform=False)


def test_copies_by_digest(site: Site, skopeo: Skopeo) -> None:
    """An image is found by its digest alone, without its tag."""
    image, target = site.images["oci"], site.directory / "digest"
    skopeo.copy(f"{image.registry}/{image.repository}@{image.digest}", target)
    compare_directory(target, image, every_platform=True)


def test_copies_from_another_registry_by_path_prefix(site: Site, skopeo: Skopeo) -> None:
    """`/v2/ghcr.io/owner/…` reaches ghcr.io, and docker.io is not asked."""
    image, target = site.foreign["skopeo"], site.directory / "foreign"
    before, elsewhere = site.mark(image), len(site.docker.requests())
    skopeo.copy(image.name, target)
    compare_directory(target, image, every_platform=True)
    expect_each_once(site.fetched(image, before), wanted_blobs(image))
    assert len(site.docker.requests()) == elsewhere


def test_copies_while_upstream_is_stopped(site: Site, skopeo: Skopeo) -> None:
    """An image that was pulled once can be pulled while upstream is down."""
    image, target = site.images["index"], site.directory / "stopped"
    skopeo.copy(image.name, target, "--all")
    with site.docker.stopped():
        skopeo.copy(image.name, target, "--all")
    compare_directory(target, image, every_platform=True)


def test_an_unknown_image_is_an_error(site: Site, skopeo: Skopeo) -> None:
    """An image that upstream does not have is answered as unknown, not as a failure of the mirror."""
    status, _, body = site.mirror.get("/v2/library/never-was/manifests/v1")
    assert (status, b"UNKNOWN" in body) == (404, True), body
    with pytest.raises(AssertionError, match=r"manifest unknown|name unknown|repository name not known"):
        skopeo.copy("docker.io/library/never-was:v1", site.directory / "never")

"""containerd pulls through the mirror, asked by `ctr`, which reads `hosts.toml` files itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.conftest import Site
from tests.support.containerd_process import PULLS, ContainerdProcess, write_hosts
from tests.support.images import Published
from tests.support.pulls import ALL, expect_each_once, wanted_blobs


def _pull(containerd: ContainerdProcess, image: Published, *options: str, hosts: Path | None = None) -> None:
    place = str(hosts or containerd.hosts)
    containerd.ctr(
        "images", "pull", "--snapshotter", containerd.snapshotter, "--hosts-dir", place, *options, image.name
    )


def _forget(containerd: ContainerdProcess, image: Published) -> None:
    """With `--sync` the garbage is collected before the command returns, so nothing can be used again."""
    containerd.ctr("images", "rm", "--sync", image.name)
    content = containerd.content()
    assert not [digest for digest in (image.digest, *image.blobs) if digest in content]


@pytest.mark.parametrize("name", ALL)
def test_ctr_pulls_cold_and_warm(site: Site, containerd: ContainerdProcess, name: str) -> None:
    """A pulled image is what was pushed; pulled again after its removal, upstream is asked for no blob."""
    image = site.images[name]
    before = site.mark(image)
    _pull(containerd, image)
    containerd.compare(image, (image.native,))
    expect_each_once(site.fetched(image, before), wanted_blobs(image))

    _forget(containerd, image)
    before = site.mark(image)
    _pull(containerd, image)
    containerd.compare(image, (image.native,))
    assert not site.fetched(image, before)
    _forget(containerd, image)


@pytest.mark.parametrize("name", ["index", "list"])
def test_ctr_pulls_every_platform(site: Site, containerd: ContainerdProcess, name: str) -> None:
    """`--all-platforms` brings every image that the index names."""
    image = site.images[name]
    _pull(containerd, image, "--all-platforms")
    containerd.compare(image, image.images)
    _forget(containerd, image)


def test_ctr_pulls_from_another_registry_by_namespace(site: Site, containerd: ContainerdProcess) -> None:
    """`?ns=ghcr.io` reaches ghcr.io, and docker.io is not asked."""
    image = site.foreign["ctr"]
    before, elsewhere = site.mark(image), len(site.docker.requests())
    _pull(containerd, image)
    containerd.compare(image, image.images)
    expect_each_once(site.fetched(image, before), wanted_blobs(image))
    assert len(site.docker.requests()) == elsewhere


def test_ctr_pulls_by_one_default_for_every_registry(site: Site, containerd: ContainerdProcess, tmp_path: Path) -> None:
    """A single `_default/hosts.toml` sends every registry's images through the mirror."""
    hosts = write_hosts(tmp_path / "default", {"_default": f'[host."{site.mirror.url}"]{PULLS}'})
    image = site.foreign["default"]
    _pull(containerd, image, hosts=hosts)
    containerd.compare(image, image.images)


def test_ctr_pulls_by_path_prefix_with_the_namespace_beside_it(
    site: Site, containerd: ContainerdProcess, tmp_path: Path
) -> None:
    """With `override_path` both the path and `?ns=` name the registry; they mean the same."""
    section = f'[host."{site.mirror.url}/v2/ghcr.io"]{PULLS}  override_path = true\n'
    hosts = write_hosts(tmp_path / "prefix", {"ghcr.io": section})
    image = site.foreign["prefix"]
    before = site.mark(image)
    _pull(containerd, image, hosts=hosts)
    containerd.compare(image, image.images)
    expect_each_once(site.fetched(image, before), wanted_blobs(image))


def test_ctr_pulls_while_upstream_is_stopped(site: Site, containerd: ContainerdProcess) -> None:
    """An image that was pulled once can be pulled while upstream is down."""
    image = site.images["many"]
    _pull(containerd, image)
    _forget(containerd, image)
    with site.docker.stopped():
        _pull(containerd, image)
    containerd.compare(image, image.images)
    _forget(containerd, image)

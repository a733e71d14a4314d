"""containerd pulls through the mirror as Kubernetes makes it: over the container runtime interface (CRI)."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from tests.clients.conftest import Site
from tests.support.containerd_process import CRI_NAMESPACE, ContainerdProcess, Cri
from tests.support.images import Published
from tests.support.pulls import ALL, expect_each_once, wanted_blobs


@pytest.fixture(scope="module")
def cri(containerd: ContainerdProcess) -> Iterator[Cri]:
    client = Cri(containerd.socket)
    yield client
    client.close()


def _pull(containerd: ContainerdProcess, cri: Cri, image: Published) -> None:
    """Pull, and compare the answer that the kubelet would get, and the content on disk, with the pushed image."""
    assert cri.pull(image.name) == image.native.config.digest
    known = cri.status(image.name)
    assert known is not None
    assert known.id == image.native.config.digest
    assert image.name in known.repo_tags
    assert f"{image.registry}/{image.repository}@{image.digest}" in known.repo_digests
    containerd.compare(image, (image.native,), CRI_NAMESPACE)


def _forget(containerd: ContainerdProcess, cri: Cri, image: Published) -> None:
    """The garbage is collected before the call returns, so nothing can be used again."""
    cri.remove(image.name)
    assert cri.status(image.name) is None
    content = containerd.content(CRI_NAMESPACE)
    assert not [digest for digest in (image.digest, *image.blobs) if digest in content]


@pytest.mark.parametrize("name", ALL)
def test_pulls_cold_and_warm(site: Site, containerd: ContainerdProcess, cri: Cri, name: str) -> None:
    """A pulled image is what was pushed; pulled again after its removal, upstream is asked for no blob."""
    image = site.images[name]
    before = site.mark(image)
    _pull(containerd, cri, image)
    expect_each_once(site.fetched(image, before), wanted_blobs(image))

    _forget(containerd, cri, image)
    before = site.mark(image)
    _pull(containerd, cri, image)
    assert not site.fetched(image, before)
    _forget(containerd, cri, image)


def test_pulls_from_another_registry_by_namespace(site: Site, containerd: ContainerdProcess, cri: Cri) -> None:
    """`?ns=ghcr.io` reaches ghcr.io, and docker.io is not asked."""
    image = site.foreign["cri"]
    before, elsewhere = site.mark(image), len(site.docker.requests())
    _pull(containerd, cri, image)
    expect_each_once(site.fetched(image, before), wanted_blobs(image))
    assert len(site.docker.requests()) == elsewhere


def test_pulls_while_upstream_is_stopped(site: Site, containerd: ContainerdProcess, cri: Cri) -> None:
    """An image that was pulled once can be pulled while upstream is down."""
    image = site.images["index"]
    _pull(containerd, cri, image)
    _forget(containerd, cri, image)
    with site.docker.stopped():
        _pull(containerd, cri, image)


def test_an_unknown_image_is_not_found(site: Site, containerd: ContainerdProcess, cri: Cri) -> None:
    """An image that no registry has fails the pull and leaves nothing."""
    with pytest.raises(grpc.RpcError):
        cri.pull("docker.io/library/never-was:v1")
    assert cri.status("docker.io/library/never-was:v1") is None
    assert site.mirror.running

"""dockerd and containerd push what they have built or pulled to a registry that the mirror hosts, and pull it again."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.clients.conftest import HostingSite
from tests.support.containerd_process import CRI_NAMESPACE, PULLS, ContainerdProcess, Cri, write_hosts
from tests.support.dockerd_process import DockerdProcess, PullFailed
from tests.support.images import Published, sha256

#: What requests without the bytes of a base image take at most, heads and small blobs together.
_SMALL = 200_000


@pytest.fixture(scope="module")
def dockerd(hosting: HostingSite) -> Iterator[DockerdProcess]:
    with DockerdProcess(hosting.directory / "d", mirror=hosting.mirror.url) as process:
        yield process


@pytest.fixture(scope="module")
def containerd(hosting: HostingSite) -> Iterator[ContainerdProcess]:
    """It reaches the mirror for docker.io, and as a registry of its own, to which it may push."""
    hosts = write_hosts(
        hosting.directory / "hosts",
        {
            "docker.io": f'[host."{hosting.mirror.url}"]{PULLS}',
            hosting.address: f'[host."{hosting.proxy.url}"]\n  capabilities = ["pull", "resolve", "push"]\n',
        },
    )
    with ContainerdProcess(hosting.directory / "c", hosts=hosts) as process:
        yield process


@pytest.fixture(scope="module")
def cri(containerd: ContainerdProcess) -> Iterator[Cri]:
    client = Cri(containerd.socket)
    yield client
    client.close()


def _noise(seed: str, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def _build(dockerd: DockerdProcess, name: str, base: str, own: bytes) -> None:
    dockerd.build(name, f"FROM {base}\nCOPY own /srv/own\n", {"own": own})


def _base_size(image: Published) -> int:
    return sum(layer.size for layer in image.native.layers)


def test_docker_builds_and_pushes(hosting: HostingSite, dockerd: DockerdProcess) -> None:
    """An image built on one that the mirror has: its own layer and its config are sent, and no byte of the base."""
    image = hosting.images["oci"]
    assert _base_size(image) > 2 * _SMALL
    name = f"{hosting.address}/corp/docker/app:v1"
    _build(dockerd, name, hosting.own_name(image), _noise("docker", 20_000))
    before = hosting.proxy.sent
    dockerd.push(name)
    assert hosting.proxy.sent - before < _SMALL
    assert hosting.uploads("docker/app") == 2
    pushed = hosting.read("docker/app", "v1")
    assert {layer.digest for layer in image.native.layers} < pushed.blobs.keys()

    # what was pushed before is not sent again
    dockerd.push(name)
    assert hosting.uploads("docker/app") == 2

    # and comes back as it was
    known = dockerd.inspect(name)
    dockerd.remove(name)
    dockerd.pull(name)
    assert dockerd.inspect(name)["Id"] == known["Id"] == pushed.manifest["config"]["digest"]


def test_docker_pushes_what_it_pulled_as_docker_io(hosting: HostingSite, dockerd: DockerdProcess) -> None:
    """dockerd asks for a large layer before it sends it, wherever it was pulled from; the mirror has it."""
    image = hosting.images["big"]
    dockerd.pull(image.name)
    name = f"{hosting.address}/corp/docker/big:v1"
    dockerd.tag(image.name, name)
    before = hosting.proxy.sent
    dockerd.push(name)
    assert hosting.proxy.sent - before < _SMALL
    assert hosting.read("docker/big", "v1").blobs == image.native.blobs


def test_docker_goes_on_after_a_broken_push(hosting: HostingSite, dockerd: DockerdProcess) -> None:
    """A connection breaks in the middle of a layer: dockerd sends that layer again, and no other one."""
    name = f"{hosting.address}/corp/docker/broken:v1"
    layers = {f"layer-{number}": _noise(f"broken {number}", 600_000) for number in range(4)}
    dockerfile = "FROM scratch\n" + "".join(f"COPY {one} /srv/\n" for one in layers)
    dockerd.build(name, dockerfile, layers)
    before = hosting.proxy.sent
    hosting.proxy.break_after(1_600_000, once=True)
    dockerd.push(name)
    # four layers, and at most one of them twice
    assert 4 * 600_000 < hosting.proxy.sent - before < 5 * 600_000 + _SMALL
    assert hosting.uploads("docker/broken") == len(layers) + 1
    assert len(hosting.read("docker/broken", "v1").blobs) == len(layers) + 1


def test_docker_pulls_after_a_tag_moved_and_after_it_is_gone(hosting: HostingSite, dockerd: DockerdProcess) -> None:
    """The next pull gets the new image; after the deletion of the tag it gets none."""
    name = f"{hosting.address}/corp/docker/moving:v1"
    ids = []
    for number in range(2):
        dockerd.build(name, "FROM scratch\nCOPY own /own\n", {"own": b"%d" % number})
        dockerd.push(name)
        ids.append(dockerd.inspect(name)["Id"])
        dockerd.remove(name)
        dockerd.pull(name)
        assert dockerd.inspect(name)["Id"] == ids[-1]
        dockerd.remove(name)
    assert len(set(ids)) == 2
    assert hosting.mirror.get("/v2/corp/docker/moving/manifests/v1", method="DELETE")[0] == 202
    with pytest.raises(PullFailed, match=r"not found|unknown"):
        dockerd.pull(name)


@pytest.mark.parametrize("kind", ["oci", "index"])
def test_containerd_pushes(hosting: HostingSite, containerd: ContainerdProcess, cri: Cri, kind: str) -> None:
    """`ctr images push` of what was pulled as docker.io sends no layer; Kubernetes' interface pulls what was pushed."""
    image = hosting.images[kind]
    name = f"{hosting.address}/corp/containerd/{kind}:v1"
    hosts = ("--hosts-dir", str(containerd.hosts))
    containerd.ctr("images", "pull", *hosts, "--all-platforms", "--snapshotter", containerd.snapshotter, image.name)
    containerd.ctr("images", "push", *hosts, name, image.name)
    assert hosting.uploads(f"containerd/{kind}") == 0
    pushed = hosting.read(f"containerd/{kind}", "v1")
    assert (pushed.content, pushed.blobs) == (image.content, image.blobs)

    containerd.ctr("images", "rm", "--sync", image.name)
    assert cri.pull(name) == image.native.config.digest
    known = cri.status(name)
    assert known is not None
    assert f"{hosting.address}/corp/containerd/{kind}@{image.digest}" in known.repo_digests
    containerd.compare(image, (image.native,), CRI_NAMESPACE)
    cri.remove(name)


def test_containerd_pushes_what_the_mirror_lacks(
    hosting: HostingSite, dockerd: DockerdProcess, containerd: ContainerdProcess
) -> None:
    """What containerd has from elsewhere is sent once; to a second repository it is not sent again."""
    first, second = (f"{hosting.address}/corp/containerd/{name}:v1" for name in ("first", "second"))
    dockerd.build(first, "FROM scratch\nCOPY own /srv/own\n", {"own": _noise("sent", 300_000)})
    saved = hosting.directory / "saved.tar"
    dockerd.save(first, saved)
    dockerd.remove(first)
    containerd.ctr("images", "import", "--snapshotter", containerd.snapshotter, str(saved))
    hosts = ("--hosts-dir", str(containerd.hosts))
    containerd.ctr("images", "push", *hosts, first)
    assert hosting.uploads("containerd/first") == 2
    before = hosting.proxy.sent
    containerd.ctr("images", "push", *hosts, second, first)
    assert hosting.proxy.sent - before < _SMALL
    assert hosting.uploads("containerd/second") == 0
    pushed = hosting.read("containerd/second", "v1")
    assert pushed == hosting.read("containerd/first", "v1")
    dockerd.pull(second)
    assert dockerd.inspect(second)["Id"] == pushed.manifest["config"]["digest"]


def test_every_client_pulls_what_another_pushed(
    hosting: HostingSite, dockerd: DockerdProcess, containerd: ContainerdProcess, cri: Cri
) -> None:
    """One image, pushed by docker, as containerd and Kubernetes' interface see it."""
    name = f"{hosting.address}/corp/shared/by-docker:v1"
    own = _noise("shared", 10_000)
    _build(dockerd, name, hosting.own_name(hosting.images["schema2"]), own)
    dockerd.push(name)
    pushed = hosting.read("shared/by-docker", "v1")
    assert cri.pull(name) == pushed.manifest["config"]["digest"] == dockerd.inspect(name)["Id"]
    held = containerd.content(CRI_NAMESPACE)
    assert {pushed.digest, *pushed.blobs} <= held.keys()
    for digest in pushed.blobs:
        assert sha256(containerd.blob_file(digest).read_bytes()) == digest

"""Real clients that are sent to the bucket for layers: they follow, to another host, and get what was pushed."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirror.app.bucket import try_bucket
from mirror.config import load
from tests.support.bucket_site import BucketSite
from tests.support.containerd_process import CRI_NAMESPACE, ContainerdProcess, Cri, write_hosts
from tests.support.dockerd_process import DockerdProcess
from tests.support.engines.seaweedfs import SeaweedFS
from tests.support.images import sha256
from tests.support.podman import Podman
from tests.support.skopeo import Skopeo

#: Bytes of a layer, much more than is redirected.
_LAYER = 300_000


@dataclass(frozen=True, slots=True)
class Redirecting:
    """A mirror that redirects for whatever is not tiny, and a dockerd that pushes. `directory` has a short path."""

    site: BucketSite
    dockerd: DockerdProcess
    directory: Path

    @property
    def address(self) -> str:
        """Of the mirror."""
        return self.site.mirror.address

    def push(self, name: str) -> tuple[str, str]:
        """An image with one layer that no other image has; returns its name and the digest of its config."""
        image = f"{self.address}/corp/{name}:v1"
        own = random.Random(name).randbytes(_LAYER)
        self.dockerd.build(image, "FROM scratch\nCOPY own /srv/own\n", {"own": own})
        self.dockerd.push(image)
        config = str(self.dockerd.inspect(image)["Id"])
        self.dockerd.remove(image)
        return image, config

    def redirected(self, name: str) -> list[int]:
        """The bytes of each redirect of a repository."""
        return [
            line["redirected"]
            for line in self.site.mirror.requests(path=f"/v2/corp/{name}/blobs/")
            if line["status"] == 307
        ]


@pytest.fixture(scope="module")
def redirecting(seaweedfs: SeaweedFS) -> Iterator[Redirecting]:
    """The mirror reaches the store by way of a proxy, the clients by its own name."""
    directory = Path(tempfile.mkdtemp(prefix="mirror-r-"))
    try:
        with (
            BucketSite(
                directory,
                seaweedfs,
                redirect_to=["127.0.0.0/8"],
                redirect_from="100KB",
                redirect_endpoint=seaweedfs.endpoint,
            ) as site,
            DockerdProcess(directory / "d", mirror=site.mirror.url) as dockerd,
        ):
            yield Redirecting(site, dockerd, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _is_once(sizes: list[int]) -> bool:
    """Whether one layer was redirected, once, and nothing else."""
    return len(sizes) == 1 and sizes[0] > _LAYER


def test_docker_follows(redirecting: Redirecting) -> None:
    name, config = redirecting.push("docker")
    redirecting.dockerd.pull(name)
    assert redirecting.dockerd.inspect(name)["Id"] == config
    assert _is_once(redirecting.redirected("docker"))


def test_containerd_follows(redirecting: Redirecting) -> None:
    """By Kubernetes' interface."""
    name, config = redirecting.push("containerd")
    url = f"http://{redirecting.address}"
    hosts = write_hosts(redirecting.directory / "hosts", {redirecting.address: f'[host."{url}"]\n'})
    with ContainerdProcess(redirecting.directory / "c", hosts=hosts) as containerd:
        cri = Cri(containerd.socket)
        try:
            assert cri.pull(name) == config
        finally:
            cri.close()
        assert config in containerd.content(CRI_NAMESPACE)
    assert _is_once(redirecting.redirected("containerd"))


def test_podman_follows(redirecting: Redirecting) -> None:
    name, config = redirecting.push("podman")
    podman = Podman(redirecting.directory / "p", redirecting.address)
    try:
        podman("pull", "--tls-verify=false", name)
        assert f"sha256:{podman.inspect(name)['Id']}" == config
    finally:
        podman.close()
    assert _is_once(redirecting.redirected("podman"))


def test_skopeo_follows(redirecting: Redirecting) -> None:
    name, config = redirecting.push("skopeo")
    target = redirecting.directory / "copied"
    Skopeo(redirecting.directory, redirecting.address).copy(name, target, "--src-tls-verify=false")
    manifest = json.loads((target / "manifest.json").read_text())
    assert manifest["config"]["digest"] == config
    [layer] = manifest["layers"]
    assert sha256((target / layer["digest"].removeprefix("sha256:")).read_bytes()) == layer["digest"]
    assert _is_once(redirecting.redirected("skopeo"))


def test_the_check_follows_a_signed_url(redirecting: Redirecting) -> None:
    """`mirror check --online` tries what clients are sent to."""
    [signed] = [result for result in try_bucket(load(redirecting.site.config)) if result.step == "sign"]
    assert signed.ok, signed

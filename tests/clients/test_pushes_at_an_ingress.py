"""docker, podman and skopeo push through an nginx with TLS to three replicas, each request to the next of them."""

from __future__ import annotations

import random
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.clients.conftest import short_directory
from tests.support.cluster_site import ClusterSite
from tests.support.dockerd_process import DockerdProcess, PushFailed
from tests.support.engines.seaweedfs import SeaweedFS
from tests.support.ingress import Ingress
from tests.support.mirror_process import MirrorProcess
from tests.support.podman import Podman
from tests.support.process import CommandFailed, eventually, run
from tests.support.pulls import OFFLINE
from tests.support.pushed import Pushed, read_pushed

_LAYERS: Final = 6
_SIZE: Final = 2_000_000


@dataclass(frozen=True, slots=True)
class _Front:
    site: ClusterSite
    ingress: Ingress
    directory: Path

    def named(self, name: str) -> str:
        """As clients write it, with the tag `v1`."""
        return f"{self.ingress.address}/corp/{name}:v1"

    def read(self, name: str) -> list[Pushed]:
        """What each replica that runs has, whole."""
        return [read_pushed(one.mirror.url, f"corp/{name}", "v1") for one in self.site.running]


@pytest.fixture(scope="module")
def front(seaweedfs: SeaweedFS) -> Iterator[_Front]:
    directory = short_directory()
    try:
        with ClusterSite(directory, seaweedfs, workers=2) as site, site.ingress() as ingress:
            yield _Front(site, ingress, directory)
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def podman(front: _Front) -> Iterator[Podman]:
    with closing(Podman(front.directory / "podman", front.ingress.address)) as podman:
        yield podman


@pytest.fixture(scope="module")
def dockerd(front: _Front) -> Iterator[DockerdProcess]:
    with DockerdProcess(front.directory / "d", mirror="http://127.0.0.1:9") as process:
        yield process


def _files(name: str) -> dict[str, bytes]:
    return {f"layer-{number}": random.Random(f"{name} {number}").randbytes(_SIZE) for number in range(_LAYERS)}


def _dockerfile(files: Sequence[str]) -> str:
    return "\n".join(["FROM scratch", *(f"COPY {file} /{file}" for file in files), ""])


def _with_podman(front: _Front, podman: Podman, name: str) -> Callable[[], object]:
    """Build an image; returns what pushes it."""
    context = front.directory / f"context-{name}"
    context.mkdir()
    files = _files(name)
    for file, content in files.items():
        (context / file).write_bytes(content)
    (context / "Dockerfile").write_text(_dockerfile([*files]))
    podman("build", "--isolation=chroot", "--layers", "--tag", front.named(name), str(context))
    trusted = str(front.ingress.trusted_by_clients(front.directory))
    return lambda: podman("push", f"--cert-dir={trusted}", front.named(name))


def _with_docker(front: _Front, dockerd: DockerdProcess, name: str) -> Callable[[], object]:
    """Likewise. dockerd believes any certificate of a loopback address."""
    files = _files(name)
    dockerd.build(front.named(name), _dockerfile([*files]), files)
    return lambda: dockerd.push(front.named(name))


def test_docker(front: _Front, dockerd: DockerdProcess) -> None:
    """A whole image; every replica has it."""
    _with_docker(front, dockerd, "docker")()
    assert [len(one.blobs) for one in front.read("docker")] == [_LAYERS + 1] * 3


def test_podman(front: _Front, podman: Podman) -> None:
    """A whole image, pushed and pulled."""
    _with_podman(front, podman, "podman")()
    assert [len(one.blobs) for one in front.read("podman")] == [_LAYERS + 1] * 3
    known = podman.inspect(front.named("podman"))["Id"]
    podman("image", "rm", "--force", front.named("podman"))
    trusted = str(front.ingress.trusted_by_clients(front.directory))
    podman("pull", "--quiet", f"--cert-dir={trusted}", front.named("podman"))
    assert podman.inspect(front.named("podman"))["Id"] == known


def test_skopeo(front: _Front, podman: Podman) -> None:
    """Copies to another repository: by mounts, and byte for byte."""
    _with_podman(front, podman, "copied")()
    trusted = front.ingress.trusted_by_clients(front.directory)
    source, target = f"docker://{front.named('copied')}", f"docker://{front.named('copies')}"
    certificates = (f"--src-cert-dir={trusted}", f"--dest-cert-dir={trusted}")
    run(["skopeo", "--insecure-policy", "copy", *certificates, source, target], env=OFFLINE)
    assert front.read("copies") == front.read("copied")


@pytest.mark.parametrize("client", ["docker", "podman"])
def test_a_replica_dies_in_the_middle_of_a_push(
    front: _Front, podman: Podman, dockerd: DockerdProcess, client: str
) -> None:
    """The push ends well, or the same push again does; no layer that had arrived is sent a second time."""
    name = f"dies-{client}"
    push = _with_podman(front, podman, name) if client == "podman" else _with_docker(front, dockerd, name)
    logs: list[MirrorProcess] = [one.mirror for one in front.site.replicas]

    def arrived() -> Counter[str]:
        """How often each blob was accepted."""
        return Counter(
            found[1]
            for log in logs
            for line in log.requests(path=f"/v2/corp/{name}/blobs/uploads/")
            if line["status"] == 201 and (found := re.search(r"digest=sha256(?::|%3A)([0-9a-f]+)", line["path"]))
        )

    failures: list[AssertionError] = []

    def first_push() -> None:
        try:
            push()
        except (CommandFailed, PushFailed) as error:
            failures.append(error)

    pushing = threading.Thread(target=first_push)
    pushing.start()
    eventually(lambda: arrived() or not pushing.is_alive(), "a layer has arrived")
    lost = front.site.at(0)
    lost.kill()
    pushing.join()
    push()
    assert [len(one.blobs) for one in front.read(name)] == [_LAYERS + 1] * 2
    lost.start()
    logs.append(lost.mirror)
    assert [len(one.blobs) for one in front.read(name)] == [_LAYERS + 1] * 3
    assert max(arrived().values()) == 1, failures

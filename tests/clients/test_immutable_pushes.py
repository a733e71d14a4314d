"""docker, podman and skopeo push another image under an immutable tag: they fail, and show why."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.conftest import OPEN_TO_PUSHES, short_directory
from tests.support.dockerd_process import DockerdProcess, PushFailed
from tests.support.images import Pusher
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.podman import Podman
from tests.support.process import CommandFailed, run
from tests.support.pulls import OFFLINE

_IMMUTABLE = OPEN_TO_PUSHES.replace('name = "corp"', 'name = "corp"\n[[hosted.immutable]]\ntags = ["v*"]')


@dataclass(frozen=True, slots=True)
class _Site:
    mirror: MirrorProcess
    directory: Path

    def named(self, repository: str, tag: str) -> str:
        """An image of `corp`, as clients write it."""
        return f"{self.mirror.address}/corp/{repository}:{tag}"

    def digest(self, repository: str, tag: str) -> str:
        """What a tag points to."""
        status, headers, _ = self.mirror.get(f"/v2/corp/{repository}/manifests/{tag}", method="HEAD")
        assert status == 200
        return str(headers["docker-content-digest"])

    def refusal(self, repository: str) -> str:
        """The message about `v1` of a repository, as the mirror writes it."""
        return (
            f"the tag corp/{repository}:v1 is immutable ([[hosted.immutable]] of corp);"
            f" it points to {self.digest(repository, 'v1')}"
        )


@pytest.fixture(scope="module")
def site() -> Iterator[_Site]:
    """Everybody may push, and move tags; those that begin with `v` are immutable."""
    directory = short_directory()
    try:
        with MirrorProcess(write_config(directory, {"docker.io": "http://127.0.0.1:9"}, more=_IMMUTABLE)) as running:
            yield _Site(running, directory)
    finally:
        shutil.rmtree(directory)


def test_docker_shows_the_message(site: _Site) -> None:
    """A push of the same image again succeeds, and so does the other image under a tag that may move."""
    with DockerdProcess(site.directory / "d", mirror=site.mirror.url) as dockerd:
        name, latest = site.named("docker", "v1"), site.named("docker", "latest")
        for number in range(2):
            dockerd.build(latest, "FROM scratch\nCOPY own /own\n", {"own": b"%d" % number})
            dockerd.push(latest)
            dockerd.tag(latest, name)
            if number == 0:
                dockerd.push(name)
                dockerd.push(name)
                first = site.digest("docker", "v1")
        with pytest.raises(PushFailed) as caught:
            dockerd.push(name)
        assert site.refusal("docker") in str(caught.value)
        assert site.digest("docker", "v1") == first != site.digest("docker", "latest")


def test_podman_shows_the_message(site: _Site) -> None:
    with closing(Podman(site.directory / "podman", site.mirror.address)) as podman:
        name = site.named("podman", "v1")
        for number in range(2):
            context = site.directory / f"context-{number}"
            context.mkdir()
            (context / "own").write_text(str(number))
            (context / "Dockerfile").write_text("FROM scratch\nCOPY own /own\n")
            podman("build", "--isolation=chroot", "--tag", name, str(context))
            if number == 0:
                podman("push", "--tls-verify=false", name)
        first = site.digest("podman", "v1")
        with pytest.raises(CommandFailed) as caught:
            podman("push", "--tls-verify=false", name)
        assert site.refusal("podman") in str(caught.value)
        assert site.digest("podman", "v1") == first


def test_skopeo_shows_the_message(site: _Site) -> None:
    """To a push, and to a deletion."""
    with closing(Pusher(site.mirror.url, "corp/skopeo")) as pusher:
        pusher.tag("corp", "v1", pusher.image([{"own": b"first"}]))
        pusher.tag("corp", "other", pusher.image([{"own": b"second"}]))
    first, name = site.digest("skopeo", "v1"), f"docker://{site.named('skopeo', 'v1')}"
    skopeo = ["skopeo", "--insecure-policy"]
    copy = [*skopeo, "copy", "--src-tls-verify=false", "--dest-tls-verify=false"]
    with pytest.raises(CommandFailed) as caught:
        run([*copy, f"docker://{site.named('skopeo', 'other')}", name], env=OFFLINE)
    assert site.refusal("skopeo") in str(caught.value)
    with pytest.raises(CommandFailed) as caught:
        run([*skopeo, "delete", "--tls-verify=false", name], env=OFFLINE)
    assert "the tag corp/skopeo:v1 is immutable" in str(caught.value)
    assert site.digest("skopeo", "v1") == first

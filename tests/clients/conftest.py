"""What every client test needs: the images, two real registries that have them, and a mirror in front of both.

The images are made once a run. Each test file gets registries and a mirror of its own over them, so that its pulls are
cold and its requests are counted alone.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.containerd_process import PULLS, ContainerdProcess, write_hosts
from tests.support.counting_proxy import CountingProxy
from tests.support.images import Published, publish_all, publish_small
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.pushed import Pushed, read_pushed
from tests.support.registry_process import RegistryProcess


@dataclass(frozen=True, slots=True)
class Library:
    """Directories of two registries, filled: docker.io with every kind of image, ghcr.io with small ones."""

    docker_root: Path
    ghcr_root: Path
    images: dict[str, Published]
    foreign: dict[str, Published]


@dataclass(frozen=True, slots=True)
class Site:
    """A mirror and the registries behind it. `directory` is for the client's own files, its path short."""

    docker: RegistryProcess
    ghcr: RegistryProcess
    mirror: MirrorProcess
    images: dict[str, Published]
    foreign: dict[str, Published]
    directory: Path

    def upstream_of(self, image: Published) -> RegistryProcess:
        """The registry that has it."""
        return {"docker.io": self.docker, "ghcr.io": self.ghcr}[image.registry]

    def mark(self, image: Published) -> int:
        """Where its upstream's log ends now."""
        return len(self.upstream_of(image).requests())

    def fetched(self, image: Published, since: int) -> dict[str, int]:
        """How many bytes upstream has sent of each blob that it was asked for since a mark, by any method."""
        return self.upstream_of(image).sent(since=since)


@dataclass(frozen=True, slots=True)
class HostingSite:
    """A mirror that hosts the registry `corp`, to which everybody may push, and mirrors docker.io; a proxy before it
    counts what clients send. `directory` is for the clients' own files, its path short.
    """

    docker: RegistryProcess
    mirror: MirrorProcess
    proxy: CountingProxy
    images: dict[str, Published]
    directory: Path

    @property
    def address(self) -> str:
        """`127.0.0.1:port`, the name of the mirror's registry for clients."""
        return self.proxy.address

    def own_name(self, image: Published) -> str:
        """An image of docker.io by the mirror's own name, repository and tag."""
        return f"{self.address}/{image.registry}/{image.repository}:{image.tag}"

    def uploads(self, name: str) -> int:
        """How many blobs clients have sent to a repository of `corp`."""
        sent = self.mirror.requests(path=f"/v2/corp/{name}/blobs/uploads/")
        return len([line for line in sent if "digest=" in line["path"] and line["status"] == 201])

    def read(self, name: str, reference: str) -> Pushed:
        """An image of `corp`, whole. Raises `AssertionError`."""
        return read_pushed(self.mirror.url, f"corp/{name}", reference)


#: Everybody may push to `corp`, move its tags, and delete there.
OPEN_TO_PUSHES = """
    [[hosted]]
    name = "corp"
    [[access.rule]]
    effect = "allow"
    callers = ["*"]
    actions = ["pull", "push", "overwrite", "delete"]
"""


def short_directory() -> Path:
    """Unix sockets live here, and their paths end at 108 bytes (unix(7)); pytest's own directories are too long."""
    return Path(tempfile.mkdtemp(prefix="mt-"))


@pytest.fixture
def directory() -> Iterator[Path]:
    """A folder of this test, deleted afterwards: pytest's own would stay, with hundreds of megabytes in it."""
    path = short_directory()
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def library() -> Iterator[Library]:
    directory = short_directory()
    try:
        with RegistryProcess(directory / "docker") as docker, RegistryProcess(directory / "ghcr") as ghcr:
            images = publish_all(docker.url, directory)
            foreign = {
                name: publish_small(ghcr.url, "ghcr.io", f"owner/{name}", "1.0")
                for name in ("skopeo", "podman", "ctr", "prefix", "cri", "default")
            }
        yield Library(docker.root, ghcr.root, images, foreign)
    finally:
        shutil.rmtree(directory)


@contextmanager
def open_site(library: Library, more: Callable[[Path], str] = lambda directory: "") -> Iterator[Site]:
    """A mirror of both registries. `more` is TOML to add, which may name files that it writes into the directory."""
    directory = short_directory()
    try:
        with (
            RegistryProcess(library.docker_root, read_only=True) as docker,
            RegistryProcess(library.ghcr_root, read_only=True) as ghcr,
            MirrorProcess(
                write_config(directory, {"docker.io": docker.url, "ghcr.io": ghcr.url}, more=more(directory))
            ) as mirror,
        ):
            yield Site(docker, ghcr, mirror, library.images, library.foreign, directory)
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def site(library: Library) -> Iterator[Site]:
    with open_site(library) as running:
        yield running


@pytest.fixture(scope="module")
def hosting(library: Library) -> Iterator[HostingSite]:
    directory = short_directory()
    try:
        with (
            RegistryProcess(library.docker_root, read_only=True) as docker,
            MirrorProcess(write_config(directory, {"docker.io": docker.url}, more=OPEN_TO_PUSHES)) as mirror,
            CountingProxy(mirror.port) as proxy,
        ):
            yield HostingSite(docker, mirror, proxy, library.images, directory)
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def containerd(site: Site) -> Iterator[ContainerdProcess]:
    """containerd with one mirror for every registry: it says which one it means by `?ns=`."""
    mirror = f'[host."{site.mirror.url}"]{PULLS}'
    hosts = write_hosts(site.directory / "hosts", {"docker.io": mirror, "ghcr.io": mirror})
    with ContainerdProcess(site.directory / "c", hosts=hosts) as process:
        yield process

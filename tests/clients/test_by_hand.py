"""Real clients pull with the files that the pages about them show."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.conftest import Site, short_directory
from tests.support.client_pages import MIRROR, shown_files
from tests.support.containerd_process import ContainerdProcess
from tests.support.dockerd_process import DockerdProcess
from tests.support.process import run
from tests.support.pulls import OFFLINE
from tests.support.skopeo import compare_directory

_PAGE = Path(__file__).resolve().parents[2] / "docs/clients/containerd.md"


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder for the client; its path short, for sockets live there too."""
    path = short_directory()
    yield path
    shutil.rmtree(path)


def _write(root: Path, page: str, site: Site) -> None:
    for path, text in shown_files(page, site.mirror.address).items():
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


@pytest.mark.parametrize("server", [False, True], ids=["fallback", "mirror-alone"])
def test_containerd(site: Site, root: Path, server: bool) -> None:
    """By `_default`, as a mirror before the registry and as the only place."""
    _write(root, "containerd", site)
    hosts = root / "etc/containerd/certs.d"
    if server:
        found = re.search(r"^```toml\n(server = .*?)^```$", _PAGE.read_text(), re.MULTILINE | re.DOTALL)
        assert found
        (hosts / "_default/hosts.toml").write_text(found[1].replace(MIRROR, site.mirror.address))
    with ContainerdProcess(root / "c", hosts=hosts) as containerd:
        for image in (site.images["oci"], site.foreign["ctr"]):
            words = ["--snapshotter", containerd.snapshotter, "--hosts-dir", str(hosts)]
            containerd.ctr("images", "pull", *words, image.name)
            containerd.compare(image, (image.native,))


def test_containerd_takes_the_settings(site: Site, root: Path) -> None:
    """`config.toml` as shown is understood by the program."""
    _write(root, "containerd", site)
    dumped = run(["containerd", "--config", root / "etc/containerd/config.toml", "config", "dump"]).decode()
    assert 'config_path = "/etc/containerd/certs.d"' in dumped


def test_dockerd(site: Site, root: Path) -> None:
    """`daemon.json` as shown."""
    _write(root, "docker", site)
    image = site.images["oci"]
    with DockerdProcess(root / "d", settings=root / "etc/docker/daemon.json") as dockerd:
        dockerd.pull(image.name)
        assert dockerd.inspect(image.name)["Id"] == image.native.config.digest


def test_skopeo(site: Site, root: Path) -> None:
    """The drop-in as shown, for both registries in it."""
    _write(root, "podman", site)
    settings = root / "etc/containers/registries.conf.d/50-mirror.conf"
    for image in (site.images["oci"], site.foreign["skopeo"]):
        words = ["--insecure-policy", f"--registries-conf={settings}"]
        target = root / image.repository.replace("/", "-")
        run(["skopeo", *words, "copy", f"docker://{image.name}", f"dir:{target}"], env=OFFLINE)
        compare_directory(target, image, every_platform=False)

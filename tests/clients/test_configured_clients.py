"""Real clients pull through the mirror with nothing but what `mirror configure --root` wrote for them."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.conftest import OPEN_TO_PUSHES, Site, short_directory
from tests.support.certificates import Certificate
from tests.support.containerd_process import CRI_NAMESPACE, ContainerdProcess, Cri
from tests.support.dockerd_process import DockerdProcess
from tests.support.images import Published
from tests.support.mirror_process import MirrorProcess
from tests.support.mounts import overlay_works, unmount_below
from tests.support.process import run
from tests.support.pulls import OFFLINE
from tests.support.skopeo import compare_directory


def _configure(root: Path, client: str, url: str, *words: str) -> str:
    command = [sys.executable, "-m", "mirror", "configure", client, url, "--root", str(root), "--apply", *words]
    return run(command).decode()


@pytest.fixture
def root() -> Iterator[Path]:
    """Another root; its path short, for sockets live there too."""
    path = short_directory()
    yield path
    shutil.rmtree(path)


def _through(site: Site, image: Published, before: int) -> bool:
    """Whether the mirror was asked for the image since its log had so many requests."""
    return any(image.digest in one["path"] or f"/manifests/{image.tag}" in one["path"] for one in _asked(site)[before:])


def _asked(site: Site) -> list[dict[str, str]]:
    return site.mirror.requests(path="/manifests/")


@contextlib.contextmanager
def _containerd(root: Path) -> Iterator[ContainerdProcess]:
    """With the folder that `config_path` names, seen from this root."""
    with ContainerdProcess(root / "c", hosts=root / "etc/containerd/certs.d") as process:
        yield process


def _ctr(containerd: ContainerdProcess, image: Published) -> None:
    hosts = str(containerd.hosts)
    containerd.ctr("images", "pull", "--snapshotter", containerd.snapshotter, "--hosts-dir", hosts, image.name)


@pytest.mark.parametrize("words", [(), ("--no-fallback",)], ids=["fallback", "no-fallback"])
def test_containerd_pulls_every_registry(site: Site, root: Path, words: tuple[str, ...]) -> None:
    """By `_default`, asked by the daemon and by `ctr`, with the registry known by `?ns=`."""
    said = _configure(root, "containerd", site.mirror.url, *words)
    assert "systemctl restart containerd" in said
    image, foreign = site.images["oci"], site.foreign["default"]
    before = len(_asked(site))
    with _containerd(root) as containerd:
        for one in (image, foreign):
            _ctr(containerd, one)
            containerd.compare(one, (one.native,))
        with contextlib.closing(Cri(containerd.socket)) as cri:
            cri.pull(image.name)
        containerd.compare(image, (image.native,), CRI_NAMESPACE)
    assert _through(site, image, before)
    assert any("ns=ghcr.io" in one["path"] for one in _asked(site)[before:])


def test_containerd_starts_with_the_settings_it_was_given(site: Site, root: Path) -> None:
    """`config_path` that was added to a real `config.toml` is understood by the program itself."""
    settings = root / "etc/containerd/config.toml"
    settings.parent.mkdir(parents=True)
    settings.write_bytes(run(["containerd", "config", "default"]))
    _configure(root, "containerd", site.mirror.url)
    dumped = run(["containerd", "--config", settings, "config", "dump"]).decode()
    assert 'config_path = "/etc/containerd/certs.d"' in dumped


def test_containerd_trusts_the_authority_it_was_given(site: Site, root: Path) -> None:
    """With TLS, and a certificate that only `--ca-file` makes known."""
    certificate = Certificate(root / "tls")
    image = site.images["oci"]
    with MirrorProcess(_secure(site, root, certificate)) as mirror:
        url = f"https://{mirror.address}"
        _configure(root, "containerd", url, "--ca-file", str(certificate.certificate), "--no-fallback")
        with _containerd(root) as containerd:
            _ctr(containerd, image)
            containerd.compare(image, (image.native,))
        assert mirror.requests(path="/manifests/")


def test_containerd_pushes_to_the_mirrors_own_name(site: Site, root: Path) -> None:
    """With `--hosted` and `--virtual`, and a private authority: Docker Hub's images come by the virtual registry, and
    what is pushed is pulled by both names.
    """
    certificate = Certificate(root / "tls")
    more = f"{OPEN_TO_PUSHES}\n[[virtual]]\nname = 'all'\nmembers = ['corp', 'docker.io']\nwritable = 'corp'\n"
    image = site.images["oci"]
    with MirrorProcess(_secure(site, root, certificate, more)) as mirror:
        url = f"https://{mirror.address}"
        words = ("--ca-file", str(certificate.certificate), "--no-fallback", "--hosted", "--virtual", "all")
        _configure(root, "containerd", url, *words)
        with _containerd(root) as containerd:
            _ctr(containerd, image)
            containerd.compare(image, (image.native,))
            assert mirror.requests(path="/v2/all/")
            hosts = ("--hosts-dir", str(containerd.hosts))
            own = f"{mirror.address}/corp/team/app:1"
            containerd.ctr("images", "tag", image.name, own)
            containerd.ctr("images", "push", *hosts, "--platform", "linux/amd64", own)
            containerd.ctr("images", "rm", own)
            snapshots = ("--snapshotter", containerd.snapshotter)
            for name in (own, "docker.io/team/app:1"):
                containerd.ctr("images", "pull", *snapshots, *hosts, name)
        assert mirror.requests(path="/v2/corp/team/app/manifests/1")
        assert mirror.requests(path="/v2/all/team/app/manifests/1")


def _secure(site: Site, root: Path, certificate: Certificate, more: str = "") -> Path:
    """The configuration of a mirror with TLS."""
    directory = root / "m"
    directory.mkdir()
    text = f'[server]\nlisten = ["127.0.0.1:0"]\ntls_certificate = "{certificate.certificate}"\n'
    text += f'tls_key = "{certificate.key}"\n[store]\nroot = "{directory}/store"\n'
    text += f'[[upstream]]\nname = "docker.io"\nurl = "{site.docker.url}"\n{more}'
    config = directory / "mirror.toml"
    config.write_text(text)
    return config


def test_dockerd_pulls_with_its_other_settings(site: Site, root: Path) -> None:
    """A `daemon.json` with settings of its own gets the mirror, keeps the rest, and dockerd starts with it."""
    settings = root / "etc/docker/daemon.json"
    settings.parent.mkdir(parents=True)
    settings.write_text('{\n    "max-download-attempts": 1,\n    "debug": true\n}')
    assert "systemctl reload docker" in _configure(root, "docker", site.mirror.url)
    assert list(json.loads(settings.read_text())) == ["max-download-attempts", "debug", "registry-mirrors"]
    image = site.images["oci"]
    before = len(_asked(site))
    with DockerdProcess(root / "d", settings=settings) as dockerd:
        dockerd.pull(image.name)
        assert dockerd.inspect(image.name)["Id"] == image.native.config.digest
    assert _through(site, image, before)


@pytest.mark.parametrize("words", [(), ("--no-fallback",)], ids=["fallback", "no-fallback"])
def test_skopeo_and_podman_pull_every_registry(site: Site, root: Path, words: tuple[str, ...]) -> None:
    """The drop-in is understood as it is, and leads to the mirror by path."""
    _configure(root, "podman", site.mirror.url, *words)
    # neither program of this machine has an option for the folder of drop-ins: the file is given as the only one
    settings = root / "etc/containers/registries.conf.d/50-mirror.conf"
    before = len(_asked(site))
    for image in (site.images["oci"], site.foreign["skopeo"]):
        target = root / "copied"
        options = ["--insecure-policy", f"--registries-conf={settings}"]
        run(["skopeo", *options, "copy", f"docker://{image.name}", f"dir:{target}"], env=OFFLINE)
        compare_directory(target, image, every_platform=False)
        shutil.rmtree(target)
    image = site.foreign["podman"]
    driver = "overlay" if overlay_works(root) else "vfs"
    podman = ["podman", f"--root={root}/r", f"--runroot={root}/run", f"--storage-driver={driver}"]
    env = {**OFFLINE, "CONTAINERS_REGISTRIES_CONF": str(settings)}
    try:
        run([*podman, "--events-backend=none", "pull", "--quiet", image.name], env=env)
        found = json.loads(run([*podman, "--events-backend=none", "image", "inspect", image.name], env=env))[0]
    finally:
        unmount_below(root)
    assert found["Id"] == image.native.config.digest.partition(":")[2]
    paths = [one["path"] for one in _asked(site)[before:]]
    assert any("/v2/ghcr.io/" in path for path in paths)
    assert any("/v2/docker.io/" in path for path in paths)

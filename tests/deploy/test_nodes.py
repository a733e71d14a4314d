"""The DaemonSet's script on a folder as a node has it: writes only what is ours, and takes all of it back."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from mirror.nodes.containerd import CONTAINERD
from mirror.nodes.plan import MirrorUrl, Wanted
from tests.clients.conftest import short_directory
from tests.support.containerd_process import ContainerdProcess
from tests.support.images import publish_small
from tests.support.kustomize import only, render
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.node_files import GivenFiles
from tests.support.process import CommandFailed, ProgramProcess, eventually, run
from tests.support.registry_process import RegistryProcess

_NODES: Final = Path(__file__).resolve().parents[2] / "k8s/nodes"
_FOREIGN: Final = '[host."https://other.example"]\n'


class Node:
    """A folder that stands for `/etc/containerd/certs.d`, and the script as the container runs it."""

    def __init__(self, folder: Path, url: str = "http://10.0.0.7:30500", registries: str = "docker.io ghcr.io") -> None:
        self.folder = folder
        self.environment = {"CERTS_D": str(folder), "MIRROR_URL": url, "REGISTRIES": registries}

    def start(self, word: str) -> ProgramProcess:
        """`keep` or `undo`, which run until SIGTERM."""
        return ProgramProcess([sys.executable, _NODES / "containerd_hosts.py", word], env=self.environment)

    def check(self, *words: str) -> str:
        """Raises `CommandFailed` unless all is as it should be."""
        return run([sys.executable, _NODES / "containerd_hosts.py", "check", *words], env=self.environment).decode()

    def keep_once(self) -> list[str]:
        """Run `keep` until it has looked once; returns its log lines."""
        with self.start("keep") as process:
            # before it holds SIGTERM back it would die of it
            process.wait_for(lambda line: line.startswith("keeping "), "it has begun")
            eventually(lambda: self._done() or not process.running, "it has looked at every file")
            assert process.stop() == 0, process.tail()
            return [line for line in process.lines if not line.startswith("keeping ")]

    def _done(self) -> bool:
        try:
            self.check()
        except CommandFailed:
            return False
        return True

    def undone(self) -> list[str]:
        """Run `undo` until it says that it is done."""
        with self.start("undo") as process:
            process.wait_for(lambda line: "nothing of ours is left" in line, "it is done")
            assert process.stop() == 0
            return process.lines

    def hosts(self, registry: str) -> dict[str, Any]:
        """The file, read."""
        return tomllib.loads((self.folder / registry / "hosts.toml").read_text())


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """Nothing is there yet."""
    folder = tmp_path / "certs.d"
    folder.mkdir()
    return Node(folder)


def everything(folder: Path) -> dict[str, bytes | None]:
    """Files with their content, folders with None."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_writes_and_takes_back(node: Node) -> None:
    """A file for each registry that everyone may read, written whole; after `undo` there is nothing."""
    assert len(node.keep_once()) == 2
    for registry in ("docker.io", "ghcr.io"):
        assert node.hosts(registry) == {
            "host": {"http://10.0.0.7:30500": {"capabilities": ["pull", "resolve"], "dial_timeout": "3s"}}
        }
        assert stat.S_IMODE((node.folder / registry / "hosts.toml").stat().st_mode) == 0o644
        assert os.listdir(node.folder / registry) == ["hosts.toml"]
    assert node.keep_once() == []
    with pytest.raises(CommandFailed, match="still there"):
        node.check("--gone")
    node.undone()
    node.check("--gone")
    assert everything(node.folder) == {}


@pytest.mark.parametrize("url", ["http://10.0.0.7:30500", "https://mirror.example.com", "http://[fd00::7]:30500"])
@pytest.mark.parametrize("fallback", ["yes", "no"])
@pytest.mark.parametrize("registry", ["docker.io", "registry.corp:5443", "_default"])
def test_writes_what_configure_writes(node: Node, url: str, fallback: str, registry: str) -> None:
    """Below the marker its file is exactly the file of `mirror configure containerd`, with and without
    `--no-fallback`.
    """
    node.environment |= {"MIRROR_URL": url, "REGISTRIES": registry, "FALLBACK": fallback}
    node.keep_once()
    wanted = Wanted(MirrorUrl.parse(url), () if registry == "_default" else (registry,), fallback=fallback == "yes")
    path = f"/etc/containerd/certs.d/{registry}/hosts.toml"
    [planned] = [one.content for one in CONTAINERD.plan(GivenFiles({}), wanted).changes if one.path == path]
    written = (node.folder / registry / "hosts.toml").read_text()
    assert written.partition("\n")[2] == planned.partition("\n")[2]
    assert tomllib.loads(written)


def test_takes_back_what_a_crash_left(node: Node) -> None:
    """A file that was half written is gone after `undo`, and its folder too, also where no file of ours came of it."""
    for registry in ("docker.io", "ghcr.io"):
        (node.folder / registry).mkdir()
        (node.folder / registry / ".registry-mirror-x1").write_text("# Writ")
    (node.folder / "ghcr.io/ca.crt").write_text("a certificate")
    with pytest.raises(CommandFailed, match=r"still there: .*docker\.io/\.registry-mirror-x1"):
        node.check("--gone")
    node.undone()
    node.check("--gone")
    assert everything(node.folder) == {"ghcr.io": None, "ghcr.io/ca.crt": b"a certificate"}


def test_leaves_alone_what_is_not_ours(node: Node) -> None:
    """A hosts.toml of others stays as it is, is named, and keeps the node from being ready; so do certificates."""
    (node.folder / "docker.io").mkdir()
    (node.folder / "docker.io/hosts.toml").write_text(_FOREIGN)
    (node.folder / "ghcr.io").mkdir()
    (node.folder / "ghcr.io/ca.crt").write_text("a certificate")
    before = everything(node.folder)
    with node.start("keep") as process:
        process.wait_for(lambda line: "left alone" in line and "docker.io" in line, "it names the file")
        eventually((node.folder / "ghcr.io/hosts.toml").exists, "the other one is written")
        assert process.stop() == 0
    with pytest.raises(CommandFailed, match=r"not as it should be: .*docker\.io"):
        node.check()
    assert everything(node.folder) == {
        **before,
        "ghcr.io/hosts.toml": (node.folder / "ghcr.io/hosts.toml").read_bytes(),
    }
    node.undone()
    assert everything(node.folder) == before


def test_follows_its_settings(node: Node) -> None:
    """Another address and fewer registries: files are rewritten, and those of registries that went are removed."""
    node.keep_once()
    later = Node(node.folder, "https://mirror.example.com", "ghcr.io")
    lines = later.keep_once()
    assert list(later.hosts("ghcr.io")["host"]) == ["https://mirror.example.com"]
    assert not (node.folder / "docker.io").exists()
    assert any("not in REGISTRIES any more" in line for line in lines)


def test_an_address_of_ipv6_gets_brackets(node: Node) -> None:
    """A node's own address comes without them."""
    later = Node(node.folder, "http://fd00::7:30500", "docker.io")
    later.keep_once()
    assert list(later.hosts("docker.io")["host"]) == ["http://[fd00::7]:30500"]


def test_for_all_registries_it_names_the_exceptions(node: Node) -> None:
    """With `_default`, registries that have settings of their own do not go through the mirror, and the log says so."""
    (node.folder / "registry.corp").mkdir()
    (node.folder / "registry.corp/hosts.toml").write_text(_FOREIGN)
    later = Node(node.folder, registries="_default")
    with later.start("keep") as process:
        process.wait_for(lambda line: line.endswith("settings of its own: registry.corp"), "it names the exception")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("MIRROR_URL", ""),
        ("MIRROR_URL", 'http://a"]\nserver = "http://evil'),
        ("MIRROR_URL", "http://user:secret@mirror"),
        ("REGISTRIES", ""),
        ("REGISTRIES", "../../etc"),
        ("FALLBACK", "never"),
        ("CERTS_D", "/nowhere/at/all"),
    ],
)
def test_refuses_settings_that_are_no_good(node: Node, setting: str, value: str) -> None:
    """Exit status 2, the setting named, and nothing written."""
    node.environment[setting] = value
    with pytest.raises(CommandFailed, match=rf"exit code 2\n{setting}"):
        node.check()
    assert everything(node.folder) == {}


@pytest.fixture
def directory() -> Iterator[Path]:
    """Its path is short enough for sockets."""
    path = short_directory()
    yield path
    shutil.rmtree(path)


def test_containerd_follows_without_a_restart(directory: Path) -> None:
    """A containerd that is running pulls through the mirror as soon as the files are there, and no longer when they are
    gone.
    """
    folder = directory / "certs.d"
    folder.mkdir()
    with (
        RegistryProcess(directory / "registry") as registry,
        MirrorProcess(write_config(directory, {"docker.io": registry.url})) as mirror,
        ContainerdProcess(directory / "c", hosts=folder) as containerd,
    ):
        image = publish_small(registry.url, "docker.io", "library/small")
        words = ("images", "pull", "--snapshotter", containerd.snapshotter, "--hosts-dir", str(folder), image.name)
        with pytest.raises(CommandFailed):
            containerd.ctr(*words)
        node = Node(folder, mirror.url, "docker.io")
        node.keep_once()
        containerd.ctr(*words)
        containerd.compare(image, (image.native,))
        assert mirror.requests(path=image.repository)
        node.undone()
        # another one, of which nothing can be logged late
        other = publish_small(registry.url, "docker.io", "library/other")
        with pytest.raises(CommandFailed):
            containerd.ctr(*words[:-1], other.name)
        assert not mirror.requests(path=other.repository)


def test_the_overlay_that_undoes_differs_in_nothing_else() -> None:
    """Same DaemonSet, same folder; its command and its probe are `undo`'s."""
    keep, undo = (only(render(_NODES.with_name(name)), "DaemonSet", "mirror-nodes") for name in ("nodes", "nodes-undo"))
    assert keep["metadata"] == undo["metadata"]
    first, second = (one["spec"]["template"]["spec"]["containers"][0] for one in (keep, undo))
    assert (first.pop("args"), second.pop("args")) == (["keep"], ["undo"])
    assert first.pop("readinessProbe")["exec"]["command"][-1] == "check"
    assert second.pop("readinessProbe")["exec"]["command"][-2:] == ["check", "--gone"]
    assert first == second
    assert keep["spec"]["template"]["spec"]["volumes"] == undo["spec"]["template"]["spec"]["volumes"]

"""The shell blocks that a page calls runnable are run: as they stand, but for addresses and folders.

A block is marked by the line before it: `<!-- runnable: part -->`. Its parts are run one after the other, each block by
a shell of its own; the last line of a block that serves takes the shell's place and goes on.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.support.images import publish_small
from tests.support.process import ProgramProcess, eventually, run
from tests.support.registry_process import RegistryProcess
from tests.support.wheels import pack_wheels, with_dependencies

_ROOT: Final = Path(__file__).resolve().parents[2]
_BLOCK: Final = re.compile(r"^<!-- runnable: ([a-z ]+) -->\n```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _blocks(page: str) -> list[tuple[str, str]]:
    """Part and text of every marked block, in order."""
    text = (_ROOT / page).read_text()
    found = _BLOCK.findall(text)
    assert len(found) == text.count("<!-- runnable"), f"{page}: a mark without a block of sh"
    return found


class _Reader:
    """Somebody with the sources in a folder, a shell, and a page."""

    def __init__(self, folder: Path, page: str, env: Mapping[str, str], changes: Mapping[str, str]) -> None:
        self.folder = folder
        self._blocks = _blocks(page)
        self._env = dict(env)
        self._changes = dict(changes)

    def texts(self, part: str) -> list[str]:
        """Its blocks, with the addresses and folders of this run. Every change must have something to change."""
        texts = [text for name, text in self._blocks if name == part]
        assert texts, f"no block is marked {part}"
        for old, new in self._changes.items():
            texts = [text.replace(old, new) for text in texts]
        return texts

    def change(self, old: str, new: str) -> None:
        """From now on `new` is typed where the page says `old`."""
        assert any(old in text for _, text in self._blocks), f"the page does not say {old}"
        self._changes[old] = new

    def export(self, **more: str) -> None:
        """As a block before has done, whose shell is gone."""
        self._env |= more

    def does(self, part: str) -> str:
        """Run all blocks of a part to their end; what they print. Raises `CommandFailed`."""
        said = b""
        for text in self.texts(part):
            said += run(["bash", "-c", f"cd {self.folder}\nset -euo pipefail\n{text}"], env=self._env)
        return said.decode()

    def serves(self, part: str) -> ProgramProcess:
        """Run the one block of a part, whose last line goes on; it listens when this returns."""
        [text] = self.texts(part)
        *lines, last = text.rstrip().split("\n")
        script = "\n".join(["set -euo pipefail", *lines, f"exec {last}"])
        process = ProgramProcess(["bash", "-c", script], env=self._env, cwd=self.folder, name="page")
        try:
            found = process.wait_for(lambda line: re.search(r'"address":"(127\.0\.0\.1:\d+)"', line), "it listens")
        except BaseException:
            process.stop()
            raise
        self.address = found[1]
        return process


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip finds where it reaches no index: all that the mirror needs."""
    folder = tmp_path_factory.mktemp("wheels")
    needed = [one for one in with_dependencies(["registry-mirror"]) if one.metadata["Name"] != "registry-mirror"]
    pack_wheels([*needed, *with_dependencies(["setuptools"])], folder)
    return folder


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[RegistryProcess]:
    """Stands for every registry that the pages name."""
    with RegistryProcess(tmp_path / "registry") as process:
        for name in ("library/alpine", "prometheus/busybox"):
            publish_small(process.url, "docker.io", name, "latest")
        yield process


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of what a clone has, without what this one has besides."""
    folder = tmp_path / "sources"
    folder.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(_ROOT / name, folder)
    shutil.copytree(_ROOT / "mirror", folder / "mirror", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def _clean(home: Path, **more: str) -> dict[str, str]:
    """An environment that leads neither to this tree nor to an environment that is active."""
    path = [str(Path(sys.base_prefix) / "bin"), *os.environ["PATH"].split(os.pathsep)]
    return {"PATH": os.pathsep.join(path), "PYTHONPATH": "", "HOME": str(home), "TMPDIR": str(home), **more}


def _offline(wheels: Path) -> dict[str, str]:
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def test_readme(tmp_path: Path, sources: Path, wheels: Path, registry: RegistryProcess) -> None:
    """Three lines install it and serve the public registries; three more ask it for a list and two images."""
    upstreams = ",".join(f'{{"name":"{name}","url":"{registry.url}"}}' for name in ("docker.io", "quay.io"))
    env = _clean(
        tmp_path,
        **_offline(wheels),
        MIRROR__SERVER__LISTEN="127.0.0.1:0",
        MIRROR__STORE__ROOT=str(tmp_path / "store"),
        MIRROR__UPSTREAM=f"[{upstreams}]",
    )
    reader = _Reader(sources, "README.md", env, {})
    with reader.serves("serve"):
        reader.change("127.0.0.1:5000", reader.address)
        said = reader.does("client")
    assert '"tags": ["latest"]' in said
    assert said.count('"Digest": "sha256:') == 2


def test_quick_start(tmp_path: Path, sources: Path, wheels: Path, registry: RegistryProcess) -> None:
    """From the sources to a hit and a push: what skopeo pulled from Docker Hub came through the mirror, and is pushed
    to it under another name.
    """
    env = _clean(tmp_path, **_offline(wheels))
    reader = _Reader(sources, "docs/quick-start.md", env, {})
    reader.change("https://registry-1.docker.io", registry.url)
    reader.change("127.0.0.1:5000", "127.0.0.1:0")
    reader.does("install")
    # the shell that serves is the one that has installed
    reader.export(PATH=f"{sources}/.venv/bin:{env['PATH']}")
    with reader.serves("serve"):
        reader.change("127.0.0.1:5000", reader.address)
        said = reader.does("client")
    assert (sources / "try/alpine/manifest.json").exists()
    assert "Cache-Status: mirror; hit" in said
    assert re.search(r"^yes .* docker\.io/library/alpine:latest", said, re.MULTILINE), said
    assert any(request.is_blob for request in registry.requests())
    with reader.serves("serve again"):
        reader.change("127.0.0.1:5000", reader.address)
        said = reader.does("push")
    assert "Login Succeeded" in said
    assert '"Digest": "sha256:' in said
    assert re.search(r"^yes .* hosted .* corp/team/app:1", said, re.MULTILINE), said


def test_migration(tmp_path: Path, registry: RegistryProcess) -> None:
    """What a registry in proxy mode has kept is taken in, and pulled from the mirror while upstream is away."""
    with RegistryProcess(tmp_path / "old", proxy=registry.url) as old:
        source = f"docker://{old.address}/library/alpine:latest"
        run(["skopeo", "copy", "--src-tls-verify=false", source, f"dir:{tmp_path / 'pulled'}"])
        # it stores what it serves behind the answer
        blobs = publish_small(registry.url, "docker.io", "library/alpine", "latest").native.blobs
        kept = tmp_path / "old/data/docker/registry/v2/blobs/sha256"
        eventually(lambda: all((kept / one[7:9] / one[7:] / "data").exists() for one in blobs), "it has stored them")
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "hub-token").write_text("secret\n")
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "mirror").write_text(f'#!/bin/sh\nPYTHONPATH={_ROOT} exec {sys.executable} -m mirror "$@"\n')
    (commands / "mirror").chmod(0o755)
    env = {**_clean(tmp_path), "PATH": f"{commands}:{os.environ['PATH']}"}
    reader = _Reader(folder, "docs/migration.md", env, {})
    reader.change("0.0.0.0:5001", "127.0.0.1:0")
    reader.change("/var/lib/registry", str(tmp_path / "old/data"))
    reader.change("/var/lib/mirror", str(folder / "store"))
    reader.change("/etc/mirror/hub-token", str(folder / "hub-token"))
    reader.change("https://registry-1.docker.io", registry.url)
    assert re.search(r"^yes .* docker\.io/library/alpine:latest", reader.does("setting up"), re.MULTILINE)
    with registry.stopped(), reader.serves("serving"):
        reader.change("127.0.0.1:5001", reader.address)
        said = reader.does("client")
    assert (folder / "alpine/manifest.json").exists()
    assert "complete" in said

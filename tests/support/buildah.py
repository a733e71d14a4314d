"""buildah with its own storage and settings; it pulls through a mirror."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.mounts import overlay_works, unmount_below
from tests.support.podman import write_registries
from tests.support.process import run
from tests.support.pulls import OFFLINE


class Buildah:
    """`mirror` is `host:port`; it stands for docker.io. As root, without containers: `--isolation chroot`."""

    def __init__(self, directory: Path, mirror: str) -> None:
        directory.mkdir()
        self.directory = directory
        self._driver = "overlay" if overlay_works(directory) else "vfs"
        (directory / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        write_registries(directory, mirror)

    def __call__(self, *words: str | Path, timeout: float = 240.0) -> bytes:
        """Run one command and return what it says."""
        command: list[str | Path] = ["buildah", "--root", self.directory / "root", "--runroot", self.directory / "run"]
        command += ["--storage-driver", self._driver, "--registries-conf", self.directory / "registries.conf"]
        return run([*command, *words], env=OFFLINE, timeout=timeout)

    def build(self, context: Path, name: str, *options: str | Path) -> None:
        """Build a Dockerfile. Docker's own form of an image: OCI's knows no HEALTHCHECK."""
        ways: list[str | Path] = [
            "--isolation",
            "chroot",
            "--format",
            "docker",
            "--signature-policy",
            self.directory / "policy.json",
        ]
        self("build", *ways, *options, "--tag", name, context)

    def config(self, name: str) -> dict[str, Any]:
        """The settings with which a container of this image starts."""
        found: dict[str, Any] = json.loads(self("inspect", "--type", "image", name))["Docker"]["config"]
        return found

    @contextmanager
    def mounted(self, name: str) -> Iterator[Path]:
        """The root filesystem of a new container of an image."""
        policy: list[str | Path] = ["--signature-policy", self.directory / "policy.json"]
        container = self("from", "--pull-never", *policy, name).decode().strip()
        try:
            yield Path(self("mount", container).decode().strip())
        finally:
            self("rm", container)

    def close(self) -> None:
        """Unmount what it left."""
        unmount_below(self.directory)

"""skopeo as a client of the mirror: docker.io by the default upstream, ghcr.io by a path prefix."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from tests.support.images import Published, sha256
from tests.support.podman import write_registries
from tests.support.process import run
from tests.support.pulls import OFFLINE, wanted_blobs


class Skopeo:
    """skopeo with settings of its own; `mirror` is `host:port`."""

    def __init__(self, directory: Path, mirror: str) -> None:
        self._settings = write_registries(directory, mirror, mirrored=["ghcr.io"])

    def copy(self, image: str, target: Path, *options: str) -> None:
        """Copy into a directory that is emptied first, so that no earlier copy is used. Raises `CommandFailed`."""
        shutil.rmtree(target, ignore_errors=True)
        settings = ["--insecure-policy", f"--registries-conf={self._settings}"]
        run(["skopeo", *settings, "copy", *options, f"docker://{image}", f"dir:{target}"], env=OFFLINE)


def compare_directory(directory: Path, image: Published, *, every_platform: bool) -> None:
    """Each file of a `dir:` is named by the digest that it must have; manifests keep their bytes."""
    top = (directory / "manifest.json").read_bytes()
    assert sha256(top) == (image.digest if every_platform else image.native.digest)
    if every_platform and image.is_index:
        for one in image.images:
            assert (directory / f"{one.digest.partition(':')[2]}.manifest.json").read_bytes() == one.manifest
    for digest, size in wanted_blobs(image, every_platform=every_platform).items():
        place = directory / digest.partition(":")[2]
        assert place.stat().st_size == size
        with place.open("rb") as file:
            assert "sha256:" + hashlib.file_digest(file, "sha256").hexdigest() == digest

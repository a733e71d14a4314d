"""podman with its own storage and settings; it pulls through a mirror. Also the settings that it shares with skopeo and
buildah.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.mounts import overlay_works, unmount_below
from tests.support.process import run
from tests.support.pulls import OFFLINE


def write_registries(directory: Path, mirror: str, *, mirrored: Sequence[str] = (), moved: Sequence[str] = ()) -> Path:
    """A registries.conf in which `mirror` (`host:port`) stands for docker.io.

    It also stands for each registry of `mirrored`, by a mirror entry, and of `moved`, by a location that is its own.
    """
    entries = [("docker.io", "docker.io", mirror), *((name, name, f"{mirror}/{name}") for name in mirrored)]
    text = ""
    for prefix, location, entry in entries:
        text += f'[[registry]]\nprefix = "{prefix}"\nlocation = "{location}"\n'
        text += f'[[registry.mirror]]\nlocation = "{entry}"\ninsecure = true\n'
    for prefix in moved:
        text += f'[[registry]]\nprefix = "{prefix}"\nlocation = "{mirror}/{prefix}"\ninsecure = true\n'
    file = directory / "registries.conf"
    file.write_text(text)
    return file


class Podman:
    """`mirror` is `host:port`. With `partial`, layers are pulled in parts, which takes the overlay driver."""

    def __init__(self, directory: Path, mirror: str, *, moved: Sequence[str] = (), partial: bool = False) -> None:
        directory.mkdir(exist_ok=True)
        overlay = overlay_works(directory)
        assert overlay or not partial, "no overlay can be mounted here, and podman pulls parts into overlays alone"
        storage = directory / "storage.conf"
        options = '{enable_partial_images = "true", use_hard_links = "false", ostree_repos = ""}' if partial else "{}"
        storage.write_text(
            f"""
            [storage]
            driver = "{"overlay" if overlay else "vfs"}"
            graphroot = "{directory}/root"
            runroot = "{directory}/run"
            [storage.options]
            pull_options = {options}
            """
        )
        registries = write_registries(directory, mirror, moved=moved)
        self._settings = {"CONTAINERS_REGISTRIES_CONF": str(registries), "CONTAINERS_STORAGE_CONF": str(storage)}
        if partial:
            # podman before 4.7 never closes the files that it writes: a garbage collection does, sometimes before their
            # owner and mode are set. podman then leaves out every file that follows, and still ends with 0.
            self._settings["GOGC"] = "off"
        self._directory = directory

    def __call__(self, *words: str) -> str:
        """Run one command and return what it says."""
        return run(["podman", "--events-backend=none", *words], env={**OFFLINE, **self._settings}).decode().strip()

    def inspect(self, name: str) -> dict[str, Any]:
        """The output of `podman inspect` for an image."""
        image: dict[str, Any] = json.loads(self("image", "inspect", name))[0]
        return image

    @contextmanager
    def mounted(self, name: str) -> Iterator[Path]:
        """The root filesystem of an image."""
        try:
            yield Path(self("image", "mount", name))
        finally:
            self("image", "unmount", name)

    def close(self) -> None:
        """Unmounts what is left."""
        unmount_below(self._directory)

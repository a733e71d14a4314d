"""Reads lists of images (`lists.py`) from files and folders. All calls block.

A file that the caller names must be readable and have the expected format. A folder of Kubernetes manifests is read as
a whole, so a template or a huge file in it only causes a warning. But a file that should be YAML and is not stays an
error, because the images that it names are unknown.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from mirror.errors import reason_of
from mirror.prefetch.documents import ListMalformed
from mirror.prefetch.lists import LARGEST, Listed, read_compose, read_env, read_kubernetes, read_plain

#: The path that stands for standard input.
STANDARD_INPUT: Final = Path("-")

_MANIFESTS: Final = (".yaml", ".yml", ".json")


class _TooLarge(ListMalformed):
    """A file that is larger than `LARGEST`."""


def plain_file(path: Path) -> Listed:
    """The images of a plain list: one image a line. Raises `ListMalformed`."""
    return read_plain(_read(path), _name(path))


def kubernetes(path: Path) -> Listed:
    """The images of a file with Kubernetes manifests, or of all such files in a folder and its subfolders.

    Hidden files and folders are ignored, as `kubectl` does it. Raises `ListMalformed`.
    """
    if path == STANDARD_INPUT or not path.is_dir():
        return read_kubernetes(_read(path), _name(path))
    listed = Listed()
    for file in _manifests(path):
        try:
            listed += read_kubernetes(_read(file), _name(file))
        except _TooLarge as error:
            listed += Listed(warnings=(f"{error}; left out",))
    return listed


def compose_file(path: Path, environment: Mapping[str, str]) -> Listed:
    """The images of a Compose file. Variables come from `environment`, then from a `.env` file beside the Compose file.

    Raises `ListMalformed`.
    """
    beside = path.parent / ".env"
    if path != STANDARD_INPUT and beside.is_file():
        environment = read_env(_read(beside), environment)
    return read_compose(_read(path), _name(path), environment)


def _manifests(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise ListMalformed(str(error.filename), 0, reason_of(error))

    for parent, below, files in os.walk(folder, onerror=refuse):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(files):
            path = Path(parent, name)
            if path.suffix.lower() in _MANIFESTS and not name.startswith(".") and path.is_file():
                yield path


def _name(path: Path) -> str:
    return "standard input" if path == STANDARD_INPUT else str(path)


def _read(path: Path) -> str:
    """The text of a file or of standard input: UTF-8, at most `LARGEST` bytes. Raises `ListMalformed`."""
    try:
        if path == STANDARD_INPUT:
            content = sys.stdin.buffer.read(LARGEST + 1)
        else:
            with path.open("rb") as file:
                content = file.read(LARGEST + 1)
    except OSError as error:
        raise ListMalformed(_name(path), 0, reason_of(error)) from error
    if len(content) > LARGEST:
        raise _TooLarge(_name(path), 0, f"more than {LARGEST >> 20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ListMalformed(_name(path), line, "not text in UTF-8") from error

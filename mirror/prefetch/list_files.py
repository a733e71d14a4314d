"""Reads lists of images (`lists.py`) out of files and folders. All calls block.

A file that was named must be readable and be what it was said to be. A folder of Kubernetes manifests is looked through
as a whole, so a template or a huge file in it is a warning; but what should be YAML and is not stays a mistake, for
nobody can say which images it names.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from mirror.prefetch.lists import LARGEST, Listed, ListMalformed, read_compose, read_env, read_kubernetes, read_plain

__all__ = ["STANDARD_INPUT", "compose_file", "kubernetes", "plain_file"]

#: The name that means standard input.
STANDARD_INPUT: Final = Path("-")

_MANIFESTS: Final = (".yaml", ".yml", ".json")


class _TooLarge(ListMalformed):
    """More than is read of one file."""


def plain_file(path: Path) -> Listed:
    """One image a line. Raises `ListMalformed`."""
    return read_plain(_read(path), _name(path))


def kubernetes(path: Path) -> Listed:
    """A file with Kubernetes manifests, or every one in a folder and all below it. Raises `ListMalformed`.

    Hidden files and folders are passed over, as `kubectl` does it.
    """
    if path == STANDARD_INPUT or not path.is_dir():
        return read_kubernetes(_read(path), _name(path))
    found = Listed()
    for file in _manifests(path):
        try:
            found += read_kubernetes(_read(file), _name(file))
        except _TooLarge as error:
            found += Listed(warnings=(f"{error}; left out",))
    return found


def compose_file(path: Path, environment: Mapping[str, str]) -> Listed:
    """A Compose file, with the variables of a `.env` file beside it. Raises `ListMalformed`."""
    beside = path.parent / ".env"
    if path != STANDARD_INPUT and beside.is_file():
        environment = read_env(_read(beside), environment)
    return read_compose(_read(path), _name(path), environment)


def _manifests(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise ListMalformed(str(error.filename), 0, error.strerror or "cannot be read")

    for at, below, files in os.walk(folder, onerror=refuse):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(files):
            path = Path(at, name)
            if path.suffix.lower() in _MANIFESTS and not name.startswith(".") and path.is_file():
                yield path


def _name(path: Path) -> str:
    return "standard input" if path == STANDARD_INPUT else str(path)


def _read(path: Path) -> str:
    """At most `LARGEST` bytes of UTF-8."""
    try:
        if path == STANDARD_INPUT:
            content = sys.stdin.buffer.read(LARGEST + 1)
        else:
            with path.open("rb") as file:
                content = file.read(LARGEST + 1)
    except OSError as error:
        raise ListMalformed(_name(path), 0, error.strerror or "cannot be read") from error
    if len(content) > LARGEST:
        raise _TooLarge(_name(path), 0, f"more than {LARGEST >> 20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ListMalformed(_name(path), line, "not text in UTF-8") from error

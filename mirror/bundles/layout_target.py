"""Writes a layout as a tar file or a folder, under a temporary name beside the final one until it is complete.

create ── add … ──> finish()   synced, renamed, parent folder synced
               └──> abandon()  nothing is left
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from mirror.bundles.layout_source import file_errors
from mirror.bundles.tar_members import END, file_header, folder_header, padding
from mirror.errors import BundleError
from mirror.folders import sync_folder


class LayoutTarget(Protocol):
    """A layout being written. Every call may raise `BundleError`; after an error only `abandon` may be called."""

    def add(self, name: str, size: int, chunks: Iterable[bytes]) -> None:
        """Write a file of `size` bytes. Errors that `chunks` raises are passed on."""

    def finish(self) -> None:
        """Give the layout its final name. When this returns it is complete and durable."""

    def abandon(self) -> None:
        """Delete what was written. Repeatable, harmless after `finish`."""


def create_layout(path: Path, *, folder: bool) -> LayoutTarget:
    """Begin a layout at `path`. A tar replaces an existing file; a folder must not exist yet, or be empty.

    Raises `BundleError` if the layout cannot be written there.
    """
    return FolderTarget(path) if folder else TarTarget(path)


def _beside(path: Path) -> Path:
    return path.parent / f".{path.name}.{secrets.token_hex(8)}.part"


class TarTarget:
    """A layout as a tar file. The same files in the same order always give the same bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = _beside(path)
        self._folders: set[str] = set()
        with file_errors(f"writing {path}"):
            self._file = self._temporary.open("xb", buffering=1 << 20)

    def __repr__(self) -> str:
        return f"<TarTarget {self._path}>"

    def add(self, name: str, size: int, chunks: Iterable[bytes]) -> None:
        with file_errors(f"writing {self._path}"):
            for folder in _parents(name):
                if folder not in self._folders:
                    self._folders.add(folder)
                    self._file.write(folder_header(folder))
            self._file.write(file_header(name, size))
        written = 0
        for chunk in chunks:
            with file_errors(f"writing {self._path}"):
                self._file.write(chunk)
            written += len(chunk)
        _expect_size(name, size, written)
        with file_errors(f"writing {self._path}"):
            self._file.write(padding(size))

    def finish(self) -> None:
        with file_errors(f"writing {self._path}"):
            self._file.write(END)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._temporary.rename(self._path)
            sync_folder(self._path.parent)

    def abandon(self) -> None:
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._temporary.unlink()


class FolderTarget:
    """A layout as a folder, which appears under its final name only when it is complete."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = _beside(path)
        with file_errors(f"writing {path}"):
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise BundleError(f"{path} exists already and is not empty")
            self._temporary.mkdir()

    def __repr__(self) -> str:
        return f"<FolderTarget {self._path}>"

    def add(self, name: str, size: int, chunks: Iterable[bytes]) -> None:
        place = self._temporary / name
        with file_errors(f"writing {self._path}"):
            place.parent.mkdir(parents=True, exist_ok=True)
            file = place.open("xb", buffering=1 << 20)
        written = 0
        try:
            for chunk in chunks:
                with file_errors(f"writing {self._path}"):
                    file.write(chunk)
                written += len(chunk)
            _expect_size(name, size, written)
            with file_errors(f"writing {self._path}"):
                file.flush()
                os.fsync(file.fileno())
        finally:
            with suppress(OSError):
                file.close()

    def finish(self) -> None:
        with file_errors(f"writing {self._path}"):
            for folder, _folders, _files in os.walk(self._temporary):
                sync_folder(Path(folder))
            self._temporary.rename(self._path)
            sync_folder(self._path.parent)

    def abandon(self) -> None:
        shutil.rmtree(self._temporary, ignore_errors=True)


def _parents(name: str) -> list[str]:
    return [str(parent) for parent in reversed(Path(name).parents) if str(parent) != "."]


def _expect_size(name: str, size: int, written: int) -> None:
    if written != size:
        raise BundleError(f"{name} has {written} bytes, where {size} were expected")

"""Small records that belong to no repository (pins, jobs, what a sync did last), a file each, replaced whole.

    absent ── write() ──> present ── write() ──> replaced by a rename; a reader sees the old or the new one
                             └── drop() ──> absent

A file's name is a hash of its key, because keys hold what file names may not. A note that does not parse, cut by an old
crash or foreign, counts as absent. One that the disk does not give does not: a pin that cannot be read for want of a
descriptor would be a pin that does not hold.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mirror.store.files import make_folder, store_errors, write_whole
from mirror.store.layout import Layout

__all__ = ["Notes"]


class Notes:
    """Of one kind, in a folder of that name below the root. All calls block shortly."""

    def __init__(self, layout: Layout, kind: str) -> None:
        self._layout = layout
        self._folder = layout.notes(kind)

    def read(self, key: str) -> dict[str, Any] | None:
        """What was written last; None where there is nothing that makes sense. Raises `StoreError`."""
        return _parsed(self._path(key))

    def holds(self, key: str) -> bool:
        """Whether there is one, be it that it cannot be read."""
        try:
            self._path(key).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return True

    def write(self, key: str, note: Mapping[str, Any]) -> None:
        """Durable on return. Raises `StoreError`, `StoreFull`."""
        with store_errors("writing a note"):
            make_folder(self._folder, below=self._layout.root)
            content = json.dumps({"key": key, **note}, ensure_ascii=False, indent=1).encode()
            write_whole(self._path(key), content, through=self._layout.ingests)

    def drop(self, key: str) -> bool:
        """Whether there was one. Repeatable. Raises `StoreError`."""
        with store_errors("dropping a note"):
            try:
                self._path(key).unlink()
            except FileNotFoundError:
                return False
        return True

    def changed(self) -> int:
        """Another number after each change, as far as the clock of the file system tells."""
        try:
            return self._folder.stat().st_mtime_ns
        except OSError:
            return 0

    def all(self) -> Iterator[dict[str, Any]]:
        """In no order; each holds its `key`. What makes no sense is passed over. Raises `StoreError`."""
        names: list[str] = []
        with store_errors("listing notes"), suppress(FileNotFoundError, NotADirectoryError):
            names = os.listdir(self._folder)
        for name in names:
            note = _parsed(self._folder / name) if name.endswith(".json") else None
            if note is not None and isinstance(note.get("key"), str) and self._path(note["key"]).name == name:
                yield note

    def _path(self, key: str) -> Path:
        return self._folder / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.json"


def _parsed(path: Path) -> dict[str, Any] | None:
    try:
        with store_errors("reading a note"), suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            note = json.loads(path.read_bytes())
            return note if isinstance(note, dict) else None
    except (ValueError, RecursionError):
        return None
    return None

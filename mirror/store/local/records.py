"""Small records that belong to no repository (pins, jobs, what a sync did last), a file each, replaced whole.

    absent ── write() ──> present ── write() ──> replaced by a rename; a reader sees the old or the new one
                             └── drop() ──> absent

A file's name is a hash of its key, because keys hold what file names may not. For most kinds a note that does not
parse, cut by an old crash or foreign, counts as absent. One that the disk does not give does not. Who must not take a
damaged note for none, as with a pin, asks with `look`, which tells of both.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from mirror.policy.unread import UnreadNote, note_name
from mirror.store.local.durable import last_change, make_folder, store_errors, write_whole
from mirror.store.local.layout import Layout

__all__ = ["JsonRecords"]

T = TypeVar("T")

_NAME: Final = re.compile(r"([0-9a-f]{32})\.json")
#: The key is written first, so that it is what is left of a note that was cut.
_KEY: Final = re.compile(rb'\{\s*"key":\s*("(?:[^"\\]|\\.)*")')
#: What says nothing about the file, but that we could not look.
_OURS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN})


class JsonRecords:
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

    def changed(self) -> int | None:
        """Another number after each change; None: that cannot be told, so the notes must be read (`last_change`)."""
        return last_change(self._folder)

    def all(self) -> Iterator[dict[str, Any]]:
        """In no order; each holds its `key`. What makes no sense is passed over. Raises `StoreError`."""
        names: list[str] = []
        with store_errors("listing notes"), suppress(FileNotFoundError, NotADirectoryError):
            names = os.listdir(self._folder)
        for name in names:
            note = _parsed(self._folder / name) if name.endswith(".json") else None
            if note is not None and isinstance(note.get("key"), str) and self._path(note["key"]).name == name:
                yield note

    def look(self, read: Callable[[dict[str, Any]], T | None]) -> tuple[list[T], list[UnreadNote]]:
        """What `read` makes of every note, in no order, and those that are there and cannot be read, or make no sense
        to it (None). Files of other names are foreign.

        Raises `StoreError` where the folder is not given, or a file for a reason that is not its own.
        """
        names: list[str] = []
        with store_errors(f"listing {self._folder}"), suppress(FileNotFoundError):
            names = os.listdir(self._folder)
        notes, unread = [], []
        for name in names:
            if found := _NAME.fullmatch(name):
                one = self._look_at(self._folder / name, found[1])
                if one is None:
                    continue
                if isinstance(one, UnreadNote):
                    unread.append(one)
                elif (note := read(one)) is None:
                    unread.append(self._spoiled(one))
                else:
                    notes.append(note)
        return notes, unread

    def _spoiled(self, note: Mapping[str, Any]) -> UnreadNote:
        path = self._path(note["key"])
        return UnreadNote(self._folder.name, str(path), path.stem, "its content makes no sense", note["key"])

    def _look_at(self, path: Path, name: str) -> dict[str, Any] | UnreadNote | None:
        """None: it was dropped meanwhile."""
        try:
            content = path.read_bytes()
        except OSError as error:
            if error.errno in _OURS:
                with store_errors(f"reading a note, {path}"):
                    raise
            if isinstance(error, FileNotFoundError) and not path.is_symlink():
                return None
            return UnreadNote(self._folder.name, str(path), name, os.strerror(error.errno or 0))
        note = _loaded(content)
        if isinstance(note, dict) and _is_named(note.get("key"), name):
            return note
        found = _KEY.match(content)
        key = _loaded(found[1]) if found else None
        if _is_named(key, name):
            return UnreadNote(self._folder.name, str(path), name, "its content is cut or garbled", str(key))
        return UnreadNote(self._folder.name, str(path), name, "its content is not a note, or another's")

    def _path(self, key: str) -> Path:
        return self._folder / f"{note_name(key)}.json"


def _loaded(content: bytes) -> object:
    """None for what is no JSON."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _is_named(key: object, name: str) -> bool:
    """Whether the note of this key has a file of this name."""
    try:
        return isinstance(key, str) and note_name(key) == name
    except ValueError:
        # half a surrogate pair
        return False


def _parsed(path: Path) -> dict[str, Any] | None:
    try:
        with store_errors("reading a note"), suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            note = json.loads(path.read_bytes())
            return note if isinstance(note, dict) else None
    except (ValueError, RecursionError):
        return None
    return None

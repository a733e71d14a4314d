"""Small JSON records that belong to no repository (pins, jobs, the last result of a sync), each in its own file.

    absent ── put() ──> present ── put() ──> replaced by a rename; a reader sees the old or the new one
                           └── drop() ──> absent

The name of a file is a hash of its key, because a key may contain characters that a file name may not. For most kinds,
a record that does not parse (truncated by an old crash, or foreign) counts as absent. A record that cannot be read from
the disk raises an error. A caller that must not take a damaged record for an absent one, as with pins, uses `look`,
which returns the unreadable records as well.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from mirror.errors import reason_of
from mirror.policy.unreadable_records import UnreadableRecord, record_file_name
from mirror.ports import Expected, Version, Versioned
from mirror.store.local.durable import last_change, make_folder, store_errors, write_whole
from mirror.store.local.layout import Layout
from mirror.store.local.record_versions import only_writer, version_of

T = TypeVar("T")

_NAME: Final = re.compile(r"([0-9a-f]{32})\.json")
#: The key is written first, so that it can still be read if the record is truncated.
_KEY: Final = re.compile(rb'\{\s*"key":\s*("(?:[^"\\]|\\.)*")')
#: Errors of this process or the system, not of the file, which could not be examined.
_OURS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN})


class JsonRecords:
    """`Records` of one kind, in the folder of that name below the root."""

    def __init__(self, layout: Layout, kind: str) -> None:
        self._layout = layout
        self._folder = layout.records(kind)

    def __repr__(self) -> str:
        return f"<JsonRecords {self._folder}>"

    def get(self, key: str) -> dict[str, Any] | None:
        versioned = self.versioned(key)
        return versioned.record if versioned else None

    def versioned(self, key: str) -> Versioned[dict[str, Any]] | None:
        content = _read(self._path(key))
        record = None if content is None else _object(content)
        return None if content is None or record is None else Versioned(record, version_of(content))

    def has(self, key: str) -> bool:
        """True if there is a record of this key, even one that cannot be read."""
        try:
            self._path(key).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return True

    def put(self, key: str, record: Mapping[str, Any], *, expect: Expected = None) -> Version:
        content = json.dumps({"key": key, **record}, ensure_ascii=False, indent=1).encode()
        with store_errors("writing a record"):
            make_folder(self._folder, below=self._layout.root)
            write_whole(self._path(key), content, through=self._layout.ingests, guard=self._only_writer(key, expect))
        return version_of(content)

    def drop(self, key: str, *, expect: Expected = None) -> bool:
        with store_errors("deleting a record"), self._only_writer(key, expect):
            try:
                self._path(key).unlink()
            except FileNotFoundError:
                return False
        return True

    def changed(self) -> int | None:
        """A number that differs after each change; None if unknown: they must then be read (see `last_change`)."""
        return last_change(self._folder)

    def all(self) -> Iterator[dict[str, Any]]:
        names: list[str] = []
        with store_errors("listing records"), suppress(FileNotFoundError, NotADirectoryError):
            names = os.listdir(self._folder)
        for name in names:
            content = _read(self._folder / name) if name.endswith(".json") else None
            record = None if content is None else _object(content)
            if record is not None and isinstance(record.get("key"), str) and self._path(record["key"]).name == name:
                yield record

    def look(self, read: Callable[[dict[str, Any]], T | None]) -> tuple[list[T], list[UnreadableRecord]]:
        """The results of `read` for every record, in no order, and the records that cannot be read or for which `read`
        returned None. Files of other names are foreign and skipped.

        Raises `StoreError` if the folder cannot be listed, or if a file cannot be read for a reason that lies in this
        process or the system (`_OURS`).
        """
        names: list[str] = []
        with store_errors(f"listing {self._folder}"), suppress(FileNotFoundError):
            names = os.listdir(self._folder)
        results: list[T] = []
        unread: list[UnreadableRecord] = []
        for match in filter(None, map(_NAME.fullmatch, names)):
            path = self._folder / match[0]
            record = self._examine(path)
            if isinstance(record, UnreadableRecord):
                unread.append(record)
            elif record is not None and (result := read(record)) is not None:
                results.append(result)
            elif record is not None:
                unread.append(self._unread(path, "its content is not valid", record["key"]))
        return results, unread

    def _examine(self, path: Path) -> dict[str, Any] | UnreadableRecord | None:
        """The record in this file, or why it cannot be read; None if the file was deleted in the meantime.

        Raises `StoreError` for an error in `_OURS`.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            if error.errno in _OURS:
                with store_errors(f"reading a record, {path}"):
                    raise
            if isinstance(error, FileNotFoundError) and not path.is_symlink():
                return None
            return self._unread(path, reason_of(error))
        record = _object(content)
        if record is not None and _is_named(record.get("key"), path.stem):
            return record
        match = _KEY.match(content)
        key = _loaded(match[1]) if match else None
        if _is_named(key, path.stem):
            return self._unread(path, "its content is truncated or damaged", str(key))
        return self._unread(path, "its content is not a record, or that of another key")

    def _unread(self, path: Path, why: str, key: str = "") -> UnreadableRecord:
        return UnreadableRecord(self._folder.name, str(path), path.stem, why, key)

    def _only_writer(self, key: str, expect: Expected) -> AbstractContextManager[None]:
        return only_writer(self._layout, self._path(key), expect, version=_version)

    def _path(self, key: str) -> Path:
        return self._folder / f"{record_file_name(key)}.json"


def _loaded(content: bytes) -> object:
    """The parsed JSON; None if the content is not JSON."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _is_named(key: object, name: str) -> bool:
    """True if the record of this key belongs in a file of this name."""
    try:
        return isinstance(key, str) and record_file_name(key) == name
    except ValueError:
        # a lone surrogate cannot be encoded
        return False


def _object(content: bytes) -> dict[str, Any] | None:
    """The JSON object; None if the content is anything else."""
    loaded = _loaded(content)
    return loaded if isinstance(loaded, dict) else None


def _version(content: bytes) -> Version | None:
    """The version of a record; None if it does not parse, and so counts as absent."""
    return None if _object(content) is None else version_of(content)


def _read(path: Path) -> bytes | None:
    """The content of the file; None if there is no such file. Raises `StoreError`."""
    with store_errors("reading a record"), suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return path.read_bytes()
    return None

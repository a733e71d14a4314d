"""Small JSON records of one kind in a tree of records: what `store/local/json_records.py` is on the local disk.

state/<kind>/<hash>.json      {"key": …, …}, under a hash of the key
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, TypeVar

from mirror.errors import RecordChanged
from mirror.policy.unreadable_records import UnreadableRecord, record_file_name
from mirror.ports import ABSENT, Expected, RecordTree, Version, Versioned

T = TypeVar("T")

_NAME: Final = re.compile(r"[0-9a-f]{32}\.json")


class TreeRecords:
    """`CheckedRecords` of one kind. May be used from any thread."""

    def __init__(
        self,
        tree: RecordTree,
        kind: str,
        changes: Callable[[str], int | None],
        changed: RecordTree | None = None,
    ) -> None:
        """`changes` counts the changes of the records of a folder; None if it is not known whether there were any.
        `changed` reads what is to be changed, if the tree may be out of date; None if it will do.
        """
        self._tree = tree
        self._changed = changed or tree
        self._kind = kind
        self._folder = f"state/{kind}"
        self._changes = changes

    def __repr__(self) -> str:
        return f"<TreeRecords {self._kind} in {self._tree!r}>"

    def get(self, key: str) -> dict[str, Any] | None:
        versioned = self.versioned(key)
        return versioned.record if versioned else None

    def versioned(self, key: str) -> Versioned[dict[str, Any]] | None:
        found = self._tree.read(self._path(key))
        record = None if found is None else _object(found.record)
        return None if found is None or record is None else Versioned(record, found.version)

    def has(self, key: str) -> bool:
        return self._tree.read(self._path(key)) is not None

    def put(self, key: str, record: Mapping[str, Any], *, expect: Expected = None) -> Version:
        content = json.dumps({"key": key, **record}, ensure_ascii=False, indent=1).encode()
        try:
            version = self._changed.write(self._path(key), content, expect=expect)
        except RecordChanged:
            # one that does not parse counts as absent
            found = self._changed.read(self._path(key)) if expect is ABSENT else None
            if found is None or _object(found.record) is not None:
                raise
            version = self._changed.write(self._path(key), content, expect=found.version)
        self._changed.flush()
        return version

    def drop(self, key: str, *, expect: Expected = None) -> bool:
        while True:
            found = self._changed.read(self._path(key))
            if found is None:
                if isinstance(expect, str):
                    raise RecordChanged("the record was deleted meanwhile")
                return False
            if expect is not None and expect != (found.version if _object(found.record) is not None else ABSENT):
                raise RecordChanged("the record was changed meanwhile")
            with suppress(RecordChanged):
                self._changed.drop(self._path(key), expect=found.version)
                self._changed.flush()
                return True

    def changed(self) -> int | None:
        """A number that differs after each change; None if it is not known whether there was one."""
        return self._changes(self._folder)

    def all(self) -> Iterator[dict[str, Any]]:
        for name in self._names():
            found = self._tree.read(f"{self._folder}/{name}")
            record = None if found is None else _object(found.record)
            if record is not None and _is_named(record.get("key"), name):
                yield record

    def look(self, read: Callable[[dict[str, Any]], T | None]) -> tuple[list[T], list[UnreadableRecord]]:
        """See `CheckedRecords.look`. Raises `StoreError` if a record cannot be read."""
        results: list[T] = []
        unread: list[UnreadableRecord] = []
        for name in self._names():
            key = f"{self._folder}/{name}"
            found = self._tree.read(key)
            if found is None:
                continue
            record = _object(found.record)
            if record is None or not _is_named(record.get("key"), name):
                unread.append(self._unread(key, "its content is not a record, or that of another key"))
            elif (result := read(record)) is not None:
                results.append(result)
            else:
                unread.append(self._unread(key, "its content is not valid", record["key"]))
        return results, unread

    def _names(self) -> list[str]:
        return [name for name in self._tree.names(self._folder) if _NAME.fullmatch(name)]

    def _unread(self, key: str, why: str, of: str = "") -> UnreadableRecord:
        name = key.rpartition("/")[2].removesuffix(".json")
        return UnreadableRecord(self._kind, f"{key} of the bucket", name, why, of)

    def _path(self, key: str) -> str:
        return f"{self._folder}/{record_file_name(key)}.json"


def _object(content: bytes) -> dict[str, Any] | None:
    """The JSON object; None if the content is anything else."""
    try:
        loaded = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return loaded if isinstance(loaded, dict) else None


def _is_named(key: object, name: str) -> bool:
    """True if the record of this key has this name."""
    try:
        return isinstance(key, str) and f"{record_file_name(key)}.json" == name
    except ValueError:
        # a lone surrogate cannot be encoded
        return False

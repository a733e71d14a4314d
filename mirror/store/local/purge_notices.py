"""Notices of recent purges, for processes that still have the purged manifests and tags in memory.

tell() ── a note per repository ──> new() of each other process, within a second ──> old ──> dropped by a later tell()
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final

from mirror.errors import RequestError, StoreError
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo, check_name, check_registry
from mirror.store.local.json_records import JsonRecords

#: Seconds after which every process has read the notice.
_OLD: Final = 600.0

_Purge = tuple[Repo, list[str], list[Digest]]


class Purges:
    """The notices as one process sees them. All calls block briefly, and raise `StoreError`."""

    def __init__(self, notes: JsonRecords, *, now: Callable[[], float] = time.time) -> None:
        self._notes = notes
        self._now = now
        self._changed = self._notes.changed()
        self._seen: set[str] = set()
        with suppress(StoreError):  # then `new` returns older notices too, and only costs answers from memory
            self._seen = {note["key"] for note in notes.all()}

    def tell(self, repo: Repo, tags: Collection[str], digests: Collection[Digest]) -> None:
        """Write a notice that these tags and digests of a repository were purged; drops notices that are too old."""
        for note in self._notes.all():
            at = note.get("at")
            if not isinstance(at, int | float) or not 0 <= self._now() - at <= _OLD:
                self._notes.drop(note["key"])
        key = secrets.token_hex(8)
        written = {"registry": repo.registry, "name": repo.name, "tags": [*tags], "digests": [*map(str, digests)]}
        self._notes.put(key, {"at": self._now(), **written})

    def new(self) -> list[_Purge]:
        """The purges noted since the last call; at the first call, since this object was made."""
        changed = self._notes.changed()
        if changed is not None and changed == self._changed:
            return []
        notes = list(self._notes.all())
        self._changed = changed
        found = [purge for note in notes if note["key"] not in self._seen and (purge := _read(note))]
        self._seen = {note["key"] for note in notes}
        return found


def _read(note: dict[str, object]) -> _Purge | None:
    tags, digests = note.get("tags"), note.get("digests")
    if not isinstance(tags, list) or not isinstance(digests, list):
        return None
    try:
        repo = Repo(check_registry(str(note.get("registry"))), check_name(str(note.get("name"))))
        return repo, [str(tag) for tag in tags], [Digest.parse(str(digest)) for digest in digests]
    except RequestError:
        return None

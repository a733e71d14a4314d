"""Notices of recent purges, for processes that still have in memory what was purged: manifests, tags, and the
right of a repository to serve blobs.

publish() ── a record ──> new() of each other process, within a second ──> old ──> deleted by a later publish()
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from mirror.errors import StoreError
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.store.local.json_records import JsonRecords
from mirror.values.json_form import DigestField, JsonForm, Moment, RepoField

#: Moment after which every process has read the notice.
_OLD: Final = 600.0


@dataclass(frozen=True, slots=True)
class PurgeNotice:
    """Tags and digests of a repository that were purged, `at` in epoch seconds."""

    at: Moment
    repo: RepoField
    tags: tuple[str, ...]
    digests: tuple[DigestField, ...]


_NOTICE: Final = JsonForm(PurgeNotice)


class PurgeNotices:
    """The notices as one process sees them. All calls block briefly, and raise `StoreError`."""

    def __init__(self, records: JsonRecords, *, now: Callable[[], float] = time.time) -> None:
        self._records = records
        self._now = now
        self._changed = self._records.changed()
        self._seen: set[str] = set()
        with suppress(StoreError):  # then `new` returns older notices too, and only costs answers from memory
            self._seen = {record["key"] for record in records.all()}

    def seen(self) -> list[str]:
        """The notices that this process knows: it answers with nothing of theirs from memory any more."""
        return sorted(self._seen)

    def here(self) -> list[str]:
        """The notices that are here now. Raises `StoreError`."""
        return sorted(record["key"] for record in self._records.all())

    def publish(self, repo: Repo, tags: Collection[str], digests: Collection[Digest]) -> None:
        """Write a notice that these tags and digests of a repository were purged; drops notices that are too old."""
        for record in self._records.all():
            notice = _NOTICE.from_json(record)
            if notice is None or not 0 <= self._now() - notice.at <= _OLD:
                self._records.drop(record["key"])
        notice = PurgeNotice(self._now(), repo, tuple(tags), tuple(digests))
        self._records.put(secrets.token_hex(8), _NOTICE.to_json(notice))

    def new(self) -> list[PurgeNotice]:
        """The purges noted since the last call; at the first call, since this object was made."""
        changed = self._records.changed()
        if changed is not None and changed == self._changed:
            return []
        records = {record["key"]: record for record in self._records.all()}
        self._changed = changed
        seen, self._seen = self._seen, set(records)
        notices = (_NOTICE.from_json(record) for key, record in records.items() if key not in seen)
        return [notice for notice in notices if notice]

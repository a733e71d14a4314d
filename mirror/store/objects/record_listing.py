"""Brings the memory of the records up to date by listing the bucket.

    begin ── a page of the listing ── compare ── … ── the rest of each prefix ──> complete

A listing may be late, so nothing is decided by it: it adds names that the memory lacks, and makes the memory ask again
where both differ. It can be repeated at any time, while others read and write.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, islice
from typing import Final

from mirror.errors import IndexUnavailable, StoreError
from mirror.ports import ListedPart, ListedRecord, ListingStart, ObjectInfo, ObjectLister, RecordMemory
from mirror.store.objects.record_tree import DELETED_SIZE, NAMES

#: The beginnings of the keys of all records, sorted.
PREFIXES: Final = (f"{NAMES}/", "repositories/", "state/", "states/")
_PAGE: Final = 1000
#: Behind every name in a folder.
_LAST: Final = "\U0010ffff"


class RecordListing:
    """One listing of all records."""

    def __init__(self, bucket: ObjectLister, memory: RecordMemory) -> None:
        self._bucket = bucket
        self._memory = memory
        #: Records that were listed so far, and how many of them the memory lacked or had differently.
        self.listed = 0
        self.changed = 0
        #: True once the memory is complete by this listing.
        self.is_complete = False

    def __repr__(self) -> str:
        return f"<RecordListing {self.listed} listed{', complete' if self.is_complete else ''}>"

    def steps(self) -> Iterator[None]:
        """Lists; each step blocks for one page. Raises `StoreError`; the memory is then as complete as it was."""
        try:
            start = self._memory.begin_listing()
            for prefix in PREFIXES:
                yield from self._list(prefix, start)
            self.is_complete = self._memory.completed(start)
        except IndexUnavailable as error:
            raise StoreError(f"the records cannot be compared now: {error}") from error

    def _list(self, prefix: str, start: ListingStart) -> Iterator[None]:
        """Compares folder by folder: stores sort the keys of one folder alike, and folders as they like."""
        seen: set[str] = set()
        folder, after = "", ""
        for page in _pages(self._bucket.list(prefix)):
            parts = []
            for below, infos in groupby(page, lambda info: info.key.rpartition("/")[0]):
                if below != folder:
                    if folder:
                        parts.append(ListedPart(after, f"{folder}/{_LAST}", ()))
                    folder, after = below, f"{below}/"
                    seen.add(below)
                listed = [ListedRecord(info.key, info.version, info.size == DELETED_SIZE) for info in infos]
                parts.append(ListedPart(after, listed[-1].key, listed))
                after = listed[-1].key
            self.changed += self._memory.compare(start, parts)
            self.listed += len(page)
            yield
        if folder:
            self.changed += self._memory.compare(start, [ListedPart(after, f"{folder}/{_LAST}", ())])
        after, before = prefix, f"{prefix}{_LAST}"
        while folders := self._memory.listed_folders(after, before, _PAGE):
            missed = [ListedPart(f"{each}/", f"{each}/{_LAST}", ()) for each in folders if each not in seen]
            self.changed += self._memory.compare(start, missed)
            after = f"{folders[-1]}/{_LAST}"
            yield


def _pages(listed: Iterator[ObjectInfo]) -> Iterator[list[ObjectInfo]]:
    while page := list(islice(listed, _PAGE)):
        yield page

"""Brings the memory of the records up to date by listing the bucket.

    begin ── a page of the listing ── compare ── … ── the rest of each prefix ──> complete

A listing may be late, so nothing is decided by it: it adds names that the memory lacks, and makes the memory ask again
where both differ. It can be repeated at any time, while others read and write.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final

from mirror.errors import IndexUnavailable, StoreError
from mirror.ports import ListedRecord, ObjectInfo, ObjectLister, RecordMemory
from mirror.store.objects.record_tree import DELETED_SIZE, NAMES

#: The beginnings of the keys of all records, sorted.
PREFIXES: Final = (f"{NAMES}/", "repositories/", "state/", "states/")
_PAGE: Final = 1000


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
                after = prefix
                for page in _pages(self._bucket.list(prefix)):
                    listed = [ListedRecord(info.key, info.version, info.size == DELETED_SIZE) for info in page]
                    self.changed += self._memory.compare(start, after, page[-1].key, listed)
                    self.listed += len(page)
                    after = page[-1].key
                    yield
                self.changed += self._memory.compare(start, after, f"{prefix[:-1]}0", [])
            self.is_complete = self._memory.completed(start)
        except IndexUnavailable as error:
            raise StoreError(f"the records cannot be compared now: {error}") from error


def _pages(listed: Iterator[ObjectInfo]) -> Iterator[list[ObjectInfo]]:
    while page := list(islice(listed, _PAGE)):
        yield page

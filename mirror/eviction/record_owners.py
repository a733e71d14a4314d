"""Finds the image of a damaged pin or freeze, so that it still protects that image. A *record* here is the
file of either.

    record that cannot be read
      ├── the text that is left names its image ─────────────────> that image
      ├── its file name is the hash of a tag or digest here ─────> that image
      └── neither: not known; nothing may be dropped

The search reads the names of all tags, and for a pin also those of all manifests. A record whose image was not found is
not searched for again for a minute.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Final

from mirror import telemetry
from mirror.errors import StoreError
from mirror.oci.digest import Digest
from mirror.policy.image_names import name_of
from mirror.policy.unreadable_records import Subject, UnreadableRecord, record_file_name
from mirror.ports import Catalog

#: Seconds between two searches for the same records.
_AGAIN: Final = 60.0


class UnreadableRecordOwners:
    """Finds the images of records that cannot be read. May be called from any thread."""

    def __init__(self, catalog: Catalog, now: Callable[[], float] = time.monotonic) -> None:
        self._catalog = catalog
        self._now = now
        self._lock = threading.Lock()
        self._owners: dict[UnreadableRecord, Subject] = {}
        self._missed_at: dict[UnreadableRecord, float] = {}

    def __repr__(self) -> str:
        return f"<UnreadableRecordOwners found={len(self._owners)} missed={len(self._missed_at)}>"

    def find(self, records: Collection[UnreadableRecord]) -> dict[UnreadableRecord, Subject]:
        """Blocking: returns the images of those records whose image is known. Raises `StoreError` if the names of tags
        and manifests cannot be listed.
        """
        with self._lock:
            # records that were repaired are forgotten
            self._owners = {record: self._owners[record] for record in records if record in self._owners}
            self._missed_at = {record: self._missed_at[record] for record in records if record in self._missed_at}
            for record in records:
                if subject := record.subject:
                    self._owners[record] = subject
            if due := [record for record in records if record not in self._owners and self._is_due(record)]:
                self._search(due)
            return dict(self._owners)

    def of(self, records: Collection[UnreadableRecord]) -> dict[UnreadableRecord, Subject]:
        """Blocking: returns the images of all records. Raises `StoreError` if one is not known; the error says what to
        do.
        """
        return require_all(records, self.find(records))

    def _is_due(self, record: UnreadableRecord) -> bool:
        return self._now() - self._missed_at.get(record, float("-inf")) >= _AGAIN

    def _search(self, records: Iterable[UnreadableRecord]) -> None:
        wanted = {(record.kind, record.name): record for record in records}
        for subject in self._subjects(any(record.kind == "pins" for record in records)):
            name = record_file_name(f"{subject[0]} {subject[1]}")
            # a digest cannot be frozen
            for kind in ("pins",) if isinstance(subject[1], Digest) else ("pins", "freezes"):
                if record := wanted.pop((kind, name), None):
                    self._owners[record] = subject
            if not wanted:
                return
        self._missed_at |= dict.fromkeys(wanted.values(), self._now())

    def _subjects(self, with_digests: bool) -> Iterator[Subject]:
        """Yields the tags here and, if `with_digests`, the manifests. Tags come first: most records are about one."""
        for repo in self._catalog.repositories():
            yield from ((repo, tag) for tag in self._catalog.tags(repo))
        for repo in self._catalog.repositories() if with_digests else ():
            yield from ((repo, digest) for digest in self._catalog.manifest_digests(repo))


def require_all(
    records: Iterable[UnreadableRecord], owners: dict[UnreadableRecord, Subject]
) -> dict[UnreadableRecord, Subject]:
    """Returns `owners`. Raises `StoreError` if it lacks the image of one of the records; the error says what to do."""
    for record in records:
        if record not in owners:
            raise StoreError(record.trouble)
    return owners


def unread_words(records: Collection[UnreadableRecord], owners: Mapping[UnreadableRecord, Subject]) -> list[str]:
    """Returns one or two sentences about each record, for people, with what to do."""
    return [
        f"{record.file} cannot be read ({record.why}): {_describe(record, owners[record])}"
        if record in owners
        else record.trouble
        for record in records
    ]


def _describe(record: UnreadableRecord, subject: Subject) -> str:
    name = name_of(*subject)
    if record.kind == "pins":
        return f"it is the pin of {name}, which stays; `mirror pin {name}` or `mirror unpin {name}` mends it"
    return (
        f"it is the freeze of {name}, and at what is not known: pulls of the tag are refused, its repository stays; "
        f"`mirror freeze {name} --at DIGEST` or `mirror unfreeze {name}` mends it"
    )


def log_unread(
    records: Collection[UnreadableRecord], logged: set[UnreadableRecord], owners: Mapping[UnreadableRecord, Subject]
) -> None:
    """Updates the metric, and logs each record that is not yet in `logged`. Then `logged` is set to `records`, so that
    repaired records are forgotten.
    """
    telemetry.UNREADABLE_RECORDS.set(len(records))
    new = [record for record in records if record not in logged]
    for record, words in zip(new, unread_words(new, owners), strict=True):
        telemetry.log.error("pin or freeze cannot be read", file=record.file, reason=words)
    logged.clear()
    logged.update(records)

"""The records of cached repositories on the disk, as content that the bucket keeps."""

from __future__ import annotations

import hashlib
from contextlib import suppress

from mirror.bucket_cache.cached_keys import CachedRecord, RecordKind
from mirror.errors import RecordChanged, RecordDamaged
from mirror.oci.reference import Repo
from mirror.policy.records import ManifestRecord, TagRecord, read_history, write_history
from mirror.ports import ABSENT, Catalog


class SiteRecords:
    """Reads and writes records of one catalog. All calls block, and raise `StoreError`."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def __repr__(self) -> str:
        return f"<SiteRecords {self._catalog!r}>"

    def content(self, record: CachedRecord) -> bytes | None:
        """The content of a record; None if there is none, or a damaged one."""
        found: TagRecord | ManifestRecord | None
        try:
            if record.kind is RecordKind.HISTORY:
                history = self._catalog.get_history(record.repo, record.name)
                return write_history(history) if history else None
            if record.kind is RecordKind.TAG:
                found = self._catalog.get_tag(record.repo, record.name)
            else:
                found = self._catalog.get_manifest(record.repo, record.digest)
        except RecordDamaged:
            return None
        return found.to_json() if found else None

    def tag(self, repo: Repo, tag: str) -> TagRecord | None:
        """The record of a tag; None if there is none, or a damaged one."""
        with suppress(RecordDamaged):
            return self._catalog.get_tag(repo, tag)
        return None

    def restore(self, record: CachedRecord, content: bytes) -> bool:
        """Write a record from the bucket, unless there is one here. False if the content is not valid."""
        repo, name = record.repo, record.name
        with suppress(RecordChanged):
            if record.kind is RecordKind.HISTORY:
                history = read_history(content)
                if history and not self._catalog.get_history(repo, name):
                    self._catalog.put_history(repo, name, history)
                return bool(history)
            if record.kind is RecordKind.TAG:
                tag = TagRecord.from_json(name, content)
                if tag is None:
                    return False
                self._catalog.put_tag(repo, tag, expect=ABSENT)
            else:
                manifest = ManifestRecord.from_json(record.digest, content)
                if manifest is None:
                    return False
                self._catalog.put_manifest(repo, manifest, expect=ABSENT)
        return True


def mark_of(record: CachedRecord, content: bytes) -> str:
    """Names what matters of a record's content: of a tag, to what it points, and not when upstream was last asked."""
    if record.kind is RecordKind.TAG and (tag := TagRecord.from_json(record.name, content)):
        return str(tag.digest)
    return hashlib.blake2b(content, digest_size=12).hexdigest()

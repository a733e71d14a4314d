"""Brings what the disk has cached into the bucket, all at once: what was cached before there was a bucket.

    each repository of a registry that the bucket keeps:
        its manifests and the blobs that they name ──> records of manifests ──> histories ──> tags

What the bucket has already is left out, so it can be interrupted and repeated. What cannot be read is left out, too: it
comes from upstream again.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from mirror.aio.threads import in_order
from mirror.bucket_cache.cached_keys import CachedRecord
from mirror.bucket_cache.cached_uploads import CachedUploads
from mirror.errors import BlobUnknown, BucketUnavailable, StoreError
from mirror.graph.manifests import stored_manifest
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.ports import Blobs, Catalog

#: Blobs and records that are written at the same time.
_AT_ONCE: Final = 8
#: Seconds until a name is tried again whose lock another thread has.
_BUSY: Final = 0.1


@dataclass(slots=True)
class CachedCopyReport:
    """What was looked at: the bucket now has these, or never keeps them."""

    repositories: int = 0
    blobs: int = 0
    records: int = 0
    unreadable: int = 0


class CachedCopy:
    """One copy of all cached content. Blocking."""

    def __init__(
        self,
        uploads: CachedUploads,
        catalog: Catalog,
        store: Blobs,
        keeps: Callable[[str], bool],
        *,
        read: Callable[[int], None],
        wait: Callable[[float], None],
    ) -> None:
        """`keeps` says of which registries the bucket keeps content. `read` is called with the size of each blob before
        it is written; it may wait, and raise to stop. `wait` waits for so many seconds.
        """
        self._uploads = uploads
        self._catalog = catalog
        self._store = store
        self._keeps = keeps
        self._read = read
        self._wait = wait
        self.report: Final = CachedCopyReport()

    def __repr__(self) -> str:
        return f"<CachedCopy {self.report}>"

    def run(self) -> CachedCopyReport:
        """Copy everything. Raises `StoreError`, `BucketUnavailable` if the bucket cannot take it."""
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="caching") as threads:
            for repo in self._catalog.repositories():
                if self._keeps(repo.registry):
                    self._repository(repo, threads)
                    self.report.repositories += 1
        return self.report

    def _repository(self, repo: Repo, threads: ThreadPoolExecutor) -> None:
        manifests = list(self._catalog.manifest_digests(repo))
        blobs: dict[Digest, None] = {}
        for digest in manifests:
            try:
                manifest = stored_manifest(self._store, self._catalog, repo, digest)
            except StoreError:
                self.report.unreadable += 1
                continue
            if manifest is not None:
                blobs |= dict.fromkeys((digest, *(blob.digest for blob in manifest.blobs)))
        tags = self._catalog.tags(repo)
        records = [CachedRecord.of_manifest(repo, digest) for digest in manifests]
        records += [CachedRecord.of_history(repo, tag) for tag in tags]
        last = [CachedRecord.of_tag(repo, tag) for tag in tags]
        self.report.blobs += sum(in_order(threads, self._blob, blobs, ahead=2 * _AT_ONCE))
        for some in (records, last):
            for _ in in_order(threads, self._write, some, ahead=2 * _AT_ONCE):
                self.report.records += 1

    def _blob(self, digest: Digest) -> bool:
        """False if the disk does not have it."""
        try:
            size = self._store.stat(digest).size
        except BlobUnknown:
            return False
        self._read(size)
        self._write(digest)
        return True

    def _write(self, work: Digest | CachedRecord) -> None:
        while True:
            self._read(0)
            try:
                if self._uploads.write_now(work):
                    return
            except BucketUnavailable:
                raise
            except StoreError:
                # it cannot be read on the disk
                self.report.unreadable += 1
                return
            self._wait(_BUSY)

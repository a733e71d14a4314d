"""Deletes cached content from the bucket when an operator wants it gone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from mirror.bucket_cache.cached_keys import CachedRecord, blob_key
from mirror.bucket_cache.cached_uploads import CachedUploads
from mirror.bucket_cache.restoring import Restoring
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo


class BucketPurge:
    """Deletes from one bucket. What waits to be written need not be looked for: the writer looks at the disk first."""

    def __init__(self, uploads: CachedUploads, restoring: Restoring, keeps: Callable[[str], bool]) -> None:
        """`keeps` says of which registries the bucket keeps content."""
        self._uploads = uploads
        self._restoring = restoring
        self._keeps = keeps

    def __repr__(self) -> str:
        return f"<BucketPurge {self._uploads!r}>"

    async def restore(self, repo: Repo) -> None:
        """Brings everything that the bucket knows of a repository to the disk, so that an image that only the bucket
        has can be purged. Raises `StoreError`.
        """
        await self._restoring.repository(repo, again=True)

    def drop_records(self, repo: Repo, tags: Iterable[str], manifests: Iterable[Digest]) -> None:
        """Blocking: deletes records of a repository. Repeatable. Raises `StoreError`."""
        if self._keeps(repo.registry):
            records = [CachedRecord.of_tag(repo, tag) for tag in tags]
            records += [CachedRecord.of_manifest(repo, digest) for digest in manifests]
            self._uploads.delete([record.key for record in records])

    def drop_blobs(self, digests: Collection[Digest]) -> None:
        """Blocking: deletes blobs. Repeatable. Raises `StoreError`."""
        if digests:
            self._uploads.delete([blob_key(digest) for digest in digests], blobs=list(digests))

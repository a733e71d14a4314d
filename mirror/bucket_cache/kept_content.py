"""Says to the uploads what came from upstreams and imports, and is to be kept in the bucket."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from mirror.bucket_cache.cached_keys import CachedRecord
from mirror.bucket_cache.cached_uploads import CachedUploads
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo


class KeptContent:
    """What one process offers. Every call is cheap, for the event loop, and may be repeated."""

    def __init__(self, uploads: CachedUploads, keeps: Callable[[str], bool]) -> None:
        """`keeps` says of which registries the bucket keeps content."""
        self._uploads = uploads
        self._keeps = keeps

    def __repr__(self) -> str:
        return f"<KeptContent {self._uploads!r}>"

    def published(self, registry: str, digest: Digest) -> None:
        """A flight of this registry has published a blob."""
        if self._keeps(registry):
            self._uploads.add_blob(digest)

    def recorded(self, repo: Repo, manifests: Iterable[Digest], granted: Collection[Digest]) -> None:
        """A repository has these manifests, and may serve this content; some of it may not be here. Content that was
        dropped from the queue, or lost with it, is offered again here when its manifest is next read from the disk.
        """
        if self._keeps(repo.registry):
            for digest in granted:
                self._uploads.add_blob(digest)
            for digest in manifests:
                self._uploads.add_record(CachedRecord.of_manifest(repo, digest))

    def tag_changed(self, repo: Repo, tag: str) -> None:
        """The record of a tag was written or dropped."""
        if self._keeps(repo.registry):
            self._uploads.add_record(CachedRecord.of_history(repo, tag))
            self._uploads.add_record(CachedRecord.of_tag(repo, tag))

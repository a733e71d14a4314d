"""The blobs of hosted repositories whose bytes are in a bucket. The disk has copies of some.

    a copy on the disk ──────────────────> sent from there; it was used
       └─ absent, damaged, unreadable ───> a flight from the bucket, as for a blob of an upstream
                                             └─ the disk cannot take it ──> streamed past the disk

Who asks has the right already: a link of the repository. HEAD downloads nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

from mirror.aio.bounded_threads import in_thread
from mirror.errors import (
    BlobDamaged,
    BlobUnknown,
    BlobUnreadable,
    BucketDenied,
    BucketUnavailable,
    MirrorError,
    StoreError,
    UpstreamDenied,
    UpstreamError,
    UpstreamInvalid,
    UpstreamNotFound,
)
from mirror.fills.bucket_source import BucketReads
from mirror.fills.flights import Flights
from mirror.fills.sources import BlobSources
from mirror.graph.manifests import has_blob
from mirror.intake.integrity import Integrity
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.oci.reference import Repo
from mirror.policy.hosted_records import BlobLink
from mirror.ports import BlobInfo, BlobObject, BlobObjects, BlobReader, BlobStore
from mirror.repository.answers import (
    BlobContent,
    BlobStat,
    GrowingContent,
    Outcome,
    StoredContent,
    UncachedContent,
    UpstreamStream,
)


class CopiedBlobs:
    """What all hosted repositories share to read their blobs."""

    def __init__(
        self,
        store: BlobStore,
        objects: BlobObjects,
        reads: BucketReads,
        flights: Flights,
        integrity: Integrity,
        *,
        touch: Callable[[Digest], None],
        named: Callable[[Manifest], None],
        failed: Callable[[StoreError, Digest], None],
        certain: BlobObjects | None = None,
    ) -> None:
        """`objects` says what the bucket has, by what is remembered while the bucket is down; `certain` says it by the
        bucket alone. `store` has the copies, and `integrity` checks its files. `touch` notes that a copy was used,
        `named` what a manifest names whose copy was read: an image is evicted as a whole. `failed` notes that the disk
        could not take a copy.
        """
        self._store = store
        self._objects = objects
        self._reads = reads
        self._flights = flights
        self._integrity = integrity
        #: Notes that a copy was used, for eviction.
        self.touch: Final = touch
        #: Notes what a manifest names, for eviction.
        self.named: Final = named
        self._failed = failed
        self._certain = certain
        #: Where the bucket is asked.
        self.threads: Final = reads.opening

    def __repr__(self) -> str:
        return f"<CopiedBlobs {self._store!r}>"

    async def content(self, repo: Repo, link: BlobLink) -> BlobContent:
        """Returns the blob of a link that the caller may use. The caller closes it. Raises `BlobUnknown` if its bytes
        are lost, `StoreError`.
        """
        digest = link.digest
        try:
            found = await self._copy(link)
        except StoreError as error:
            return self._past_the_disk(repo, link, error)
        if found is None:
            return await self._join(repo, link)
        info, reader = found
        self.touch(digest)
        return StoredContent(digest, info.size, reader, self._stream(repo, digest), self._integrity.recheck_later)

    async def stat(self, repo: Repo, link: BlobLink) -> BlobStat:
        """Returns the answer to HEAD, which succeeds only if GET would. Raises like `content`."""
        with suppress(BlobUnknown, StoreError):
            if self._store.stat(link.digest).size == link.size:
                self.touch(link.digest)
                return BlobStat(link.size, Outcome.HIT, repo.registry)
        if await in_thread(self._reads.opening, self._objects.source, link.digest) is None:
            raise _lost(repo, link.digest)
        return BlobStat(link.size, Outcome.DESCRIBED, repo.registry)

    def certain_object(self, link: BlobLink) -> BlobObject | None:
        """Blocking: returns the object that has the blob of a link, as the bucket says now; None if there is none.
        Raises `StoreError`.
        """
        found = self._certain.source(link.digest) if self._certain is not None else None
        return found if found is not None and found.size == link.size else None

    def has(self, digest: Digest) -> bool:
        """True if the disk has a copy. Fast enough for the event loop."""
        with suppress(StoreError):
            return has_blob(self._store, digest)
        return False

    async def _copy(self, link: BlobLink) -> tuple[BlobInfo, BlobReader] | None:
        """The copy on the disk, opened; None if it has to be fetched: a damaged one is set aside then. Raises
        `StoreError` if the disk cannot be used.
        """
        try:
            info, reader = self._store.open(link.digest)
        except BlobUnreadable:
            await self._integrity.set_aside(link.digest)
            return None
        except (BlobUnknown, StoreError):
            return None
        try:
            await self._integrity.check(info, link.size)
        except (BlobDamaged, BlobUnreadable):
            reader.close()
            await self._integrity.set_aside(link.digest)
            return None
        except BaseException:
            reader.close()
            raise
        return info, reader

    async def _join(self, repo: Repo, link: BlobLink) -> BlobContent:
        digest, registry = link.digest, repo.registry
        joined = self._flights.under_way(digest, registry)
        try:
            flight = await self._flights.join(
                digest,
                self._sources(digest),
                upstream=registry,
                size=link.size,
                on_behalf=repo,
                store=self._store,
            )
        except StoreError as error:
            return self._past_the_disk(repo, link, error)
        except UpstreamError as error:
            raise _as_ours(repo, digest, error) from error
        outcome = Outcome.HIT if flight.landed else Outcome.JOINED if joined else Outcome.MISS
        return GrowingContent(flight, self._stream(repo, digest), outcome)

    def _past_the_disk(self, repo: Repo, link: BlobLink, error: StoreError) -> UncachedContent:
        self._failed(error, link.digest)
        return UncachedContent(link.digest, link.size, self._stream(repo, link.digest), str(error))

    def _stream(self, repo: Repo, digest: Digest) -> UpstreamStream:
        return UpstreamStream(digest, repo.registry, lambda: self._sources(digest), self._reads.executor)

    def _sources(self, digest: Digest) -> BlobSources:
        return BlobSources(self._reads.hosted(self._objects, digest))


def _lost(repo: Repo, digest: Digest) -> BlobUnknown:
    return BlobUnknown(f"the bytes of {repo}'s blob {digest} are lost, until it is pushed again")


def _as_ours(repo: Repo, digest: Digest, error: UpstreamError) -> MirrorError:
    """The error for the client, of what the bucket did as the source of a flight."""
    if isinstance(error, UpstreamNotFound):
        return _lost(repo, digest)
    if isinstance(error, UpstreamDenied):
        return BucketDenied(str(error))
    if isinstance(error, UpstreamInvalid):
        return BlobDamaged(str(error))
    return BucketUnavailable(str(error))

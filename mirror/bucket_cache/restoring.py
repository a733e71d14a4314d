"""Brings manifests and tags that the disk has lost back from the bucket.

    a manifest is missing   its record (if missing, too) and its bytes ──> bytes, then record, on the disk
    a tag is missing        its history, then its record
    a list is asked for     all of that, for one repository: once in each process

The caller then reads the disk as ever. What is written there grants what it has always granted: a manifest's record
lets its repository serve what the manifest names. Nothing else that is found in the bucket does.

None of this is called for what the disk has. A bucket that is slow or down costs a miss one short wait; then a breaker
leaves it alone for a while. "Not known" is `StoreError`: whoever can ask upstream takes it for a miss, a sealed
repository does not.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from mirror import telemetry
from mirror.aio.breaker import Breaker
from mirror.aio.caches import LruCache, TtlCache
from mirror.aio.singleflight import SingleFlight
from mirror.bucket_cache.cached_keys import CachedRecord, RecordKind, parse_record_key, records_prefix
from mirror.bucket_cache.cached_objects import CachedObjects
from mirror.bucket_cache.site_records import SiteRecords
from mirror.errors import BlobDamaged, BlobUnknown, BucketUnavailable, StoreError
from mirror.graph.blob_in_bucket import read_blob
from mirror.graph.manifests import has_blob, manifest_of_bytes
from mirror.oci.digest import Digest
from mirror.oci.manifest import LARGEST
from mirror.oci.reference import Reference, Repo
from mirror.ports import BlobObject, BlobStore, Bucket, NotChanged, OrderedPurges

T = TypeVar("T")

#: Seconds that one answer waits for the bucket, and that a list waits for all of a repository.
_PATIENCE: Final = 2.0
_PATIENCE_FOR_ALL: Final = 10.0
#: Seconds after which a client may try again, while the breaker leaves the bucket alone.
_RETRY_AFTER: Final = 5.0
#: Records of one repository that are brought back at once.
_AT_ONCE: Final = 8
#: Repositories that are restored as a whole at the same time: anybody can ask for names that do not exist.
_LISTINGS: Final = 4
#: Bytes of a record at most.
_LARGEST_RECORD: Final = 1 << 20
#: Seconds for which the bucket is not asked again for what it does not have: one pull asks twice.
_ABSENT_FOR: Final = 5.0
_MOST_ABSENT: Final = 10_000
#: Repositories of which it is remembered that all was restored.
_MOST_REPOSITORIES: Final = 10_000


class Restoring:
    """What one process restores."""

    def __init__(
        self,
        bucket: Bucket,
        objects: CachedObjects,
        store: BlobStore,
        records: SiteRecords,
        executor: Executor,
        *,
        keeps: Callable[[str], bool],
        purges: OrderedPurges | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`executor` runs what waits for the bucket; `keeps` says of which registries the bucket keeps content. In a
        cluster, nothing is restored before the `purges` of other replicas are known.
        """
        self._bucket = bucket
        self._objects = objects
        self._store = store
        self._records = records
        self._executor = executor
        self._keeps = keeps
        self._purges = purges
        self._breaker = Breaker(clock)
        self._once = SingleFlight()
        self._closing = threading.Event()
        self._listings = asyncio.Semaphore(_LISTINGS)
        self._absent: TtlCache[tuple[Repo, Reference], None] = TtlCache(_MOST_ABSENT, _ABSENT_FOR, clock)
        self._whole: LruCache[Repo, None] = LruCache(_MOST_REPOSITORIES, name="restored repositories")

    def __repr__(self) -> str:
        return f"<Restoring {self._once!r}>"

    async def manifest(self, repo: Repo, digest: Digest) -> bool:
        """Brings a manifest's bytes and its record back to the disk. False if the bucket does not have both. Raises
        `StoreError` if that is not known.
        """
        if not self._keeps(repo.registry):
            return False
        return await self._restored((repo, digest), lambda: self._restore_one(CachedRecord.of_manifest(repo, digest)))

    async def tag(self, repo: Repo, tag: str) -> bool:
        """Brings the record of a tag and its history back to the disk. False if the bucket does not have the record.
        Raises `StoreError` if that is not known.
        """
        if not self._keeps(repo.registry):
            return False
        return await self._restored((repo, tag), lambda: self._restore_one(CachedRecord.of_tag(repo, tag)))

    async def repository(self, repo: Repo, *, again: bool = False) -> list[Digest]:
        """Brings all tags and manifests of a repository back. Returns the manifests that were missing. Does nothing if
        this process has done so before, unless `again`: then what other replicas have purged comes, too, to be purged
        here. Raises `StoreError` if it is not known what the bucket has, or if this takes too long; then it goes on,
        for the next call.
        """
        if not self._keeps(repo.registry) or (repo in self._whole and not again):
            return []
        async with self._listing_turn():
            if repo in self._whole and not again:
                # another request has done it meanwhile
                return []
            restored = await self._ask((repo, again), lambda: self._restore_all(repo, again=again), _PATIENCE_FOR_ALL)
            self._whole[repo] = None
        return restored

    @asynccontextmanager
    async def _listing_turn(self) -> AsyncIterator[None]:
        """Waits until few others restore whole repositories. Raises `BucketUnavailable` if that takes too long."""
        try:
            async with asyncio.timeout(_PATIENCE_FOR_ALL):
                await self._listings.acquire()
        except TimeoutError as error:
            raise BucketUnavailable("too many repositories are listed now", retry_after=_RETRY_AFTER) from error
        try:
            yield
        finally:
            self._listings.release()

    async def image(self, repo: Repo, reference: Reference) -> None:
        """Brings a tag, its manifest, and the manifests below it back, as far as the bucket has them. Raises
        `StoreError` if that is not known.
        """
        if not self._keeps(repo.registry):
            return
        if isinstance(reference, Digest):
            waiting = [reference]
        else:
            await self.tag(repo, reference)
            waiting = [tag.digest] if (tag := await asyncio.to_thread(self._records.tag, repo, reference)) else []
        seen: set[Digest] = set()
        while waiting:
            digest = waiting.pop()
            seen.add(digest)
            await self.manifest(repo, digest)
            manifest = await asyncio.to_thread(manifest_of_bytes, self._store, digest)
            if manifest is not None:
                waiting += [child.digest for child in manifest.manifests if child.digest not in seen]

    async def aclose(self) -> None:
        """Ends what is under way. Repeatable."""
        self._closing.set()
        await self._once.aclose()

    async def _restored(self, key: tuple[Repo, Reference], work: Callable[[], bool]) -> bool:
        if key in self._absent:
            return False
        restored = await self._ask(key, work, _PATIENCE)
        if not restored:
            self._absent[key] = None
        return restored

    async def _ask(self, key: object, work: Callable[[], T], patience: float) -> T:
        ticket = self._breaker.admit()
        if ticket is None:
            raise BucketUnavailable("the bucket did not answer just now", retry_after=_RETRY_AFTER)

        async def run() -> T:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)

        try:
            async with asyncio.timeout(patience):
                result = await self._once.run(key, run)
        except TimeoutError as error:
            self._failed(ticket, f"no answer within {patience:g} s")
            raise BucketUnavailable("the bucket does not answer in time", retry_after=_RETRY_AFTER) from error
        except BucketUnavailable as error:
            self._failed(ticket, str(error))
            raise
        except BaseException:
            self._breaker.withdraw(ticket)
            raise
        if self._breaker.succeed(ticket):
            telemetry.log.info("bucket cache read again")
        return result

    def _failed(self, ticket: int, reason: str) -> None:
        if self._breaker.fail(ticket):
            telemetry.log.warning("bucket cache not read", reason=reason)

    # ------------------------------------------------------------------------------------------------ blocking

    def _restore_one(self, record: CachedRecord) -> bool:
        """A manifest or tag, unless it is purged."""
        if self._is_withheld(record):
            return False
        if record.kind is RecordKind.TAG:
            return self._restore_tag(record.repo, record.name)
        return self._restore_manifest(record.repo, record.digest)

    def _is_withheld(self, record: CachedRecord) -> bool:
        """True if not all replicas have purged it yet. Raises `StoreError` if that is not known."""
        if self._purges is None:
            return False
        self._purges.require()
        reference = record.name if record.kind is RecordKind.TAG else record.digest
        return self._purges.is_withheld(record.repo, reference)

    def _restore_manifest(self, repo: Repo, digest: Digest) -> bool:
        record = CachedRecord.of_manifest(repo, digest)
        found = None
        if not has_blob(self._store, digest):
            # first, because without its bytes the record is of no use, and the book often knows without a request
            found = self._objects.source(digest)
            if found is None or found.size > LARGEST:
                return False
        content = None
        if self._records.content(record) is None:
            content = self._read(record)
            if content is None:
                return False
        if found is not None and not self._restore_bytes(found):
            return False
        if content is not None and not self._records.restore(record, content):
            return False
        telemetry.BUCKET_CACHE_RESTORED.labels("manifest").inc()
        return True

    def _restore_bytes(self, found: BlobObject) -> bool:
        """False if the object was found gone, or with wrong bytes, twice. Raises `BlobDamaged` instead if a sealed
        repository may have no other copy.
        """
        try:
            content = read_blob(self._bucket, self._objects, found.digest, LARGEST)
        except (BlobUnknown, BlobDamaged) as error:
            if self._objects.some_sealed and isinstance(error, BlobDamaged):
                raise
            return False
        self._store.put(found.digest, content)
        return True

    def _restore_tag(self, repo: Repo, tag: str) -> bool:
        history = CachedRecord.of_history(repo, tag)
        # before the tag, and also without it: the digests that upstream moved it to must not look new
        if self._records.content(history) is None and (content := self._read(history)) is not None:
            self._records.restore(history, content)
        record = CachedRecord.of_tag(repo, tag)
        if self._records.content(record) is None:
            content = self._read(record)
            if content is None or not self._records.restore(record, content):
                return False
        telemetry.BUCKET_CACHE_RESTORED.labels("tag").inc()
        return True

    def _restore_all(self, repo: Repo, *, again: bool) -> list[Digest]:
        manifests = self._listed(repo, RecordKind.MANIFEST)
        if not manifests and not again:
            # most often a name that somebody invented; tags alone could not be served
            return []
        tags = [record for record in self._listed(repo, RecordKind.TAG) if self._records.content(record) is None]
        if not again:
            manifests, tags = ([each for each in found if not self._is_withheld(each)] for found in (manifests, tags))
        with ThreadPoolExecutor(_AT_ONCE, "restore") as pool:
            restored = list(pool.map(self._restore_listed, manifests))
            list(pool.map(self._restore_listed, tags))
        return [record.digest for record, is_restored in zip(manifests, restored, strict=True) if is_restored]

    def _restore_listed(self, record: CachedRecord) -> bool:
        """True if the manifest or tag was missing, and was brought back."""
        if self._closing.is_set():
            raise StoreError("the mirror is stopping")
        if record.kind is RecordKind.TAG:
            return self._restore_tag(record.repo, record.name)
        if self._records.content(record) is not None and has_blob(self._store, record.digest):
            return False
        try:
            return self._restore_manifest(record.repo, record.digest)
        except BlobDamaged:
            # a list without it is better than none; whoever asks for it gets the error
            return False

    def _listed(self, repo: Repo, kind: RecordKind) -> list[CachedRecord]:
        found = (parse_record_key(info.key) for info in self._bucket.list(records_prefix(repo, kind)))
        return [record for record in found if record is not None]

    def _read(self, record: CachedRecord) -> bytes | None:
        try:
            stored = self._bucket.read(record.key, _LARGEST_RECORD)
        except BlobDamaged:
            return None
        return None if stored is None or isinstance(stored, NotChanged) else stored.content

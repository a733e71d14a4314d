"""Makes the index agree with the disk, which is authoritative. No upstream is asked.

    absent or lost ── links and names put ── every blob put ── records without a file dropped ── MARK ──> whole
          ^                                                                                                │
          └────────────── FLUSHALL, a new index file, or found to lack blobs: no MARK <────────────────────┘

Every step is repeatable and may run while the mirror works: a blob that is put again counts once, the later time of
use stays, and a record is dropped only after a second look at the disk. An interrupted run has set no mark; a rebuild,
which `shared_rebuild.py` does in parts, goes on with the parts that are not done. A second run changes nothing.

What manifests name comes before the blobs, whose place in the order of use then need not be moved again.

If a manifest cannot be read at the moment, the blobs that it names would look as if nothing named them, and would be
evicted first. So everything else is corrected, but no mark is set; until a later run succeeds, eviction asks the disk
what may be dropped. A manifest whose bytes are damaged names nothing (`graph/manifests.py`).

One thing is corrected on the disk as well: a repository's record of a manifest stays when the manifest is evicted, and
is of no more use. These records are deleted; otherwise every image that is never pulled again would cost a file for
ever.

Hosted repositories are passed over: eviction must not know their content. If their bytes are in a bucket, the disk has
copies of them, and eviction must know which belong together: then what their manifests name is recorded, and nothing
else. A record whose manifest is hosted is never deleted here, even if the configuration does not name the registry any
more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

from mirror import telemetry
from mirror.aio.batches import batches, batches_ahead, batches_in_thread
from mirror.errors import BlobDamaged, BlobUnknown, IndexUnavailable, RecordChanged, RecordDamaged, StoreError
from mirror.eviction.giving_way import NOBODY, Giving
from mirror.graph.blob_places import BlobPlaces
from mirror.graph.manifests import has_blob, manifest_of_bytes, read_stored
from mirror.graph.walk import walk
from mirror.intake.grants import granted_by
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.records import ContentRecord, References
from mirror.ports import BlobInfo, Blobs, Catalog, ContentIndex, InTime

#: The marker of an index that this code has rebuilt. Another marker means that it was rebuilt by other rules.
MARK: Final = "3"
#: The marker of an index that is known to lack something.
INCOMPLETE: Final = "incomplete"

#: Blobs or links in one call of the index, and manifests whose names are recorded together. Few, because clients of all
#: processes wait for the writer of the index, and between two steps they get their turn.
_BATCH: Final = 100
_MANIFESTS: Final = 10

#: Seconds to wait before each retry if the index did not answer. Among thousands of calls one may be late, which must
#: not end the whole run.
_WAITS: Final = (1.0, 2.0, 4.0, 8.0)

#: Seconds after which the record of a manifest that is gone is deleted. The record of one that is being written is
#: younger, and is left alone.
_FORGET_AFTER: Final = 86400.0

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Reconciled:
    """The result of a run: `blobs` on disk and their `bytes`; how many blobs were `added` to the index; how many
    records were `dropped`; how many `repositories`, `manifests` and `links` were found; and how many manifests were
    `skipped` because they are damaged, malformed or gone. `resumed`: parts of a rebuild were done before this process
    took part in it.
    """

    blobs: int
    bytes: int
    added: int
    dropped: int
    repositories: int
    manifests: int
    links: int
    skipped: int
    resumed: bool = False


async def is_whole(index: ContentIndex) -> bool:
    """True if the index knows everything that the disk has. Raises `IndexUnavailable`."""
    return await index.marker() == MARK


async def drop_loose_links(
    index: ContentIndex,
    is_needed: Callable[[Repo, Digest], bool],
    *,
    growing: Callable[[], Container[Digest]],
    give_way: Giving = NOBODY,
) -> int:
    """Drops the links of blobs that are gone and that no manifest here names; otherwise the index would grow with every
    blob that was ever pulled. Returns how many. Raises `StoreError`, `IndexUnavailable`.

    Links of blobs that are `growing`, or that `is_needed` says are here after all, stay. Both block and may raise
    `StoreError`; a link of which `is_needed` cannot tell stays. A repository that loses a link while its blob arrives
    has it by its manifests, or asks upstream once more.
    """
    if not await is_whole(index):
        # what the rebuild has not reached yet looks as if it were gone
        return 0

    def unneeded(links: Sequence[tuple[Repo, Digest]]) -> dict[Repo, list[Digest]]:
        """Blocking."""
        found: dict[Repo, list[Digest]] = {}
        coming = growing()
        for repo, digest in links:
            with suppress(StoreError):
                if digest not in coming and not is_needed(repo, digest):
                    found.setdefault(repo, []).append(digest)
        return found

    dropped, began = 0, time.monotonic()
    async with aclosing(index.loose_links()) as steps:
        async for links in steps:
            if links:
                for repo, digests in (await asyncio.to_thread(unneeded, links)).items():
                    await index.unlink(repo, digests)
                    dropped += len(digests)
                    telemetry.FORGOTTEN.labels("link").inc(len(digests))
            await give_way(time.monotonic() - began)
            began = time.monotonic()
    return dropped


async def reconcile(
    store: Blobs,
    catalog: Catalog,
    index: ContentIndex,
    *,
    places: BlobPlaces | None = None,
    give_way: Giving = NOBODY,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Reconciled:
    """Reads the whole disk and corrects the index. `places` is None if nothing is hosted here; `give_way` pauses
    after each step, and while the disk is read. Raises `IndexUnavailable` and `StoreError`. If a manifest
    cannot be read, `StoreError` is raised after everything else was done.
    """
    telemetry.log.info("reconcile started")
    call = PatientCalls(sleep)
    token = await call(index.begin_rebuild)
    before = (await call(index.usage)).blobs
    writing = IndexWriting(store, catalog, index, places, call, give_way)
    async for repos in batches_in_thread(catalog.repositories(), 1):
        await writing.repository(repos[0])
    await writing.blobs(give_way.slices(store.walk()))
    after = (await call(index.usage)).blobs
    dropped = await drop_strays(store, index, call) if after > writing.counts.blobs else 0
    writing.raise_trouble()
    await call(partial(index.set_marker, MARK, token))
    result = replace(writing.counts, added=max(0, after - before), dropped=dropped)
    log_ended(result)
    return result


def log_ended(result: Reconciled) -> None:
    """Logs what a process has done."""
    telemetry.log.info("reconcile ended", **{name: getattr(result, name) for name in Reconciled.__slots__})


class PatientCalls:
    """Calls the index, and retries a few times with waits if it does not answer. Every call here is repeatable."""

    def __init__(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        """`sleep` waits so many seconds."""
        self.sleep: Final = sleep

    async def __call__(self, operation: Callable[[], Awaitable[_Item]]) -> _Item:
        """Returns the result. Raises `IndexUnavailable` if all tries fail."""
        for wait in _WAITS:
            try:
                return await operation()
            except IndexUnavailable:
                await self.sleep(wait)
        return await operation()


async def drop_strays(store: Blobs, index: ContentIndex, call: PatientCalls) -> int:
    """Drops the records whose file is gone; returns how many."""
    strays: set[Digest] = set()

    async def drop() -> None:
        async with aclosing(index.digests()) as pages:
            async for digests in pages:
                absent = await asyncio.to_thread(_absent, store, digests)
                await index.drop(absent)
                strays.update(absent)

    await call(drop)
    return len(strays)


def _absent(store: Blobs, digests: Iterable[Digest]) -> list[Digest]:
    """Blocking: returns the digests that are certainly gone. Raises `StoreError`."""
    return [digest for digest in digests if not has_blob(store, digest)]


class IndexWriting:
    """Writes to the index what the disk has, in parts. `counts` are what this object has done."""

    def __init__(
        self,
        store: Blobs,
        catalog: Catalog,
        index: ContentIndex,
        places: BlobPlaces | None,
        call: PatientCalls,
        give_way: Giving,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._index = index
        self._places = places or BlobPlaces.only(store)
        self._call = call
        self._give_way = give_way
        self._reader = _Reader(self._places.cache, store, catalog, self._places.contents)
        self._counts = Reconciled(0, 0, 0, 0, 0, 0, 0, 0)

    def __repr__(self) -> str:
        return f"<IndexWriting {self.counts}>"

    @property
    def counts(self) -> Reconciled:
        """What was found and written so far; `added` and `dropped` are 0."""
        return replace(self._counts, skipped=self._reader.skipped)

    @property
    def unread(self) -> int:
        """How many manifests could not be read so far."""
        return self._reader.unread

    def raise_trouble(self) -> None:
        """Raises `StoreError` if some manifests could not be read."""
        if self._reader.trouble is not None:
            raise StoreError(
                f"not all manifests could be read ({self.unread} not), so what they name is not known: "
                f"{self._reader.trouble}"
            )

    async def repository(self, repo: Repo) -> None:
        """Writes what each manifest of the repository names, and links to the repository the blobs that it may serve.
        Raises `IndexUnavailable`, and `StoreError` if the manifests cannot be listed.
        """
        is_hosted = self._places.is_hosted(repo)
        if is_hosted and not self._places.has_copies:
            return
        manifests = links = 0
        used: dict[Digest, float] = {}
        read = self._reader.read_copy if is_hosted else self._reader.read
        manifests_read = self._give_way.slices(walk(self._catalog, read, self._reader.note, [repo]))
        async with aclosing(batches_ahead(manifests_read, _MANIFESTS)) as ahead:
            async for found in ahead:
                granted: dict[Digest, int] = {}
                records = []
                for _, digest, manifest in found:
                    used[digest] = manifest.used_at
                    records.append(ContentRecord(digest, manifest.size, manifest.used_at))
                    for blob, size in manifest.granted.items():
                        granted[blob] = max(size, granted.get(blob, -1))
                for links_of in batches(granted.items(), _BATCH):
                    await self._step(partial(self._index.link, repo, dict(links_of)))
                # without the record of a manifest itself, the index does not take what it names
                await self._step(partial(self._index.put, records))
                references = [manifest.references for _, _, manifest in found]
                await self._step(partial(self._index.record_references, references))
                manifests += len(found)
                links += len(granted)
        # only after all names are known: the disk notes the use of a manifest alone, and the index counts it for the
        # indexes above it as well
        for uses in batches(used.items(), _BATCH):
            await self._step(partial(self._index.touch, dict(uses)))
        counts = self._counts
        self._counts = replace(
            counts,
            repositories=counts.repositories + 1,
            manifests=counts.manifests + manifests,
            links=counts.links + links,
        )

    async def blobs(self, infos: Iterable[BlobInfo]) -> int:
        """Puts these blobs into the index; returns how many. Raises `IndexUnavailable`, `StoreError`."""
        blobs = total = 0
        records = (ContentRecord(info.digest, info.size, info.used_at) for info in infos)
        async with aclosing(batches_ahead(records, _BATCH)) as ahead:
            async for batch in ahead:
                await self._step(partial(self._index.put, batch))
                blobs += len(batch)
                total += sum(record.size for record in batch)
        self._counts = replace(self._counts, blobs=self._counts.blobs + blobs, bytes=self._counts.bytes + total)
        return blobs

    async def _step(self, write: Callable[[], Awaitable[None]]) -> None:
        """A short write, and then whoever waits. Raises `IndexUnavailable`."""
        began = time.monotonic()
        await self._call(write)
        await self._give_way(time.monotonic() - began)


@dataclass(frozen=True, slots=True)
class _ReadManifest:
    """What a manifest of `size` bytes names, when it was last used (epoch seconds), and the blobs that its repository
    may serve because of it, with sizes in bytes (-1 if not known).
    """

    size: int
    references: References
    used_at: float
    granted: Mapping[Digest, int]


class _Reader:
    """Reads manifests for `walk`. Counts the manifests that were `skipped`, and among them those that could not be read
    (`unread`); `trouble` is the error of the first of these. Those of cached repositories are read in the cache, copies
    of hosted ones anywhere in the store.
    """

    def __init__(self, cache: Blobs, store: Blobs, catalog: Catalog, contents: Blobs) -> None:
        self._cache = cache
        self._store = store
        self._catalog = catalog
        self._contents = contents
        self.skipped = self.unread = 0
        self.trouble: StoreError | None = None

    def read(self, repo: Repo, digest: Digest) -> _ReadManifest | None:
        """Blocking: reads one manifest. Raises `StoreError`."""
        self.skipped += 1
        try:
            info = self._cache.stat(digest)
        except BlobUnknown:
            # evicted: nothing to log
            _forget(self._contents, self._catalog, repo, digest)
            return None
        granted: Mapping[Digest, int] = {}
        try:
            stored = read_stored(self._cache, self._catalog, repo, digest)
        except RecordDamaged as error:
            # a damaged record grants nothing, but what the manifest names stays as long as the manifest does
            _log_skipped(repo, digest, error)
            manifest = manifest_of_bytes(self._cache, digest)
        else:
            manifest = stored.manifest if stored else None
            granted = granted_by(stored) if stored else {}
        if manifest is None:
            return None
        self.skipped -= 1
        return _ReadManifest(info.size, References.of(manifest), info.used_at, granted)

    def read_copy(self, _: Repo, digest: Digest) -> _ReadManifest | None:
        """Blocking: reads one manifest of a hosted repository, if the disk has a copy of it. That gives no right to
        anything, and nothing is deleted. Raises `StoreError`.
        """
        try:
            info = self._store.stat(digest)
        except BlobUnknown:
            return None
        manifest = manifest_of_bytes(self._store, digest)
        return _ReadManifest(info.size, References.of(manifest), info.used_at, {}) if manifest else None

    def note(self, repo: Repo, digest: Digest, error: StoreError) -> None:
        """Notes that a manifest could not be read, or, if its bytes are damaged, that it names nothing."""
        _log_skipped(repo, digest, error)
        if not isinstance(error, (BlobDamaged, RecordDamaged)):
            self.unread += 1
            self.trouble = self.trouble or error


def _log_skipped(repo: Repo, digest: Digest, error: StoreError) -> None:
    telemetry.log.warning("manifest skipped by reconcile", repository=str(repo), digest=str(digest), reason=str(error))


def _forget(contents: Blobs, catalog: Catalog, repo: Repo, digest: Digest) -> None:
    """Blocking: deletes a repository's record of a manifest that is gone, unless the record is younger than a day or
    the manifest has come back meanwhile. Raises `StoreError`.
    """
    found = catalog.manifest(repo, digest)
    if found is None or time.time() - found.record.fetched_at < _FORGET_AFTER:
        return

    def must_be_gone() -> None:
        # a fetch writes the bytes before the record: if they come later than this look, so does the record
        if has_blob(contents, digest):
            raise RecordChanged(f"{repo}@{digest} is here again")

    with suppress(RecordChanged):
        catalog.drop_manifest(repo, digest, expect=InTime(found.version, must_be_gone))

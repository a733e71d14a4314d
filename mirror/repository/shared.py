"""The state that all repositories share: store, catalog, index, flights, and caches in memory.

Content gets from an answer to the disk in three steps. `write` puts it on the disk, visible to all processes. `settle`
makes its name durable in the background, after the answer. The index is updated last, which may fail: it is only a
cache of the disk.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

from mirror import telemetry
from mirror.aio.caches import LruCache
from mirror.aio.memo import MISSING, Memo
from mirror.aio.singleflight import SingleFlight
from mirror.caller import for_caller
from mirror.errors import BlobDamaged, BlobTooLarge, StoreError
from mirror.fills.flights import Flights
from mirror.fills.read_ahead import ReadAhead
from mirror.graph.damage import doubt, is_right
from mirror.graph.manifests import has_blob
from mirror.graph.referrers import ReferrerScan
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.oci.reference import Repo
from mirror.policy.history import TagOverride
from mirror.policy.records import References, TagRecord
from mirror.ports import BlobInfo, BlobStore, Catalog, ContentIndex
from mirror.repository.answers import Outcome
from mirror.repository.described import Described
from mirror.repository.grants import Grants
from mirror.repository.miss_report import Misses
from mirror.repository.tag_history import TagHistories
from mirror.repository.tag_windows import TagWindows

T = TypeVar("T")

#: Seconds for which upstream is not asked again after it answered "not found".
_UNKNOWN_FOR: Final = 10.0
#: Seconds until the disk is checked again for a tag's record, or for a manifest that is in memory.
LOOK_EVERY: Final = 2.0
#: Seconds to wait for the lock of another process that asks upstream. After that each process asks for itself.
#: Containerd gives up if it gets no headers for 30 s; both waits of a pull by tag (tag, manifest) stay well below that.
_ALONE_FOR: Final = 10.0
#: Seconds that an answer waits for a blob or manifest to be written to the index.
_PATIENCE: Final = 0.25


class Exclusive(Protocol):
    """A lock over all processes that share a store."""

    def __call__(self, key: str, /) -> AbstractAsyncContextManager[object]: ...


def _weight(manifest: Manifest) -> int:
    """Returns roughly the bytes of memory that a manifest takes: each descriptor is some objects and a digest."""
    return 2 * len(manifest.content) + 800 * (len(manifest.manifests) + len(manifest.blobs)) + 1024


@dataclass(frozen=True, slots=True)
class CachedTag:
    """A tag's record, how it was obtained, and from when until when (epoch seconds) it is believed.

    `kept` is the reason if the tag is answered with another digest than upstream's.
    """

    record: TagRecord
    outcome: Outcome
    since: float
    until: float
    kept: TagOverride | None = None


@dataclass(frozen=True, slots=True)
class BlobStat:
    """The answer to HEAD of a blob: `size` in bytes, None if upstream does not say it."""

    size: int | None
    outcome: Outcome
    upstream: str


@dataclass(frozen=True, slots=True)
class Listing:
    """A list of tags or referrers, and how it came about."""

    items: tuple[Any, ...]
    outcome: Outcome
    upstream: str
    #: True if more items follow: tags are given page by page.
    more: bool = False


def page_of(tags: Sequence[str], last: str, count: int, outcome: Outcome, upstream: str) -> Listing:
    """Returns a page of at most `count` tags after `last`, cut from the whole, sorted list."""
    start = bisect_right(tags, last)
    return Listing(tuple(tags[start : start + count]), outcome, upstream, start + count < len(tags))


@dataclass(slots=True)
class Shared:
    """The state that all repositories share."""

    store: BlobStore
    catalog: Catalog
    index: ContentIndex
    grants: Grants
    flights: Flights
    memo: Memo
    executor: Executor
    exclusive: Exclusive
    touch: Callable[[Digest], None]
    arrived: Callable[[BlobInfo], Coroutine[Any, Any, None]]
    name: Callable[[References, int], Coroutine[Any, Any, None]]
    histories: TagHistories
    #: Records content that a sealed repository did not have.
    misses: Misses
    #: Tag lists of upstreams.
    lists: TagWindows
    #: Returns the configured upstream that a registry belongs to, as a label of metrics. Names that only match a
    #: wildcard must not become labels.
    label: Callable[[str], str] = str
    now: Callable[[], float] = time.time
    tags: LruCache[tuple[Repo, str], CachedTag] = field(default_factory=lambda: LruCache(16 << 20, lambda _: 512))
    manifests: LruCache[tuple[Repo, Digest], Manifest] = field(default_factory=lambda: LruCache(64 << 20, _weight))
    #: When the disk was last checked for a manifest that is in memory (epoch seconds).
    looked: LruCache[Digest, float] = field(default_factory=lambda: LruCache(4 << 20, lambda _: 256))
    #: Sizes in bytes of blobs whose digest this process has verified: it has stored them, or read them because no
    #: manifest has the size or one has another size.
    sound: LruCache[Digest, int] = field(default_factory=lambda: LruCache(1 << 20, lambda _: 256))
    once: SingleFlight = field(default_factory=SingleFlight)
    telling: set[asyncio.Task[None]] = field(default_factory=set)
    settling: asyncio.Lock = field(default_factory=asyncio.Lock)
    uncached_since: float | None = None
    ahead: ReadAhead | None = None
    referring: ReferrerScan = field(init=False)
    described: Described = field(init=False)

    def __post_init__(self) -> None:
        self.referring = ReferrerScan(self.store, self.catalog, self.once, lambda: self.now())
        self.described = Described(self.store, self.catalog, self.once)

    def went_uncached(self, error: StoreError, what: object) -> None:
        """Counts and logs that the store could not take something. A failing store is logged once, until it takes
        content again; a blob that is larger than the store is logged each time.
        """
        telemetry.UNCACHED.inc()
        if isinstance(error, BlobTooLarge):
            # the store is not failing, and will never take this blob
            telemetry.log.warning("blob larger than store", blob=str(what), reason=str(error))
        elif self.uncached_since is None:
            self.uncached_since = self.now()
            telemetry.STORE_FAILING.inc()
            telemetry.log.error("store failed", first=str(what), reason=str(error))

    def went_cached(self) -> None:
        """Notes that the store has taken something: it is no longer failing."""
        if self.uncached_since is not None:
            telemetry.log.info("store recovered", uncached_since=self.uncached_since)
            telemetry.STORE_FAILING.dec()
            self.uncached_since = None

    async def is_unknown(self, what: str) -> bool:
        """True if upstream has just told the current caller that it does not have this."""
        return await self.memo.get(for_caller(what)) is not MISSING

    async def note_unknown(self, what: str) -> None:
        """Remembers for a while that upstream told the current caller that it does not have this."""
        await self.memo.put(for_caller(what), "unknown", _UNKNOWN_FOR)

    def forget(self, repo: Repo, tags: Iterable[str], digests: Iterable[Digest]) -> None:
        """Drops purged tags and manifests from memory."""
        for tag in tags:
            self.tags.pop((repo, tag), None)
        for digest in digests:
            self.manifests.pop((repo, digest), None)

    async def check_whole(self, info: BlobInfo, size: int) -> None:
        """Returns if the blob on the disk has `size` bytes (-1: unknown) or its bytes have the right digest.

        Raises `BlobDamaged` if it has not, `StoreError` if the disk cannot be read.
        """
        if info.size != size and not await self.is_sound(info):
            expected = f"{size} expected" if size >= 0 else "and not those of its digest"
            raise BlobDamaged(f"{info.size} bytes on disk, {expected}")

    async def is_sound(self, info: BlobInfo) -> bool:
        """True if the blob on the disk has the right digest. Decides whether the disk or a manifest has the wrong size:
        a manifest with a wrong size must not make others lose the blob.

        The whole blob is hashed, once in each process. Raises `StoreError` if the disk cannot be read.
        """
        if self.sound.get(info.digest) == info.size:
            return True
        matches = await self.once.run(
            ("sound", info.digest, info.size), lambda: asyncio.to_thread(is_right, self.store, info)
        )
        if matches:
            self.sound[info.digest] = info.size
        return matches

    def doubt(self, digest: Digest) -> None:
        """Checks a blob in the background after it failed to be sent, so that it is not sent again if it is damaged."""
        self._behind(self.once.run(("doubt", digest), lambda: self._doubt(digest)))

    async def _doubt(self, digest: Digest) -> None:
        await asyncio.to_thread(doubt, self.store, digest)

    async def landed(self, info: BlobInfo) -> None:
        """Notes that a blob was published: remembers that its digest is right, and updates the index."""
        self.went_cached()
        self.sound[info.digest] = info.size
        await asyncio.wait({self._behind(self.arrived(info))}, timeout=_PATIENCE)

    async def named(self, manifest: Manifest) -> None:
        """Notes that a manifest is stored: records in the index the content that it names, and stores the blobs that it
        embeds. Named content is evicted only with the last manifest that names it.
        """
        telling = self._behind(self.name(References.of(manifest), len(manifest.content)))
        await asyncio.wait({telling}, timeout=_PATIENCE)
        for blob in manifest.blobs:
            if blob.data is not None:
                await self.put_embedded(blob.digest, blob.data)

    async def put_embedded(self, digest: Digest, content: bytes) -> None:
        """Stores a blob whose bytes a manifest embeds. Upstream need not have it (image-spec, "Embedded Content")."""
        try:
            if not await asyncio.to_thread(has_blob, self.store, digest):
                await self.landed(await self.write(self.store.put, digest, content))
        except StoreError as error:
            self.went_uncached(error, digest)

    @asynccontextmanager
    async def alone(self, key: str) -> AsyncIterator[None]:
        """Holds a lock over all processes, so that upstream is asked only once. The body also runs if the lock fails or
        cannot be had in time, for example because its holder hangs.
        """
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(_ALONE_FOR):
                    await stack.enter_async_context(self.exclusive(key))
            except StoreError as error:
                self.went_uncached(error, key)
            except TimeoutError:
                telemetry.log.warning("lock not obtained", key=key, waited=_ALONE_FOR)
            yield

    def settle(self) -> None:
        """Makes written content durable in the background, after the answer. A busy disk takes seconds for that. After
        a power cut before its end, upstream is only asked again.
        """
        self._behind(self._settle())

    async def write(self, work: Callable[..., T], *arguments: object) -> T:
        """Runs blocking work that syncs, in the executor. The few threads that read would all wait for a busy disk."""
        return await asyncio.get_running_loop().run_in_executor(self.executor, work, *arguments)

    def _behind(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self.telling.add(task)
        task.add_done_callback(self.telling.discard)
        return task

    async def _settle(self) -> None:
        try:
            await self.settled()
        except StoreError as error:
            self.went_uncached(error, "names of blobs, tags and manifests")

    async def settled(self) -> None:
        """Returns once all that was written before this call is durable. Raises `StoreError`."""
        # one at a time: each also makes durable what was written while it waited
        async with self.settling:
            await self.write(self.store.settle)
            await self.write(self.catalog.settle)

    async def aclose(self) -> None:
        """Ends fetching ahead, waits for pending writes to index and disk, and cancels shared work. Repeatable."""
        if self.ahead:
            await self.ahead.aclose()
        await asyncio.gather(*self.telling)
        await self.once.aclose()

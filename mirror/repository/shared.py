"""What all repositories share: store, catalog, index, flights, and what is kept in memory of them.

How something gets from an answer to the disk: `write` puts it there, visible to all; `settle` makes its name durable
behind the answer. Telling the index comes last, and may fail: it is a memory of the disk.
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
from mirror.aio.lru import LruCache
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
from mirror.repository.content import Outcome
from mirror.repository.described import Described
from mirror.repository.grants import Grants
from mirror.repository.miss_report import Misses
from mirror.repository.tag_history import TagHistories
from mirror.repository.tag_windows import TagWindows

__all__ = ["LOOK_EVERY", "BlobStat", "CachedTag", "Exclusive", "Listing", "Shared", "page_of"]

T = TypeVar("T")

#: Seconds that upstream is not asked again after it said «not known».
_UNKNOWN_FOR: Final = 10.0
#: Seconds until the disk is looked at again for what a tag points to, and for a manifest that is in memory.
LOOK_EVERY: Final = 2.0
#: Seconds that another process may keep us from asking upstream ourselves. After that each process asks for itself.
#: Containerd gives up without headers after 30 s, so both waits of a pull by tag (tag, manifest) stay well below that.
_ALONE_FOR: Final = 10.0
#: Seconds that an answer waits for the index to take note of a blob.
_PATIENCE: Final = 0.25


class Exclusive(Protocol):
    """A lock over all processes on one store."""

    def __call__(self, key: str) -> AbstractAsyncContextManager[None]: ...


def _weight(manifest: Manifest) -> int:
    """Bytes of memory, roughly: a descriptor is some objects and a digest in text."""
    return 2 * len(manifest.content) + 800 * (len(manifest.manifests) + len(manifest.blobs)) + 1024


@dataclass(frozen=True, slots=True)
class CachedTag:
    """What a tag points to, how that was learnt, and from when until when (epoch seconds) it is believed.

    `kept` says why this is not what upstream would say.
    """

    record: TagRecord
    outcome: Outcome
    since: float
    until: float
    kept: TagOverride | None = None


@dataclass(frozen=True, slots=True)
class BlobStat:
    """What HEAD of a blob tells: `size` in bytes, None where upstream does not say it."""

    size: int | None
    outcome: Outcome
    upstream: str


@dataclass(frozen=True, slots=True)
class Listing:
    """Tags, or referrers, and how the list came about."""

    items: tuple[Any, ...]
    outcome: Outcome
    upstream: str
    #: Whether further ones follow: of tags, one page is given at a time.
    more: bool = False


def page_of(tags: Sequence[str], last: str, count: int, outcome: Outcome, upstream: str) -> Listing:
    """A page of tags that are all here, sorted."""
    start = bisect_right(tags, last)
    return Listing(tuple(tags[start : start + count]), outcome, upstream, start + count < len(tags))


@dataclass(slots=True)
class Shared:
    """What all repositories share."""

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
    #: What was not here in a sealed repository.
    misses: Misses
    #: Tag lists of upstreams.
    lists: TagWindows
    #: The configured upstream that a registry's name falls under: names below a wildcard are no labels of metrics.
    label: Callable[[str], str] = str
    now: Callable[[], float] = time.time
    tags: LruCache[tuple[Repo, str], CachedTag] = field(default_factory=lambda: LruCache(16 << 20, lambda _: 512))
    manifests: LruCache[tuple[Repo, Digest], Manifest] = field(default_factory=lambda: LruCache(64 << 20, _weight))
    #: When the disk was last looked at for a manifest that is in memory (epoch seconds).
    looked: LruCache[Digest, float] = field(default_factory=lambda: LruCache(4 << 20, lambda _: 256))
    #: Sizes in bytes of blobs that were hashed by this process: filled by it, or read because no manifest says the size
    #: or one says another.
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
        """The store could not take something: said once, until it has taken something again; of a blob that it could
        never take, each time.
        """
        telemetry.UNCACHED.inc()
        if isinstance(error, BlobTooLarge):
            # nothing is broken, and nothing that the store takes next would mend it
            telemetry.log.warning("a blob is larger than the store", blob=str(what), reason=str(error))
        elif self.uncached_since is None:
            self.uncached_since = self.now()
            telemetry.STORE_FAILING.inc()
            telemetry.log.error("the store is failing; pulls go through uncached", first=str(what), reason=str(error))

    def went_cached(self) -> None:
        """The store has taken something."""
        if self.uncached_since is not None:
            telemetry.log.info("the store takes content again", uncached_since=self.uncached_since)
            telemetry.STORE_FAILING.dec()
            self.uncached_since = None

    async def is_unknown(self, what: str) -> bool:
        """Whether upstream has said of this a moment ago that it does not know it, to whom we act for."""
        return await self.memo.get(for_caller(what)) is not MISSING

    async def note_unknown(self, what: str) -> None:
        """Upstream has just said so."""
        await self.memo.put(for_caller(what), "unknown", _UNKNOWN_FOR)

    def forget(self, repo: Repo, tags: Iterable[str], digests: Iterable[Digest]) -> None:
        """These were purged: they are not answered from memory."""
        for tag in tags:
            self.tags.drop((repo, tag))
        for digest in digests:
            self.manifests.drop((repo, digest))

    async def check_whole(self, info: BlobInfo, size: int) -> None:
        """Returns where what is on the disk is all of a blob that should have `size` bytes (-1: nobody knows how many).

        Raises `BlobDamaged` where it is not, `StoreError` where the disk does not tell.
        """
        if info.size != size and not await self.is_sound(info):
            expected = f"{size} expected" if size >= 0 else "and not those of its digest"
            raise BlobDamaged(f"{info.size} bytes on disk, {expected}")

    async def is_sound(self, info: BlobInfo) -> bool:
        """Who is wrong, the disk or the manifest? A manifest that lies about a size must not cost others their blob.

        All of it is hashed, once in each process. Raises `StoreError` where the disk does not tell.
        """
        if self.sound.get(info.digest) == info.size:
            return True
        matches = await self.once.run(
            ("sound", info.digest, info.size), lambda: asyncio.to_thread(is_right, self.store, info)
        )
        if matches:
            self.sound.put(info.digest, info.size)
        return matches

    def doubt(self, digest: Digest) -> None:
        """A blob failed while it was sent: look at it behind the answer, so that the next one is not sent from it."""
        self._behind(self.once.run(("doubt", digest), lambda: self._doubt(digest)))

    async def _doubt(self, digest: Digest) -> None:
        await asyncio.to_thread(doubt, self.store, digest)

    async def landed(self, info: BlobInfo) -> None:
        """A blob was published, which means that its digest was right: remember it."""
        self.went_cached()
        self.sound.put(info.digest, info.size)
        await asyncio.wait({self._behind(self.arrived(info))}, timeout=_PATIENCE)

    async def named(self, manifest: Manifest) -> None:
        """A manifest is here: what it names only goes together with it, and what it embeds is here as well."""
        telling = self._behind(self.name(References.of(manifest), len(manifest.content)))
        await asyncio.wait({telling}, timeout=_PATIENCE)
        for blob in manifest.blobs:
            if blob.data is not None:
                await self.put_embedded(blob.digest, blob.data)

    async def put_embedded(self, digest: Digest, content: bytes) -> None:
        """A blob of which a manifest holds the bytes: a registry need not have it (image-spec, "Embedded Content")."""
        try:
            if not await asyncio.to_thread(has_blob, self.store, digest):
                await self.landed(await self.write(self.store.put, digest, content))
        except StoreError as error:
            self.went_uncached(error, digest)

    @asynccontextmanager
    async def alone(self, key: str) -> AsyncIterator[None]:
        """One process at a time, so that upstream is asked once. A help, not a condition: a lock that cannot be had, or
        whose holder has stopped in its tracks, keeps nobody from an answer.
        """
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(_ALONE_FOR):
                    await stack.enter_async_context(self.exclusive(key))
            except StoreError as error:
                self.went_uncached(error, key)
            except TimeoutError:
                telemetry.log.warning("a lock was not to be had", key=key, waited=_ALONE_FOR)
            yield

    def settle(self) -> None:
        """Make durable what was put, behind the answer: a busy disk takes seconds for it, and a power cut before its
        end costs no more than asking upstream again.
        """
        self._behind(self._settle())

    async def write(self, work: Callable[..., T], *arguments: object) -> T:
        """Blocking work that syncs. Not in the threads that read: they are few, and a busy disk would hold them all."""
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
        """What was put so far outlives a power cut when this returns. Raises `StoreError`."""
        # one at a time, which sees to all that was put meanwhile
        async with self.settling:
            await self.write(self.store.settle)
            await self.write(self.catalog.settle)

    async def aclose(self) -> None:
        """Wait for what index and disk are still being told, end what is shared. Repeatable."""
        if self.ahead:
            await self.ahead.aclose()
        await asyncio.gather(*self.telling)
        await self.once.aclose()

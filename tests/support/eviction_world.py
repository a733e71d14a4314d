"""A store, its index and what evicts, by a clock that the test moves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, cast

from mirror.errors import IndexUnavailable, StoreError
from mirror.eviction.shared_rebuild import ensure
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST
from mirror.oci.reference import Repo
from mirror.policy.eviction import Watermarks
from mirror.policy.records import ContentRecord, ManifestRecord, References
from mirror.ports import BlobInfo, ContentIndex, Deleted
from mirror.values.sizes import Capacity
from tests.support.clock import Clock
from tests.support.eviction_parts import EvictionParts, make_eviction
from tests.support.free_locks import FreeLocks
from tests.support.memory_index import MemoryIndex
from tests.support.memory_store import MemoryCatalog, MemoryIngest, MemoryStore

START = 1_000_000.0


REPO = Repo("docker.io", "library/app")


class Watched:
    """An index that can be made unavailable. Counts the records that a choice reads, and reports calls."""

    def __init__(self, index: ContentIndex) -> None:
        self.index = index
        self.down = False
        self.records_read = 0
        self.calls: list[str] = []
        self.before: dict[str, Callable[[], None]] = {}

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.index, name)

        async def call(*arguments: Any) -> Any:
            self.calls.append(name)
            if self.down:
                raise IndexUnavailable("taken away by the test")
            self.before.get(name, lambda: None)()
            answer = await method(*arguments)
            if name == "least_recently_used":
                self.records_read += len(answer)
            if name == "successors":
                self.records_read += sum(map(len, answer.values()))
            return answer

        return call


class CountingStore(MemoryStore):
    """Counts walks and notes of use, and may refuse to delete. The blobs in `hosted` have a hosted name as well: their
    deletion frees nothing. Hosted content without another name takes `hosted_bytes` of the disk.
    """

    def __init__(self, disk: int = 1 << 40) -> None:
        super().__init__(disk)
        self.walks = 0
        self.marked: list[dict[Digest, float]] = []
        self.stuck: set[Digest] = set()
        self.hosted: set[Digest] = set()
        self.hosted_bytes = 0
        self.failing = False

    def walk(self) -> Any:
        self.walks += 1
        return super().walk()

    def mark_used(self, seen: Any) -> None:
        self.marked.append(dict(seen))
        super().mark_used(seen)

    def delete(self, digest: Digest) -> Deleted:
        if digest in self.stuck:
            raise StoreError("read-only")
        deleted = super().delete(digest)
        if digest not in self.hosted:
            return deleted
        self.hosted_bytes += deleted.size
        return Deleted(deleted.size, 0)

    def free(self) -> tuple[int, int]:
        if self.failing:
            raise StoreError("the disk is gone")
        free, disk = super().free()
        return max(0, free - self.hosted_bytes), disk


class World:
    """A store of 1000 bytes (high water 900, low water 800), its index, and an evictor."""

    def __init__(
        self, index: ContentIndex | None = None, *, capacity: int = 1000, disk: int = 1 << 40, **limits: Any
    ) -> None:
        self.store = CountingStore(disk)
        self.index = Watched(index or MemoryIndex())
        self.clock = Clock(START)
        self.flying: set[Digest] = set()
        self.pinned: set[Digest] = set()
        self.catalog = MemoryCatalog()
        self.lock = asyncio.Lock()
        self.rebuilds = 0
        self.water = Watermarks(Capacity(bytes=capacity), 0.9, 0.8, reserve=0)
        parts = self.another(**limits)
        self.write_behind, self.evictor = parts.write_behind, parts.evictor
        self.space, self.rounds = parts.space, parts.rounds
        self.settle: Callable[[], Awaitable[None]]

    @property
    def port(self) -> ContentIndex:
        """The watched index, as the port that it stands for."""
        return cast(ContentIndex, self.index)

    def another(self, protected: Callable[[], Collection[Digest]] | None = None, **more: Any) -> EvictionParts:
        """The parts as another process has them, with its own view of the blobs in flight."""
        given: dict[str, Any] = {"pinned": lambda _: self.pinned, "rebuild": self.rebuild, **more}
        return make_eviction(
            self.store,
            self.catalog,
            self.port,
            self.water,
            exclusive=self.exclusive,
            protected=protected or (lambda: self.flying),
            now=self.clock,
            **given,
        )

    def exclusive(self) -> AbstractAsyncContextManager[None]:
        """One lock for all evictors."""
        return locked(self.lock)

    async def rebuild(self) -> None:
        """As `ensure` does it."""
        self.rebuilds += 1
        await ensure(self.store, self.catalog, self.port, try_hold=FreeLocks().try_hold)

    async def publish(self, number: int) -> BlobInfo:
        """Publish a blob; the index learns of it if it answers."""
        content = f"{number:08}".encode().ljust(100, b".")
        self.store.put(digest := Digest.of(content), content)
        info = self.store.stat(digest)
        await self.write_behind.record_blob(info)
        return info

    async def add(self, number: int, size: int = 100, *, used: float | None = None, pin: bool = False) -> Digest:
        """A blob in store and index; `used` in seconds after the start, by default its number."""
        content = f"{number:08}".encode().ljust(size, b".")
        digest = Digest.of(content)
        at = START - 1000 + (number if used is None else used)
        self.store.put(digest, content)
        MemoryStore.mark_used(self.store, {digest: at})
        await self.index.index.put([ContentRecord(digest, len(content), at)])
        if pin:
            self.pinned.add(digest)
        return digest

    async def image(self, used: float, *blobs: Digest, manifests: Sequence[Digest] = (), repo: Repo = REPO) -> Digest:
        """A manifest of 600 bytes that names these, or an index; `used` in seconds after the start."""
        listed = [{"mediaType": "x/y", "digest": str(digest), "size": 100} for digest in (*manifests, *blobs)]
        kind, field = (OCI_INDEX, "manifests") if manifests else (OCI_MANIFEST, "layers")
        body = {"schemaVersion": 2, "mediaType": kind, field: listed}
        content = json.dumps(body).encode().ljust(600)
        digest = Digest.of(content)
        self.store.put(digest, content)
        self.catalog.put_manifest(repo, ManifestRecord(digest, kind, len(content), 0.0))
        MemoryStore.mark_used(self.store, {digest: START - 1000 + used})
        await self.index.index.put([ContentRecord(digest, len(content), START - 1000 + used)])
        await self.index.index.record_references([References(digest, tuple(manifests), blobs)])
        return digest

    def present(self) -> set[Digest]:
        """The blobs on disk; reading them does not count as a walk."""
        return {info.digest for info in MemoryStore.walk(self.store)}


@asynccontextmanager
async def locked(lock: asyncio.Lock) -> AsyncIterator[None]:
    """The lock as a context of its own."""
    async with lock:
        yield


def growing(store: MemoryStore, content: bytes, size: int) -> MemoryIngest:
    """A fill that has announced its size."""
    ingest = store.ingest(Digest.of(content), "docker.io")
    assert ingest.try_lock()
    ingest.expect(size)
    return ingest


async def until(condition: Callable[[], bool]) -> None:
    """Let others work until it is so."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # nothing announces the condition
            await asyncio.sleep(0.001)

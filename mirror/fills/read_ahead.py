"""Fetches the blobs of a manifest that a client has just been given, before the client asks for them.

    manifest fetched ──> begin() ──> in its order: here already? under way? too large? ── no ──> a slot ──> flight
                                                         └── yes: left alone        (`at_once` of them in a process)

The client's own requests then find their blobs under way and follow them. No request waits for this work, and no error
in it reaches a client: the client's own request reports its own error. When the mirror stops, blobs that were not begun
are dropped; those under way stay as partials, like any other fill.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Protocol

from mirror import telemetry
from mirror.aio.singleflight import cancel_and_wait
from mirror.errors import MirrorError
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest

#: Manifests whose blobs may be fetched, or wait for a slot, at a time. Further manifests are skipped: their clients ask
#: for the blobs anyway.
_MOST_WAITING: Final = 200


class Fetching(Protocol):
    """The part of a repository that `ReadAhead` uses (`ProxiedRepository`, `GuardedProxy`)."""

    def has(self, digest: Digest) -> bool:
        """True if the blob is in the store."""

    def is_fetching(self, digest: Digest) -> bool:
        """True if this process is fetching the blob."""

    async def fetch(self, digest: Digest, progress: Callable[[int, int | None], None]) -> bool:
        """Fetches the blob into the store. Raises `MirrorError`."""


class ReadAhead:
    """Fetches blobs in the background. Each serving process has one."""

    def __init__(self, limit: Callable[[], Awaitable[int]], *, at_once: int) -> None:
        """`limit` returns how many bytes the store may hold now. At most `at_once` blobs are fetched at a time."""
        self._limit = limit
        self._slots = asyncio.Semaphore(at_once)
        self._tasks: set[asyncio.Task[None]] = set()
        self._manifests: set[Digest] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"<ReadAhead {len(self._manifests)} manifests under way>"

    def begin(self, repository: Fetching, manifest: Manifest) -> None:
        """Starts fetching the config and the layers of an image manifest. Returns at once; raises nothing.

        An index is skipped: the client chooses the platform.
        """
        full = len(self._manifests) >= _MOST_WAITING
        if self._closed or full or manifest.is_index or manifest.digest in self._manifests:
            return
        self._manifests.add(manifest.digest)
        telemetry.AHEAD.inc()
        task = self._start(partial(self._fetch_blobs, repository, manifest))
        task.add_done_callback(lambda _: self._ended(manifest.digest))

    async def aclose(self) -> None:
        """Cancels all fetching; blobs under way stay as partials. Repeatable."""
        self._closed = True
        while self._tasks:
            await cancel_and_wait(*self._tasks)

    def _ended(self, digest: Digest) -> None:
        self._manifests.discard(digest)
        telemetry.AHEAD.dec()

    def _start(self, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(_logged(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _fetch_blobs(self, repository: Fetching, manifest: Manifest) -> None:
        room = await self._limit()
        for blob in {blob.digest: blob for blob in manifest.blobs}.values():
            # a blob of unknown size may be too large for the store
            if blob.foreign or not 0 <= blob.size <= room:
                continue
            # an image that is larger than the store must not evict its own first layers
            room -= blob.size
            if not self._is_needless(repository, blob.digest):
                await self._slots.acquire()
                task = self._start(partial(self._fetch, repository, blob.digest))
                task.add_done_callback(lambda _: self._slots.release())

    async def _fetch(self, repository: Fetching, digest: Digest) -> None:
        # the client may have asked for the blob while this task waited for its slot
        if not self._is_needless(repository, digest):
            await repository.fetch(digest, lambda _received, _size: None)

    def _is_needless(self, repository: Fetching, digest: Digest) -> bool:
        return repository.is_fetching(digest) or repository.has(digest)


async def _logged(work: Callable[[], Awaitable[None]]) -> None:
    try:
        await work()
    except MirrorError as error:
        telemetry.log.debug("read-ahead skipped", reason=str(error))
    except Exception:
        telemetry.log.exception("read-ahead crashed")

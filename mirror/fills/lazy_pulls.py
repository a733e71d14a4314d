"""All blobs of one process of which small parts are asked for, and what becomes of them.

    open() ──> LazyBlob, entered ── leave() ──> idle ──┬── a share of it is here ──> fetched whole
      │                          ^                │    └── less is here ──> its files are closed, the bytes stay
      │                          └── open() ──────┘
      └── NotInParts: its upstream ignores ranges, or its parts were wrong lately ──> the ordinary way
                      (known to this process, and by the store to the others)

The whole is fetched by an ordinary flight. It takes what is here, fetches the rest, and finds out whether what clients
were sent was right.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from contextvars import Context
from typing import Final

from mirror import telemetry
from mirror.aio.caches import TtlCache
from mirror.aio.closing import close_all
from mirror.aio.singleflight import cancel_and_wait
from mirror.aio.threads import run_uninterrupted
from mirror.errors import MirrorError, StoreFull
from mirror.fills.lazy_blob import LazyBlob
from mirror.fills.part_fetches import Asker, PartsThrottled, PartTools, RangesIgnored, SizeDisputed
from mirror.fills.part_files import AVOIDED, NotInParts
from mirror.fills.room import ReservedSpace, Room
from mirror.oci.digest import Digest
from mirror.oci.span import Span
from mirror.policy.rules import LazyRule
from mirror.ports import BlobStore

_MOST_AVOIDED: Final = 10_000
#: Fetches of one process at the same time.
_AT_ONCE: Final = 16
#: Blobs of one process that are fetched whole at the same time, because parts of them were asked for.
_MOST_COMPLETED: Final = 2
#: Seconds after which the files of a blob of which nobody reads parts are closed.
_CLOSE_AFTER: Final = 5.0
#: Seconds between two looks whether parts are still read and fetched, at the least.
_SHORTEST: Final = 0.05
#: Room that is reserved in one go for the parts of all blobs, in bytes, and seconds that a part waits for it.
_STEP: Final = 64 << 20
_ROOM_PATIENCE: Final = 1.0


class LazyPulls:
    """See the head of this file."""

    def __init__(
        self,
        store: BlobStore,
        room: Room,
        executor: Executor,
        *,
        label: Callable[[str], str] = str,
        patience: float = 30.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`executor` runs the threads that receive. `label` returns the configured upstream that a registry belongs to.
        A fetch waits `patience` seconds, measured by `clock`, for an upstream that was answering.
        """
        self._space = _SteppedRoom(room)
        self._tools = PartTools(
            store,
            executor,
            self._space,
            asyncio.Semaphore(_AT_ONCE),
            self._avoid,
            label=label,
            patience=patience,
            sleep=sleep,
            clock=clock,
        )
        self._blobs: dict[tuple[str, Digest], LazyBlob] = {}
        #: What fetches the rest of each blob that is open, and for whom: who has asked last.
        self._tending: dict[LazyBlob, asyncio.Task[None]] = {}
        self._latest: dict[LazyBlob, tuple[LazyRule, Asker]] = {}
        self._completing = asyncio.Semaphore(_MOST_COMPLETED)
        self._ignoring: TtlCache[str, bool] = TtlCache(
            _MOST_AVOIDED, AVOIDED, clock, name="upstreams that ignore ranges"
        )
        #: Until when no parts are asked for.
        self._throttling: TtlCache[str, float] = TtlCache(
            _MOST_AVOIDED, AVOIDED, clock, name="upstreams that throttle parts"
        )
        #: Blobs that were wrong, or (with a size) of which upstream says another size.
        self._unfit: TtlCache[tuple[str, Digest, int | None], bool] = TtlCache(
            _MOST_AVOIDED, AVOIDED, clock, name="blobs without lazy parts"
        )

    def __repr__(self) -> str:
        return f"<LazyPulls {len(self._blobs)} blobs>"

    def digests(self) -> Collection[Digest]:
        """Returns the digests of the blobs of which parts are read, which must not be evicted."""
        return {digest for (_, digest), blob in self._blobs.items() if not blob.is_idle}

    async def are_coming(self, digest: Digest, upstream: str) -> bool:
        """True if any process of this store fetches parts of the blob now. Raises `StoreError`."""
        blob = self._blobs.get((upstream, digest))
        if blob is not None and blob.is_fetching:
            return True
        return await run_uninterrupted(self._tools.executor, self._are_taken, digest, upstream)

    def _are_taken(self, digest: Digest, upstream: str) -> bool:
        spans = self._tools.store.spans(digest, upstream, None)
        if spans is None:
            return False
        try:
            return bool(spans.taken(Span(0, spans.size)))
        finally:
            spans.close()

    def avoids(self, digest: Digest, upstream: str, size: int) -> bool:
        """True if no parts of the blob are fetched: its upstream ignores ranges or wants fewer requests, or something
        was wrong with them.
        """
        unfit = self._unfit
        if self._throttling.get(upstream, 0.0) > self._tools.clock():
            return True
        return upstream in self._ignoring or (upstream, digest, None) in unfit or (upstream, digest, size) in unfit

    def _avoid(self, upstream: str, digest: Digest, size: int, error: NotInParts) -> None:
        if isinstance(error, RangesIgnored):
            if upstream not in self._ignoring:
                telemetry.log.info("upstream ignores ranges", upstream=upstream, digest=str(digest))
            self._ignoring[upstream] = True
        elif isinstance(error, PartsThrottled):
            self._throttling[upstream] = self._tools.clock() + error.seconds
        elif isinstance(error, SizeDisputed):
            self._unfit[upstream, digest, size] = True

    async def found_wrong(self, digest: Digest, upstream: str, reason: str) -> None:
        """The blob has been received, partly in parts, and is wrong: it is not fetched in parts for some time."""
        self._unfit[upstream, digest, None] = True
        blob = self._blobs.get((upstream, digest))
        if blob is not None:
            await blob.accuse(reason)

    @asynccontextmanager
    async def open(
        self, digest: Digest, upstream: str, size: int, rule: LazyRule, asker: Asker
    ) -> AsyncIterator[LazyBlob]:
        """Yields the blob, entered. `size` is that of the whole blob in bytes, as a manifest says it. After that, the
        whole is fetched for the `asker` as `rule` says. Raises `NotInParts`, `StoreError`.
        """
        if self.avoids(digest, upstream, size):
            raise NotInParts(f"{digest} is not fetched in parts now", upstream=upstream)
        blob = self._blobs.get((upstream, digest))
        if blob is not None and blob.size != size:
            raise NotInParts(f"parts of {digest} are fetched for a size of {blob.size} bytes", upstream=upstream)
        if blob is None:
            blob = self._blobs[upstream, digest] = LazyBlob(digest, upstream, size, self._tools)
        try:
            await blob.enter()
        except BaseException:
            self._forget(blob)
            raise
        telemetry.LAZY_ANSWERS.labels(self._tools.label(upstream)).inc()
        try:
            yield blob
        finally:
            blob.leave()
            self._tend_later(blob, rule, asker)

    def resume(self, digest: Digest, upstream: str, size: int, rule: LazyRule, asker: Asker) -> None:
        """Lets the whole of a blob follow, of which parts were asked for before a restart."""
        blob = self._blobs.get((upstream, digest))
        if blob is None:
            blob = self._blobs[upstream, digest] = LazyBlob(digest, upstream, size, self._tools)
            self._tend_later(blob, rule, asker)

    def _tend_later(self, blob: LazyBlob, rule: LazyRule, asker: Asker) -> None:
        """Lets the whole blob be fetched for the last asker once it is time. Returns at once."""
        self._latest[blob] = rule, asker
        if blob not in self._tending:
            task = asyncio.create_task(self._tend(blob), name=f"rest of {blob.digest}", context=Context())
            self._tending[blob] = task

    async def _tend(self, blob: LazyBlob) -> None:
        """Fetches the whole blob once it is time, and closes its files when nobody reads parts of it any more."""
        try:
            while True:
                await self._quiet(blob)
                rule, asker = self._latest[blob]
                # with the credentials of the last asker
                await asyncio.create_task(self._complete(blob, rule, asker), context=asker.context.copy())
                if blob.is_idle:
                    return
        finally:
            # without a pause after the look: whoever asks next begins anew
            del self._tending[blob]
            self._forget(blob)
            if not self._blobs:
                self._space.release()

    def _forget(self, blob: LazyBlob) -> None:
        """Closes a blob that nobody uses, and that nothing looks after."""
        if blob.is_idle and blob not in self._tending:
            blob.close()
            self._latest.pop(blob, None)
            if self._blobs.get((blob.upstream, blob.digest)) is blob:
                del self._blobs[blob.upstream, blob.digest]

    async def _quiet(self, blob: LazyBlob) -> None:
        """Returns once no part of the blob was asked for during the pause of its rule."""
        asked_at = None
        while asked_at != blob.asked_at or not blob.is_idle:
            asked_at, pause = blob.asked_at, max(self._latest[blob][0].pause, _SHORTEST)
            await self._tools.sleep(min(pause, _CLOSE_AFTER))
            if pause > _CLOSE_AFTER:
                if asked_at == blob.asked_at:
                    blob.close()
                await self._tools.sleep(pause - _CLOSE_AFTER)

    async def _complete(self, blob: LazyBlob, rule: LazyRule, asker: Asker) -> None:
        """Fetches the whole blob if enough of it is here. Raises nothing: the next request for a part tries again."""
        try:
            async with self._completing:
                await blob.enter()
                try:
                    here = await run_uninterrupted(self._tools.executor, blob.here)
                    if not rule.has_enough(here, blob.size):
                        # it may stay like this for long
                        await run_uninterrupted(self._tools.executor, blob.sync)
                finally:
                    blob.leave()
                if rule.has_enough(here, blob.size):
                    await asker.whole()
                    telemetry.LAZY_COMPLETED.labels("stored").inc()
        except NotInParts:
            # it is in the store
            return
        except MirrorError as error:
            telemetry.LAZY_COMPLETED.labels("failed").inc()
            telemetry.log.info(
                "lazy blob not completed", digest=str(blob.digest), upstream=blob.upstream, reason=str(error)
            )
        except Exception:
            telemetry.log.exception("completion of a lazy blob crashed", digest=str(blob.digest))

    async def aclose(self) -> None:
        """Ends all fetches and completions: what is here stays. Repeatable."""
        await close_all(
            lambda: cancel_and_wait(*self._tending.values()),
            self._close_blobs,
            self._blobs.clear,
            self._space.release,
        )

    async def _close_blobs(self) -> None:
        await close_all(*(blob.aclose for blob in self._blobs.values()))


class _SteppedRoom:
    """Room for the parts of all blobs, reserved in steps: to reserve it looks at the whole store. Implements
    `PartRoom`.
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        self._reserved: ReservedSpace | None = None
        self._left = 0
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<_SteppedRoom {self._left} bytes left>"

    async def take(self, size: int) -> None:
        """See `PartRoom`."""
        async with self._turn:
            if size > self._left:
                # what was taken before is on the disk by now, and counts there
                self.release()
                try:
                    async with asyncio.timeout(_ROOM_PATIENCE):
                        self._left = await self._reserve(size)
                except TimeoutError as error:
                    raise StoreFull("no room for parts in time") from error
            self._left -= size

    async def _reserve(self, size: int) -> int:
        for step in (max(size, _STEP), size):
            try:
                self._reserved = await self._room.reserve(step)
            except StoreFull:
                if step == size:
                    raise
            else:
                break
        return step

    def release(self) -> None:
        """Gives the rest back. Repeatable."""
        reserved, self._reserved, self._left = self._reserved, None, 0
        if reserved is not None:
            reserved.release()

"""A bucket as a source of blobs, read by blocking calls in threads.

    source() ── the object that has the blob ──> open it ──┬─ its size is right ──> its bytes
       ^                                                   └─ gone, or another size ── twice ──> `lost`: out of service
       └──────── once more: another object may have replaced it ──────┘

Hosted content has no other source: a fill waits for the bucket as it waits for an upstream. Cached content has: the
bucket gets one short time to answer, and a rate below which it is left; while it does not answer, a breaker leaves it
alone. Whatever it is, an object is called wrong only after it was read a second time, whole: the first bytes may have
come from a partial file, from another source, or over a bad way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import Final

from mirror import telemetry
from mirror.aio.breaker import Breaker
from mirror.errors import (
    BlobDamaged,
    BlobUnknown,
    BucketDenied,
    StoreError,
    UpstreamDenied,
    UpstreamError,
    UpstreamNotFound,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from mirror.fills.sources import BUCKET
from mirror.fills.watched_body import WatchedBody
from mirror.graph.blob_in_bucket import object_matches, open_blob
from mirror.oci.digest import Digest
from mirror.ports import BlobObject, BlobObjects, Body, ObjectReader

#: Seconds that the bucket gets to answer for a cached blob, which upstream has as well.
_PATIENCE: Final = 2.0
#: Bytes per second below which the bucket is left for upstream, measured over so many seconds.
_LOWEST_RATE: Final = 64 << 10
_WINDOW: Final = 3.0


class BucketReads:
    """How the flights of one process read blobs from a bucket."""

    def __init__(
        self,
        bucket: ObjectReader,
        executor: Executor,
        *,
        opening: Executor | None = None,
        patience: float = _PATIENCE,
        window: float = _WINDOW,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`executor` runs the threads that read objects, `opening` those that open them (None: the same). A cached blob
        is taken from upstream if the bucket has not answered within `patience` seconds, or is too slow for `window`
        seconds.
        """
        self.bucket: Final = bucket
        self.executor: Final = executor
        self.opening: Final = opening or executor
        self.patience: Final = patience
        self.window: Final = window
        self.breaker: Final = Breaker(clock)

    def __repr__(self) -> str:
        return f"<BucketReads {self.breaker!r}>"

    def hosted(self, objects: BlobObjects, digest: Digest) -> BucketSource:
        """Returns the only source of a hosted blob."""
        return BucketSource(self, objects, digest, is_only=True)

    def cached(self, objects: BlobObjects, digest: Digest) -> BucketSource:
        """Returns a source of a cached blob, which is nearer than its upstream."""
        return BucketSource(self, objects, digest, is_only=False)


class BucketSource:
    """`BlobSource` of one blob. Not for two flights."""

    name: Final = BUCKET
    member: Final = ""

    def __init__(self, reads: BucketReads, objects: BlobObjects, digest: Digest, *, is_only: bool) -> None:
        self._reads = reads
        self._objects = objects
        self._digest = digest
        self._is_only = is_only
        #: The object that was opened last.
        self._found: BlobObject | None = None
        self._accused = False

    def __repr__(self) -> str:
        return f"<BucketSource {self._digest}{' only' if self._is_only else ''}>"

    @property
    def gave(self) -> bool:
        return self._found is not None

    # --------------------------------------------------------------------------------------------------- reading

    @asynccontextmanager
    async def pull(self, start: int, stop: int | None = None) -> AsyncIterator[Body]:
        """See `BlobSource`. Raises `UpstreamDenied` if the bucket refuses the mirror."""
        opened = await (self._open(start, stop) if self._is_only else self._open_soon(start, stop))
        if opened is None:
            raise UpstreamNotFound(f"the bucket does not have {self._digest}", upstream=BUCKET)
        self._found, body = opened
        try:
            if self._is_only:
                yield body
            else:
                watched = WatchedBody(body, BUCKET)
                async with _paced(watched, self._reads.window):
                    yield watched
        finally:
            # frees the connection if the body was not read to its end
            body.abort()

    async def _open_soon(self, start: int, stop: int | None) -> tuple[BlobObject, Body] | None:
        """Like `_open`, within the time that a nearer source gets, and not at all while the bucket does not answer."""
        breaker = self._reads.breaker
        ticket = breaker.admit()
        if ticket is None:
            # nobody is asked, and nothing is counted as left
            raise UpstreamNotFound("the bucket did not answer lately", upstream=BUCKET)
        try:
            opened = await self._open(start, stop, self._reads.patience)
        except (UpstreamUnavailable, UpstreamDenied) as error:
            if breaker.fail(ticket):
                telemetry.log.warning("cached content not read from bucket", reason=str(error))
            raise
        except BaseException:
            breaker.withdraw(ticket)
            raise
        if breaker.succeed(ticket):
            telemetry.log.info("cached content read from bucket again")
        return opened

    async def _open(
        self, start: int, stop: int | None, patience: float | None = None
    ) -> tuple[BlobObject, Body] | None:
        """Opens the blob's object in a thread. None if there is none. Raises `UpstreamError`."""
        loop = asyncio.get_running_loop()
        try:
            opening = loop.run_in_executor(self._reads.opening, self._open_now, start, stop)
        except StoreError as error:
            raise UpstreamUnavailable(str(error), upstream=BUCKET) from error
        ended = False
        try:
            ended = bool((await asyncio.wait({opening}, timeout=patience))[0])
        finally:
            if not ended:
                # the thread ends with the bucket's own time-outs
                opening.add_done_callback(_abort_unwanted)
        if not ended:
            raise UpstreamTimeout(f"no answer within {patience:g} s", upstream=BUCKET)
        try:
            return opening.result()
        except BucketDenied as error:
            raise UpstreamDenied(str(error), upstream=BUCKET) from error
        except StoreError as error:
            raise UpstreamUnavailable(str(error), upstream=BUCKET) from error

    def _open_now(self, start: int, stop: int | None) -> tuple[BlobObject, Body] | None:
        try:
            return open_blob(self._reads.bucket, self._objects, self._digest, start, stop)
        except (BlobUnknown, BlobDamaged):
            return None

    # ------------------------------------------------------------------------------------------------- wrong bytes

    async def accuse(self, reason: str) -> bool:
        """See `BlobSource`. The object is read once more, in case that the network or the disk of this machine was to
        blame. A hosted blob has no other source, and waits for that; for a cached one, it goes on in its thread if it
        takes long.
        """
        if self._found is None:
            return False
        again, self._accused = self._is_only and not self._accused, True
        loop = asyncio.get_running_loop()
        judging = loop.run_in_executor(self._reads.executor, self._judge, self._found, reason)
        patience = None if self._is_only else self._reads.patience
        ended, _ = await asyncio.wait({judging}, timeout=patience)
        return bool(ended) and judging.result() and again

    def _judge(self, found: BlobObject, reason: str) -> bool:
        """True if the object is good after all."""
        try:
            if object_matches(self._reads.bucket, found):
                return True
            self._objects.lost(found, reason)
        except (StoreError, UpstreamError) as error:
            telemetry.log.error("bucket object cannot be checked", digest=str(self._digest), reason=str(error))
        return False


def _abort_unwanted(opening: asyncio.Future[tuple[BlobObject, Body] | None]) -> None:
    if not opening.cancelled() and opening.exception() is None and (opened := opening.result()):
        opened[1].abort()


@asynccontextmanager
async def _paced(body: WatchedBody, window: float) -> AsyncIterator[None]:
    """Aborts the body if it gives too few bytes while a thread waits for them."""
    watching = asyncio.create_task(_watch(body, window))
    try:
        yield
    finally:
        watching.cancel()


async def _watch(body: WatchedBody, window: float) -> None:
    before = -1
    while not (body.is_awaited and before >= 0 and body.received - before < _LOWEST_RATE * window):
        before = body.received if body.is_awaited else -1
        await asyncio.sleep(window)
    body.leave("too slow")

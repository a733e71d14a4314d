"""Blobs that are read again in the background, because somebody has pushed an image that was here already.

    ask() ──> waiting ──> read and hashed, at a limited rate ──┬── right ──> not read again for an hour
                └── too many wait: left to the scrub           ├── wrong, or unreadable ──> once more, and set aside
                                                               └── gone, or another error ──> left as it is

Clients ask by HEAD which blobs an image still lacks, and do not send those that are here. So damage that nobody has
found yet would not be repaired by a push either. Whoever pushes the same image under the same tag once more may want
just that: what is damaged is out of service soon, and the next push sends it. What the disk cannot read is damaged as
well, as it is for a pull.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import closing
from typing import Final

from mirror import telemetry
from mirror.aio.caches import TtlCache
from mirror.aio.cancellation import raise_if_cancelled
from mirror.aio.singleflight import cancel_and_wait
from mirror.aio.token_bucket import TokenBucket
from mirror.errors import BlobUnknown, BlobUnreadable, StoreError
from mirror.graph.damage import hashes_to_slowly
from mirror.intake.integrity import Integrity
from mirror.oci.digest import Digest
from mirror.ports import Blobs

#: Blobs that wait, at most.
_MOST_WAITING: Final = 1000
#: Seconds for which a blob that was right is not read again, and how many such blobs are remembered.
_BELIEVED: Final = 3600.0
_MOST_BELIEVED: Final = 100_000


class Rechecks:
    """Those of one process."""

    def __init__(
        self,
        store: Blobs,
        integrity: Integrity,
        rate: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`integrity` sets aside what is wrong in the `store`. `rate` is in bytes per second; None: no limit. `clock`
        counts seconds.
        """
        self._store = store
        self._integrity = integrity
        self._pace = TokenBucket(rate)
        self._clock = clock
        self._sleep = sleep
        #: In the order in which they were asked for.
        self._waiting: dict[Digest, None] = {}
        self._right: TtlCache[Digest, bool] = TtlCache(_MOST_BELIEVED, _BELIEVED, clock, name="blobs read again")
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<Rechecks {len(self._waiting)} waiting>"

    def ask(self, digests: Iterable[Digest]) -> None:
        """Lets these blobs be read again. Returns at once; does nothing once this has ended."""
        if self._closed:
            return
        for digest in digests:
            if digest not in self._right and len(self._waiting) < _MOST_WAITING:
                self._waiting[digest] = None
        if self._waiting and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._work(), name="blobs read again")

    async def _work(self) -> None:
        while self._waiting:
            digest = next(iter(self._waiting))
            try:
                await self._check(digest)
            except (Exception, asyncio.CancelledError) as error:
                raise_if_cancelled(error)
                # go on after any error: others wait behind this one
                telemetry.log.exception("recheck crashed", digest=str(digest))
            finally:
                self._waiting.pop(digest, None)

    async def _check(self, digest: Digest) -> None:
        try:
            if await self._is_right(digest):
                self._right[digest] = True
                return
        except BlobUnknown:
            # deleted, or set aside meanwhile
            return
        except BlobUnreadable:
            pass
        except StoreError as error:
            telemetry.log.warning("blob cannot be read", digest=str(digest), reason=str(error))
            return
        await self._integrity.recheck(digest)

    async def _is_right(self, digest: Digest) -> bool:
        """Raises `BlobUnknown`, `StoreError`."""
        # no thread: this only opens a file, as every pull of a blob does
        _, reader = self._store.open(digest)
        with closing(reader):
            return await hashes_to_slowly(reader, digest, self._pace, clock=self._clock, sleep=self._sleep)

    async def aclose(self) -> None:
        """Ends: what waits is left to the scrub. Repeatable."""
        self._closed = True
        self._waiting.clear()
        if self._task is not None:
            await cancel_and_wait(self._task)

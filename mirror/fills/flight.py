"""One flight, as its followers see it: the growing file, and how much of it they may be sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from enum import Enum
from typing import Final

from mirror import telemetry
from mirror.caller import caller_mark
from mirror.errors import MirrorError, StoreError
from mirror.fills.sources import BlobSources
from mirror.oci.digest import Digest
from mirror.policy.send_limit import may_send
from mirror.ports import BlobReader, BlobStore, Ingest

#: Followers in one process are woken after so many bytes or seconds: a wake-up for each received buffer would cost more
#: than the transfer.
NOTICE_BYTES: Final = 4 << 20
_NOTICE_SECONDS: Final = 0.05


class InParts(Enum):
    """Whether bytes of a blob may come out of turn: by whom they may be here, or be fetched, ahead of the prefix."""

    #: By nobody: the fill looks for no spans.
    NO = "no"
    #: By further connections of a fill.
    AHEAD = "ahead"
    #: Also by clients that ask for parts.
    LAZY = "lazy"


class Flight:
    """The transfer of one blob, as this process sees it."""

    def __init__(
        self,
        digest: Digest,
        upstream: str,
        size: int | None,
        on_behalf: object,
        sources: BlobSources,
        store: BlobStore,
    ) -> None:
        self.digest = digest
        self.upstream = upstream
        #: Where the blob is looked for, and put.
        self.store = store
        self.in_parts = InParts.NO
        #: Where a fill of this process takes the bytes from.
        self.sources = sources
        #: The name of the source that gives them now; empty for the upstream, and while another process fills.
        self.source = ""
        #: The sources for another try, if the bytes were wrong and this flight must fail.
        self.again: BlobSources | None = None
        #: The flight that has begun in its place then.
        self.successor: Flight | None = None
        #: The repository whose rights at upstream the flight uses and whose manifest gave the size.
        self.on_behalf = on_behalf
        self.caller = caller_mark()
        #: Size of the whole blob in bytes; None while it is unknown.
        self.size = size
        #: Bytes from the start that may be sent to clients now.
        self.sendable = 0
        self.received = 0
        #: True if the whole blob is here and its digest is verified; it may still have to be published.
        self.landed = False
        #: True if this process fills the file. If not, another process may still be publishing a blob that landed here.
        self.filled_here = False
        #: True if this process's fill ended with the blob in the store; the blob may have been dropped since.
        self.stored = False
        self.error: MirrorError | None = None
        self.followers = 0
        #: Done once upstream's headers, or the blob in the store, are there; failed if the flight could not start.
        self.announced: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        #: Set when the flight's task ends: the fill is committed or given up.
        self.over = asyncio.Event()
        self._reader: BlobReader | None = None
        #: What this process is filling.
        self._filling: Ingest | None = None
        self._changed = asyncio.Event()
        self._notified_at = 0.0
        self._notified_bytes = 0
        self._notice_pending = False

    def __repr__(self) -> str:
        whole = "?" if self.size is None else str(self.size)
        how = "landed" if self.landed else f"failed: {self.error}" if self.error else "flying"
        return (
            f"<Flight {str(self.digest)[:19]}… {self.received}/{whole} bytes, {self.followers} followers, "
            f"{self.upstream}, {how}>"
        )

    @property
    def reader(self) -> BlobReader:
        """The reader of the growing file, shared by all followers. Raises `StoreError` before `announced` is done."""
        if self._reader is None:
            raise StoreError(f"{self.digest} has no bytes yet")
        return self._reader

    async def wait_past(self, position: int) -> int:
        """Waits until more than `position` bytes may be sent. Returns how many bytes from the start may be sent.

        Returns `position` or less if the blob has landed and has no more bytes. Raises the error of a failed flight.
        """
        while self.sendable <= position:
            if self.error:
                raise self.error.with_traceback(None)
            if self.landed:
                break
            await self._changed.wait()
        return self.sendable

    def follow(self) -> None:
        """Adds a follower, who must `leave`."""
        self.followers += 1
        telemetry.FOLLOWERS.inc()

    def leave(self) -> None:
        """Removes a follower. If it is the last one and the flight is over, the file is closed."""
        self.followers -= 1
        telemetry.FOLLOWERS.dec()
        self._close_if_unused()

    # -------------------------------------------------------------------- called by the task that carries the flight

    def announce(self, opened: Callable[[], BlobReader]) -> None:
        """Lets the joiners go on: upstream's headers, or the blob in the store, are there. Repeatable."""
        if self._reader is None:
            self._reader = opened()
        if not self.announced.done():
            self.announced.set_result(None)

    def watch(self, ingest: Ingest) -> Callable[[], None]:
        """Follows an ingest that this process fills. Returns the callback that the filling thread calls after each
        write: it is cheap, and leaves at most one call pending on the event loop.
        """
        self._filling = ingest
        loop = asyncio.get_running_loop()

        def progress() -> None:
            if not self._notice_pending:
                self._notice_pending = True
                loop.call_soon_threadsafe(self._grew, loop)

        return progress

    def stop_watching(self) -> None:
        """Ends what `watch` began. Repeatable."""
        self._filling = None

    def _grew(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wakes the followers, now or a little later with more bytes. Runs on the event loop after bytes have come."""
        ingest = self._filling
        if ingest is None or self.landed or self.error:
            self._notice_pending = False
            return
        late = self._notified_at + _NOTICE_SECONDS - time.monotonic()
        if late <= 0 or ingest.offset - self._notified_bytes >= NOTICE_BYTES:
            self.copy_state(ingest)
        else:
            loop.call_later(late, self._grew, loop)

    def copy_state(self, ingest: Ingest) -> None:
        """Copies the present state of the ingest and wakes the followers."""
        # reset first: if the filling thread writes after this, it must schedule another call
        self._notice_pending = False
        self.received = ingest.offset
        self.size = ingest.size if ingest.size is not None else self.size
        self.sendable = may_send(ingest.offset, self.size, verified=ingest.verified)
        self._notify()

    def land(self, size: int) -> None:
        """Lets the followers have everything: the whole blob of `size` bytes is here, and verified."""
        self.size = self.received = self.sendable = size
        self.landed = True
        self._notify()

    def fail(self, error: MirrorError) -> None:
        """Raises the error to joiners and followers."""
        self.error = error
        if not self.announced.done():
            self.announced.set_exception(error)
            # mark the exception as retrieved: all joiners may have left
            self.announced.exception()
        self._notify()

    def end(self) -> None:
        """The task is over."""
        self.over.set()
        self._close_if_unused()

    def _notify(self) -> None:
        self._notified_bytes, self._notified_at = self.received, time.monotonic()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _close_if_unused(self) -> None:
        if self.over.is_set() and not self.followers and self._reader:
            self._reader.close()

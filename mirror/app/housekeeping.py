"""What one worker of a store does for all: clearing up, comparing, scrubbing. The evictor sweeps the quarantine."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress

from mirror import telemetry
from mirror.app.parts import App
from mirror.app.storage import SCRUB_LOCK, Storage, scrub_notes
from mirror.config import (
    Config,
)
from mirror.errors import IndexUnavailable, StoreError
from mirror.eviction.reconcile import reconcile
from mirror.eviction.scrub import Scrub, fetching_through, scrub_when_due
from mirror.store.local.recovery import sweep
from mirror.values.sizes import parse_size

__all__ = ["ReconcileTimer", "keep_house", "keep_scrubbing", "scrub_of"]

#: Seconds between two looks at what crashes have left.
_SWEEP_EVERY = 3600.0
_COMPARE_EVERY = 86400.0
#: After an outage of the index they are compared soon, which may take this share of the time at the most.
_COMPARE_AGAIN = 5.0
_COMPARING_SHARE = 0.05
#: Seconds until the work of a dead worker is taken over.
_SUCCEED_AFTER = 30.0


class ReconcileTimer:
    """When index and disk are to be compared: at once, every day, and soon after the index was away.

    An index that comes and goes must not be told everything again and again, so one comparison after another waits
    for twenty times as long as the last one took.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        """`now` in seconds, steadily growing."""
        self._now = now
        self._due_at = self._may_at = now()

    def wanted(self) -> None:
        """The index may have missed something."""
        self._due_at = min(self._due_at, self._may_at)

    def due_in(self) -> float:
        """Seconds; 0 or less: now."""
        return self._due_at - self._now()

    def ended(self, began: float, *, done: bool) -> None:
        """One that began then is over; what was not `done` is done soon."""
        now = self._now()
        self._may_at = now + max(_COMPARE_AGAIN, (now - began) / _COMPARING_SHARE)
        self._due_at = now + _COMPARE_EVERY if done else self._may_at


async def keep_house(config: Config, storage: Storage) -> None:
    """What crashes have left is cleared up at start and every hour; index and disk are compared at start, every day and
    after the index was away.

    One process does it, the one that holds a lock; when it dies another takes its place. The comparison finds blobs
    that were published, but not remembered, by a worker that was killed in between: nobody would ever evict them.
    """
    held = None
    comparisons = ReconcileTimer(time.monotonic)
    swept_at = -_SWEEP_EVERY
    try:
        while True:
            try:
                held = held or storage.locks.try_hold("house")
                if held and time.monotonic() - swept_at >= _SWEEP_EVERY:
                    swept_at = time.monotonic()
                    await _sweep(config, storage)
                if held and comparisons.due_in() <= 0:
                    await _compare(storage, comparisons)
            except (StoreError, IndexUnavailable) as error:
                telemetry.log.warning("keeping house failed", reason=str(error))
            except Exception:
                # whatever it was: without this task nothing is ever cleared up again
                telemetry.log.exception("keeping house crashed")
            pause = min(_SWEEP_EVERY, max(1.0, comparisons.due_in())) if held else _SUCCEED_AFTER
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await storage.evictor.index_came_back.wait()
                    comparisons.wanted()
                    storage.evictor.index_came_back.clear()
    finally:
        if held:
            os.close(held)


async def _sweep(config: Config, storage: Storage) -> None:
    swept = await asyncio.to_thread(sweep, storage.layout, keep=config.store.keep_partials, now=time.time)
    if swept.partials or swept.strays:
        telemetry.log.info("swept", partials=swept.partials, strays=swept.strays, bytes=swept.bytes)
    # looked at even where nothing is evicted: a damaged pin is told before it is needed, and by itself
    with suppress(StoreError):
        await asyncio.to_thread(storage.pinned.digests, time.time())


async def _compare(storage: Storage, comparisons: ReconcileTimer) -> None:
    began, done = time.monotonic(), False
    try:
        async with storage.locks.named("rebuild"):
            await reconcile(storage.store, storage.catalog, storage.index)
        done = True
    finally:
        comparisons.ended(began, done=done)


async def keep_scrubbing(config: Config, app: App) -> None:
    """Every blob is hashed once a while; the first time so long after the store was made."""
    if not config.scrub.every:
        return
    layout = app.storage.layout
    await scrub_when_due(
        scrub_of(app, rate=parse_size(config.scrub.rate)),
        app.storage.store,
        scrub_notes(layout),
        every=config.scrub.every,
        since=layout.marker.stat().st_mtime,
        try_hold=lambda: app.storage.locks.try_hold(SCRUB_LOCK),
    )


def scrub_of(
    app: App, *, rate: float | None, repair: bool = True, read: Callable[[int], None] = lambda _: None
) -> Scrub:
    """What hashes blobs, at most `rate` bytes per second, and fetches damaged ones again; `read` is told of bytes."""
    return Scrub(
        app.storage.store,
        app.storage.catalog,
        rate=rate,
        fetch_again=fetching_through(app.router, app.shelf) if repair else None,
        may_fetch=lambda repo: not app.router.rule_for(repo).offline,
        read=read,
    )

"""What one worker of a store does for all: clearing up, comparing, scrubbing."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

from mirror import telemetry
from mirror.app.parts import App, Storage
from mirror.app.storage import SCRUB_LOCK, scrub_notes
from mirror.config import (
    Config,
)
from mirror.errors import IndexUnavailable, StoreError
from mirror.policy.sizes import parse_size
from mirror.repository.reconcile import reconcile
from mirror.repository.scrub import Scrub, fetching_through, scrub_when_due
from mirror.store.recovery import sweep

__all__ = ["keep_house", "keep_scrubbing", "scrub_of"]

#: Seconds between two looks at what crashes have left.
_SWEEP_EVERY = 3600.0
_COMPARE_EVERY = 86400.0
#: Seconds until the work of a dead worker is taken over.
_SUCCEED_AFTER = 30.0


async def keep_house(config: Config, storage: Storage) -> None:
    """What crashes have left is cleared up at start and every hour; index and disk are compared at start and every day.

    One process does it, the one that holds a lock; when it dies another takes its place. The comparison finds blobs
    that were published, but not remembered, by a worker that was killed in between: nobody would ever evict them.
    """
    held = None
    compared_at = -_COMPARE_EVERY
    try:
        while True:
            try:
                held = held or storage.locks.try_hold("house")
                if held:
                    swept = await asyncio.to_thread(
                        sweep, storage.layout, keep=config.store.keep_partials, now=time.time
                    )
                    if swept.partials or swept.strays:
                        telemetry.log.info("swept", partials=swept.partials, strays=swept.strays, bytes=swept.bytes)
                    if time.monotonic() - compared_at >= _COMPARE_EVERY:
                        async with storage.locks.named("rebuild"):
                            await reconcile(storage.store, storage.catalog, storage.index)
                        compared_at = time.monotonic()
            except (StoreError, IndexUnavailable) as error:
                telemetry.log.warning("keeping house failed", reason=str(error))
            except Exception:
                # whatever it was: without this task nothing is ever cleared up again
                telemetry.log.exception("keeping house crashed")
            await asyncio.sleep(_SWEEP_EVERY if held else _SUCCEED_AFTER)
    finally:
        if held:
            os.close(held)


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

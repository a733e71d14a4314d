"""Work that one process of a server does for the bucket: it looks whether another mirror has taken the bucket over, and
completes the memory of the records by listings.

    the first look ── the bucket is right and ours ──> a listing, and another some time later ──> one every day
                   └── another mirror's ──> nothing is written any more, until the server starts again, or its cluster
                                            has the bucket back
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final

from mirror import telemetry
from mirror.app.storage import BUCKET_LOCK, Storage
from mirror.app.stored_records import BucketUse
from mirror.errors import BucketUnavailable, BucketUnfit, MirrorError, StoreError
from mirror.rounds import KeptLock, run_rounds
from mirror.store.local.json_records import JsonRecords
from mirror.store.local.layout import Layout
from mirror.store.objects.record_listing import RecordListing

#: Seconds between two looks at who uses the bucket.
_LOOK_EVERY: Final = 10.0
#: Seconds after the first listing at which another one finds what the mirror that was overtaken wrote until it noticed.
_AGAIN_AFTER: Final = 60.0
_LIST_EVERY: Final = 86400.0
#: Seconds between two notes of the progress of a listing.
_NOTE_EVERY: Final = 2.0
#: Seconds between two attempts while the bucket cannot be used.
_RETRY: Final = 5.0
#: Seconds for which a start waits for the bucket.
_START: Final = 15.0
#: Seconds between two looks whether the bucket has been listed.
_LOOK_FOR_LIST: Final = 2.0
_KIND: Final = "bucket"
_LISTING: Final = "listing"


async def confirm_bucket(storage: Storage) -> None:
    """Sees, before a server starts, whether its bucket is the right one; goes on if it does not answer, unless the disk
    remembers hosted names of an upstream. Raises `BucketUnfit`.
    """
    use = storage.bucket
    if use is None:
        return
    confirming = asyncio.ensure_future(asyncio.to_thread(use.owner.confirm))
    done, _ = await asyncio.wait({confirming}, timeout=_START)
    if not done:
        telemetry.log.warning("bucket not confirmed yet", reason=f"no answer within {_START:g} seconds")
        await asyncio.to_thread(use.owner.refuse_remembered)
        return
    if (error := confirming.exception()) is not None:
        if isinstance(error, BucketUnavailable) and not isinstance(error, BucketUnfit):
            telemetry.log.warning("bucket not confirmed yet", reason=str(error))
            await asyncio.to_thread(use.owner.refuse_remembered)
            return
        raise error


async def until_listed(storage: Storage) -> None:
    """Returns once it is known what the bucket has, if there is one: before that, nothing can be said of all
    repositories.
    """
    while True:
        with suppress(StoreError):
            if await asyncio.to_thread(storage.bucket_is_listed):
                return
        await asyncio.sleep(_LOOK_FOR_LIST)


async def keep_bucket(storage: Storage, rerouted: Callable[[], None] = lambda: None) -> None:
    """Watches over the bucket for as long as the server runs. All processes confirm it; one of them does the rest.
    `rerouted` is called when other upstreams than before have hosted names in the bucket.
    """
    use = storage.bucket
    if use is None:
        return
    due_at, lists_again, was_ours, refused = 0.0, True, True, use.owner.refused

    async def watch() -> None:
        nonlocal due_at, lists_again, was_ours
        is_ours = await asyncio.to_thread(use.owner.watch)
        telemetry.BUCKET_OURS.set(is_ours)
        is_complete = await asyncio.to_thread(use.memory.is_complete)
        if is_ours and not was_ours:
            due_at, lists_again = 0.0, True
        was_ours = is_ours
        if is_ours and (time.monotonic() >= due_at or not is_complete):
            await list_records(storage.layout, use)
            due_at = time.monotonic() + (_AGAIN_AFTER if lists_again else _LIST_EVERY)
            lists_again = False
        telemetry.BUCKET_MEMORY_COMPLETE.set(await asyncio.to_thread(use.memory.is_complete))

    async def look() -> None:
        nonlocal refused
        try:
            await asyncio.to_thread(use.owner.confirm)
            if await lock.taken():
                await watch()
        except BucketUnfit:
            telemetry.BUCKET_OURS.set(0)
            raise
        finally:
            if use.owner.refused != refused:
                refused = use.owner.refused
                rerouted()

    with KeptLock(partial(storage.locks.try_hold, BUCKET_LOCK)) as lock:
        await run_rounds(
            look,
            _LOOK_EVERY,
            failed="bucket records not listed",
            crashed="bucket upkeep crashed",
            after_error=_RETRY,
            once=True,
        )


async def list_records(layout: Layout, use: BucketUse) -> RecordListing:
    """Lists the records of the bucket once, and notes the progress for all processes. Raises `StoreError`."""
    begun = await asyncio.to_thread(use.tree.begin_names)
    listing, progress = RecordListing(use.bucket, use.memory), JsonRecords(layout, _KIND)
    steps, begun_at, noted_at = listing.steps(), time.time(), 0.0
    telemetry.log.info("bucket records being listed")

    def step() -> bool:
        return next(steps, False) is None

    while await asyncio.to_thread(step):
        telemetry.BUCKET_RECORDS.set(listing.listed)
        if time.monotonic() - noted_at >= _NOTE_EVERY:
            noted_at = time.monotonic()
            await asyncio.to_thread(progress.put, _LISTING, _progress(listing, begun_at, None))
    telemetry.BUCKET_RECORDS.set(listing.listed)
    if listing.is_complete:
        await asyncio.to_thread(use.tree.end_names, begun)
    await asyncio.to_thread(progress.put, _LISTING, _progress(listing, begun_at, time.time()))
    telemetry.log.info(
        "bucket records listed",
        records=listing.listed,
        changed=listing.changed,
        complete=listing.is_complete,
        seconds=round(time.time() - begun_at, 1),
    )
    return listing


def _progress(listing: RecordListing, begun_at: float, ended_at: float | None) -> Mapping[str, Any]:
    return {"begunAt": begun_at, "endedAt": ended_at, "listed": listing.listed, "changed": listing.changed}


def memory_status(layout: Layout, use: BucketUse) -> Mapping[str, Any]:
    """What `mirror status` shows of the records in the bucket. Blocking; asks no bucket.

    `complete`: everything is remembered; `ours`: no other mirror has taken the bucket over; `listing`: the last
    listing, with its times in epoch seconds, `endedAt` None while it runs; None if there was none.
    """
    try:
        complete, ours = use.memory.is_complete(), use.owner.owns
        listing = JsonRecords(layout, _KIND).get(_LISTING)
    except MirrorError:
        return {"id": use.owner.id, "complete": None, "ours": None, "listing": None}
    if listing is not None:
        listing.pop("key", None)
    return {"id": use.owner.id, "complete": complete, "ours": ours, "listing": listing}


async def keep_cache(storage: Storage) -> None:
    """Keeps the cache in the bucket within its limits, and the book of it right. One process does this at a time."""
    cache = storage.bucket_cache
    if cache is not None:
        leasing = storage.leasing
        work, name = (None, "") if leasing is None else (storage.work, leasing.name)
        await cache.upkeep(storage.eviction.pinned.digests, storage.pins, storage.freezes, work, name).run()

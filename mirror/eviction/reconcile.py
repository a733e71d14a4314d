"""Makes the index agree with the disk, which is the truth. No upstream is asked.

    absent or lost ── every blob put ── records without a file dropped ── links and names put ── MARK ──> whole
          ^                                                                                                │
          └─────────────────── FLUSHALL, a file begun anew, or found to lack blobs: no MARK <──────────────┘

Everything is repeatable and may run while the mirror works: what is put again counts once, the later time of use
stays, and a record is only dropped after a second look at the disk. Interrupted, it has set no mark and is done again.
Done twice, it changes nothing.

What a manifest names that cannot be read at the moment would look as if nothing named it, and go first. So everything
else is put right, but no mark is set: until the next time the disk is asked what may go. A manifest whose bytes are
wrong names nothing (`graph/manifests.py`).

One thing is put right on the disk as well: what a repository notes of a manifest stays when the manifest is evicted,
and says nothing any more. Without an end to it, images that nobody pulls again would cost a file each for ever.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Final, TypeVar

from mirror import telemetry
from mirror.errors import BlobDamaged, BlobUnknown, IndexUnavailable, RecordDamaged, StoreError
from mirror.graph.manifests import has_blob, manifest_of_bytes, read_stored
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.records import ContentRecord, References
from mirror.ports import BlobStore, Catalog, ContentIndex
from mirror.repository.grants import granted_by

__all__ = ["INCOMPLETE", "MARK", "Reconciled", "ensure", "is_whole", "reconcile"]

#: The marker of an index that this code has rebuilt; another one means that it was rebuilt to other rules.
MARK: Final = "3"
#: The marker of an index that is known to lack something.
INCOMPLETE: Final = "incomplete"

#: Blobs per call of the index.
_BATCH: Final = 1000

#: Seconds to wait before asking an index again that did not answer: among thousands of calls one may be late, and the
#: whole is not given up for that.
_WAITS: Final = (1.0, 2.0, 4.0, 8.0)

#: Seconds after which a manifest that was noted and is gone is forgotten: one that is being written is left alone.
_FORGET_AFTER: Final = 86400.0

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What was found: `blobs` on disk and their `bytes`, of which `added` were unknown; records `dropped`; `links`
    from `manifests` of `repositories`; manifests `skipped` because they are damaged, malformed or gone.
    """

    blobs: int
    bytes: int
    added: int
    dropped: int
    repositories: int
    manifests: int
    links: int
    skipped: int


async def is_whole(index: ContentIndex) -> bool:
    """Whether it knows what the disk has. Raises `IndexUnavailable`."""
    return await index.marker() == MARK


async def ensure(
    store: BlobStore,
    catalog: Catalog,
    index: ContentIndex,
    *,
    exclusive: Callable[[], AbstractAsyncContextManager[object]],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Reconciled | None:
    """Rebuild an index that is not whole; None where it is.

    `exclusive` holds a lock over all processes of this store, for rebuilds alone: evictions must not wait for it.
    Raises `IndexUnavailable`, `StoreError`.
    """
    if await is_whole(index):
        return None
    async with exclusive():
        if await is_whole(index):
            return None
        return await reconcile(store, catalog, index, sleep=sleep)


async def reconcile(
    store: BlobStore,
    catalog: Catalog,
    index: ContentIndex,
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Reconciled:
    """Go over the whole disk and put right what the index says. Raises `IndexUnavailable`, and `StoreError`, also after
    all the rest was done, if a manifest could not be read.
    """
    telemetry.log.info("reconcile.begun")
    call = _Patient(sleep)
    before = (await call(index.usage)).blobs
    blobs = total = 0
    async for batch in _in_thread(store.walk(), _BATCH):
        records = [ContentRecord(info.digest, info.size, info.used_at) for info in batch]
        await call(partial(index.put, records))
        blobs += len(batch)
        total += sum(info.size for info in batch)
    after = (await call(index.usage)).blobs
    dropped = await _drop_strays(store, index, call) if after > blobs else 0
    repositories, read, links, skipped = await _link(store, catalog, index, call)
    await call(partial(index.set_marker, MARK))
    result = Reconciled(blobs, total, max(0, after - before), dropped, repositories, read, links, skipped)
    telemetry.log.info("reconcile.done", **{name: getattr(result, name) for name in Reconciled.__slots__})
    return result


class _Patient:
    """Calls the index, and again after a while where it did not answer; every call here is repeatable."""

    def __init__(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        self._sleep = sleep

    async def __call__(self, operation: Callable[[], Awaitable[_Item]]) -> _Item:
        for wait in _WAITS:
            try:
                return await operation()
            except IndexUnavailable:
                await self._sleep(wait)
        return await operation()


async def _drop_strays(store: BlobStore, index: ContentIndex, call: _Patient) -> int:
    """Drop the records whose file is gone."""
    dropped = 0
    recorded = await call(partial(_all_recorded, index))
    for batch in _cut(recorded, _BATCH):
        strays = await asyncio.to_thread(_absent, store, batch)
        await call(partial(index.drop, strays))
        dropped += len(strays)
    return dropped


async def _all_recorded(index: ContentIndex) -> list[Digest]:
    """Each once."""
    return list({digest: None async for batch in index.recorded() for digest in batch})


def _absent(store: BlobStore, digests: Iterable[Digest]) -> list[Digest]:
    """Blocking: those that are gone for certain. Raises `StoreError`."""
    return [digest for digest in digests if not has_blob(store, digest)]


async def _link(store: BlobStore, catalog: Catalog, index: ContentIndex, call: _Patient) -> tuple[int, int, int, int]:
    """Link to each repository what its manifests name, and tell what that is; repositories, manifests, links and
    manifests skipped. Raises `StoreError` at the end if some could not be read.
    """
    repositories = read = links = skipped = unread = 0
    trouble: StoreError | None = None
    async for batch in _in_thread(catalog.repositories(), 1):
        repo = batch[0]
        repositories += 1
        used: dict[Digest, float] = {}
        async for digests in _in_thread(catalog.manifest_digests(repo), 50):
            found = await asyncio.to_thread(_named, store, catalog, repo, digests)
            await call(partial(index.link, repo, found.named))
            await call(partial(index.name, found.names))
            used |= found.used
            read += len(found.names)
            skipped += len(digests) - len(found.names)
            links += len(found.named)
            unread += found.unread
            trouble = trouble or found.trouble
        # once all are named: the disk notes the use of a manifest, not that this was one of its index
        await call(partial(index.touch, used))
    if trouble is not None:
        raise StoreError(f"{unread} manifests could not be read, and what they name is not known: {trouble}")
    return repositories, read, links, skipped


@dataclass(slots=True)
class _Found:
    """What some manifests of a repository let it serve, with sizes in bytes; what each names, and when it was used. How
    many could not be read, and why the first of them.
    """

    named: dict[Digest, int] = field(default_factory=dict)
    names: list[References] = field(default_factory=list)
    used: dict[Digest, float] = field(default_factory=dict)
    unread: int = 0
    trouble: StoreError | None = None


def _named(store: BlobStore, catalog: Catalog, repo: Repo, digests: Iterable[Digest]) -> _Found:
    """Blocking. Those that are damaged, or cannot be read, are left out."""
    found = _Found()
    for digest in digests:
        try:
            _look_at(store, catalog, repo, digest, found)
        except StoreError as error:
            telemetry.log.warning("reconcile.skipped", repository=str(repo), digest=str(digest), reason=str(error))
            if not isinstance(error, (BlobDamaged, RecordDamaged)):
                found.unread += 1
                found.trouble = found.trouble or error
    return found


def _look_at(store: BlobStore, catalog: Catalog, repo: Repo, digest: Digest, found: _Found) -> None:
    """Blocking. Raises `StoreError`, `BlobDamaged`, `RecordDamaged`."""
    try:
        used_at = store.stat(digest).used_at
    except BlobUnknown:
        # evicted, which is nothing to be told of
        _forget(store, catalog, repo, digest)
        return
    try:
        stored = read_stored(store, catalog, repo, digest)
    except RecordDamaged as error:
        # it grants nothing, but what the manifest names stays for as long as its bytes do
        telemetry.log.warning("reconcile.skipped", repository=str(repo), digest=str(digest), reason=str(error))
        stored = None
        manifest = manifest_of_bytes(store, digest)
    else:
        manifest = stored.manifest if stored else None
    if manifest is None:
        return
    found.names.append(References.of(manifest))
    found.used[digest] = used_at
    for one, size in granted_by(stored).items() if stored else ():
        found.named[one] = max(size, found.named.get(one, -1))


def _forget(store: BlobStore, catalog: Catalog, repo: Repo, digest: Digest) -> None:
    """Blocking: drop the note of a manifest that is gone, unless it has come back meanwhile. Raises `StoreError`."""
    record = catalog.get_manifest(repo, digest)
    if record is None or time.time() - record.fetched_at < _FORGET_AFTER:
        return
    if not has_blob(store, digest) and catalog.get_manifest(repo, digest) == record:
        catalog.drop_manifest(repo, digest)


async def _in_thread(items: Iterable[_Item], size: int) -> AsyncIterator[list[_Item]]:
    """Batches of a blocking iterable, each read in a thread."""
    iterator = iter(items)
    while batch := await asyncio.to_thread(lambda: list(islice(iterator, size))):
        yield batch


def _cut(items: list[_Item], size: int) -> Iterator[list[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]

"""Reads and hashes every blob again, so that damage on the disk is found before a client needs the blob.

    due ──> running ── every blob, in the order of digests ──> complete at <time>
              │  ^
    stopped, crashed: continues after the last digest that was saved

A blob that is found damaged:

    wrong twice in a row ── set aside: moved to quarantine; open readers can read on
                              ├── fetched again, by a repository that names it and may ask upstream    repaired
                              ├── hosted, and the cache has a sound file: it gets the hosted name      repaired
                              ├── no image here names it                                               not needed
                              └── sealed, hosted, or upstream does not have it                         lost
    cannot be read ── left in place: the cause may be a cable; the digest goes into the report         unreadable

A blob is hashed twice because memory and cables fail too, and because another process may have replaced the file
meanwhile.

Hosted blobs are checked like cached ones. A blob that has both names is read once if they are one file, else each file
is read. What is lost of hosted content waits in `hosted-damaged/` for a push of the same digest.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import dropwhile
from typing import Any, Final

from mirror import telemetry
from mirror.aio.batches import batches_in_thread
from mirror.aio.threads import uninterrupted
from mirror.aio.token_bucket import TokenBucket
from mirror.errors import BlobUnknown, MirrorError, StoreError
from mirror.graph.blob_places import BlobPlaces
from mirror.graph.closure import Node, Role, read_closure
from mirror.graph.damage import hashes_to_slowly
from mirror.graph.manifests import has_blob, manifest_of_bytes
from mirror.graph.walk import damaged_may_be_missing, walk
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, Manifest
from mirror.oci.reference import Repo
from mirror.ports import (
    BlobReader,
    Blobs,
    Catalog,
    HostedBlobs,
    Lease,
    Records,
    RepairableBlobs,
    SupportsFileno,
)
from mirror.rounds import run_rounds
from mirror.values.json_form import CAMEL_CASE, DigestField, JsonForm, Moment

#: Seconds between two writes of a scrub's progress.
_SAVE_EVERY: Final = 10.0
#: Damaged blobs whose owners are searched for in one pass over the catalog, and the most owners found for each.
_BATCH: Final = 256
_MOST_OWNERS: Final = 8
#: The most digests that each list of a report names.
_MOST_LISTED: Final = 1000
#: Blobs listed in one call of a thread.
_LISTED: Final = 1000


@dataclass(frozen=True, slots=True)
class Owner:
    """A repository that needs a blob. `is_manifest` is true if the blob is one of its manifests."""

    repo: Repo
    is_manifest: bool


@dataclass(frozen=True, slots=True)
class HostedNaming:
    """The names of hosted blobs, and where the blobs of each repository are read."""

    blobs: HostedBlobs
    places: BlobPlaces


@dataclass(slots=True)
class ScrubProgress:
    """How far a scrub is and what it found. `bytes` is the number of bytes read. Times are epoch seconds. `after` is
    the last digest that was checked, None at the beginning.

    `waiting` are damaged blobs whose repair was not tried yet.
    """

    __pydantic_config__ = CAMEL_CASE

    begun_at: Moment
    after: DigestField | None = None
    blobs: int = 0
    bytes: int = 0
    damaged: int = 0
    repaired: int = 0
    unneeded: int = 0
    lost: list[DigestField] = field(default_factory=list)
    unreadable: list[DigestField] = field(default_factory=list)
    waiting: list[DigestField] = field(default_factory=list)
    complete_at: Moment | None = None

    @property
    def good(self) -> bool:
        """True if no blob is lost or unreadable, perhaps after repairs."""
        return not self.lost and not self.unreadable

    def to_json(self) -> dict[str, Any]:
        """Returns the form that is stored and shown."""
        return _PROGRESS.to_json(self)


_PROGRESS: Final = JsonForm(ScrubProgress)


class Scrub:
    """Checks blobs at a limited rate, and repairs what it can."""

    def __init__(
        self,
        store: RepairableBlobs,
        catalog: Catalog,
        *,
        hosted: HostedNaming | None = None,
        rate: float | None = None,
        fetch_again: Callable[[Owner, Digest], Awaitable[None]] | None = None,
        may_fetch: Callable[[Repo], bool] = lambda _: True,
        read: Callable[[int], None] = lambda _: None,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`hosted` is None if nothing is hosted here. `rate` is in bytes per second, None for no limit. `fetch_again`
        fetches a blob again or raises `MirrorError`; if it is None, nothing is repaired. `may_fetch` is true for
        repositories that may ask an upstream. `read` is called with the number of bytes of each read.
        """
        self._store = store
        self._catalog = catalog
        self._hosted = hosted
        self._places = hosted.places if hosted else BlobPlaces.only(store)
        self._pace = TokenBucket(rate)
        self._fetch_again = fetch_again
        self._may_fetch = may_fetch
        self._read = read
        self._now = now
        self._sleep = sleep

    async def check(self, digest: Digest, progress: ScrubProgress) -> None:
        """Hashes one blob: each file of it, if its names lead to two. A damaged blob is set aside and waits for
        `repair`. One that cannot be read or set aside is only noted as unreadable. A blob that is gone is ignored.

        Raises `StoreError` if `repair`, which runs once enough blobs wait, cannot read the catalog.
        """
        hashed = [await self._check(blobs, digest, progress) for blobs in self._files(digest)]
        progress.blobs += any(hashed)
        if len(progress.waiting) >= _BATCH:
            await self.repair(progress)

    def _files(self, digest: Digest) -> list[Blobs]:
        """Where the different files of this blob are read. A file that cannot be opened counts as different."""
        contents = self._places.contents
        if contents is self._store or self._is_one_file(digest):
            return [contents]
        return [self._store, contents]

    def _is_one_file(self, digest: Digest) -> bool:
        """True if the cache's name does not lead to another file than the other name."""
        files: list[os.stat_result] = []
        with suppress(StoreError):
            for blobs in (self._store, self._places.contents):
                try:
                    _, reader = blobs.open(digest)
                except BlobUnknown:
                    return True
                with closing(reader):
                    if isinstance(reader, SupportsFileno):
                        files.append(os.fstat(reader.fileno()))
        return len(files) == 2 and os.path.samestat(*files)

    async def _check(self, blobs: Blobs, digest: Digest, progress: ScrubProgress) -> bool:
        """False if the blob is gone or could not be read."""
        try:
            aside = not await self._is_sound(blobs, digest, progress) and await self._set_aside(blobs, digest, progress)
        except BlobUnknown:
            return False
        except StoreError as error:
            telemetry.SCRUB_DAMAGED.inc()
            telemetry.log.error("blob cannot be read", digest=str(digest), reason=str(error))
            progress.damaged += 1
            _list(progress.unreadable, digest)
            return False
        if not aside:
            return True
        telemetry.SCRUB_DAMAGED.inc()
        telemetry.log.error("damaged blob detected", digest=str(digest))
        progress.damaged += 1
        if digest not in progress.waiting:
            progress.waiting.append(digest)
        return True

    async def _is_sound(self, blobs: Blobs, digest: Digest, progress: ScrubProgress) -> bool:
        """True if the blob matches its digest. Raises `BlobUnknown`, `StoreError`."""
        _, reader = blobs.open(digest)
        try:
            return await self._hashes_to(reader, digest, progress)
        finally:
            reader.close()

    async def _set_aside(self, blobs: Blobs, digest: Digest, progress: ScrubProgress) -> bool:
        """Hashes a blob a second time, and sets it aside if it is still wrong. True if it was set aside; False if it
        is right now, or if another process has replaced the file meanwhile. Raises `BlobUnknown`, `StoreError`.
        """
        _, reader = blobs.open(digest)
        try:
            if await self._hashes_to(reader, digest, progress):
                return False
            return await uninterrupted(asyncio.to_thread(self._store.set_aside, digest, reader))
        finally:
            reader.close()

    async def _hashes_to(self, reader: BlobReader, digest: Digest, progress: ScrubProgress) -> bool:
        size = 0

        def note(count: int) -> None:
            nonlocal size
            size += count
            telemetry.SCRUBBED_BYTES.inc(count)
            self._read(count)

        is_right = await hashes_to_slowly(reader, digest, self._pace, clock=self._now, sleep=self._sleep, read=note)
        progress.bytes += size
        return is_right

    async def repair(self, progress: ScrubProgress) -> None:
        """Fetches the waiting blobs again, manifests first: they determine which repositories may have the others.
        Raises `StoreError` if a manifest cannot be read.
        """
        while progress.waiting:
            batch = progress.waiting[:_BATCH]
            owners = await asyncio.to_thread(owners_of, self._catalog, self._places, batch)
            batch.sort(key=lambda digest: not any(owner.is_manifest for owner in owners.get(digest, ())))
            for digest in batch:
                await self._repair_blob(digest, owners.get(digest, []), progress)
                progress.waiting.remove(digest)

    async def _repair_blob(self, digest: Digest, owners: list[Owner], progress: ScrubProgress) -> None:
        if has_blob(self._places.contents, digest):
            # only one of its files was damaged: hosted repositories have what they need
            owners = [owner for owner in owners if not self._places.is_hosted(owner.repo)]
        if await asyncio.to_thread(self._name_again, digest):
            progress.repaired += 1
            telemetry.log.info("damaged blob repaired", digest=str(digest))
        elif not owners:
            progress.unneeded += 1
            telemetry.log.info("damaged blob not needed", digest=str(digest))
        elif await self.refetch(digest, owners):
            progress.repaired += 1
            await asyncio.to_thread(self._name_again, digest)
        else:
            _list(progress.lost, digest)
            telemetry.log.error("damaged blob lost", digest=str(digest), repository=str(owners[0].repo))

    def _name_again(self, digest: Digest) -> bool:
        """Blocking: gives a hosted blob that was set aside its name again, if the cache has the blob: a file that was
        checked or fetched just now. True if the blob has its hosted name again.
        """
        if self._hosted is None or digest not in {blob.digest for blob in self._hosted.blobs.damaged()}:
            return False
        try:
            self._hosted.blobs.adopt(digest)
        except BlobUnknown:
            return False
        return True

    async def refetch(self, digest: Digest, owners: Iterable[Owner]) -> bool:
        """Fetches a blob for the first of these owners for which that succeeds. True if the blob is here now."""
        for owner in owners:
            if self._fetch_again is None or not self._may_fetch(owner.repo):
                continue
            try:
                await self._fetch_again(owner, digest)
                # the blob must be stored on the disk again, not only passed through
                self._store.stat(digest)
            except MirrorError as error:
                telemetry.log.warning(
                    "damaged blob not repaired", digest=str(digest), repository=str(owner.repo), reason=str(error)
                )
                continue
            telemetry.log.info("damaged blob repaired", digest=str(digest), repository=str(owner.repo))
            return True
        return False


def _list(digests: list[Digest], digest: Digest) -> None:
    if len(digests) < _MOST_LISTED and digest not in digests:
        digests.append(digest)


# ------------------------------------------------------------------------------------------------- the whole store


def read_progress(records: Records) -> ScrubProgress | None:
    """Blocking: returns the progress of the last scrub of the store; None if there was none. Raises `StoreError`."""
    return _PROGRESS.from_json(records.get(_KEY))


_KEY: Final = "everything"


async def scrub_all(
    scrub: Scrub, store: Blobs, records: Records, *, now: Callable[[], float] = time.time
) -> ScrubProgress:
    """Checks every blob of `store`, or, if the last scrub was interrupted, the rest. The caller holds a lock, so that
    one process at a time does this.

    Raises `StoreError`; the progress so far is stored in that case, too.
    """
    before = await asyncio.to_thread(read_progress, records)
    progress = before if before and before.complete_at is None else ScrubProgress(now())
    telemetry.log.info("scrub started", after=str(progress.after) if progress.after else None)
    saved_at = time.monotonic()
    try:
        after = progress.after
        unchecked = dropwhile(lambda info: after is not None and info.digest <= after, store.walk())
        async for batch in batches_in_thread(unchecked, _LISTED):
            for info in batch:
                await scrub.check(info.digest, progress)
                progress.after = info.digest
                if time.monotonic() - saved_at >= _SAVE_EVERY:
                    await asyncio.to_thread(_save, records, progress)
                    saved_at = time.monotonic()
        await scrub.repair(progress)
        progress.complete_at = now()
    finally:
        # not in a thread: a cancelled task cannot wait for one
        _save(records, progress)
    telemetry.SCRUB_COMPLETE.set(progress.complete_at)
    counted = ("blobs", "bytes", "damaged", "repaired", "unneeded")
    telemetry.log.info("scrub ended", **{name: getattr(progress, name) for name in counted}, lost=len(progress.lost))
    return progress


def _save(records: Records, progress: ScrubProgress) -> None:
    """Blocking: stores the progress. A failure does not end the scrub: if interrupted, the next one begins earlier."""
    with suppress(StoreError):
        records.put(_KEY, progress.to_json())


# --------------------------------------------------------------------------------------------------------- an image


async def scrub_image(
    scrub: Scrub, store: Blobs, catalog: Catalog, repo: Repo, root: Descriptor, progress: ScrubProgress
) -> list[Node]:
    """Checks everything of one image, and also fetches what is missing. Returns what is still missing. Raises
    `StoreError`.
    """
    seen: set[Digest] = set()
    while True:
        closure = await asyncio.to_thread(read_closure, store, catalog, repo, root)
        # `present` does not help: a damaged manifest looks like one that no client pulled
        fresh = [node for node in closure.nodes if node.digest not in seen and has_blob(store, node.digest)]
        for node in fresh:
            seen.add(node.digest)
            await scrub.check(node.digest, progress)
        await scrub.repair(progress)
        missing = [node for node in closure.missing if not has_blob(store, node.digest)]
        refetched = [
            node
            for node in missing
            if await scrub.refetch(node.digest, [Owner(repo, node.role in (Role.INDEX, Role.MANIFEST))])
        ]
        # go on while something new turned up: a manifest that was fetched again names further content
        if not fresh and not refetched:
            return missing


# ---------------------------------------------------------------------------------------------- what names what


def owners_of(catalog: Catalog, places: BlobPlaces, digests: Collection[Digest]) -> dict[Digest, list[Owner]]:
    """Blocking: returns the repositories that have or name these blobs, a few for each blob. Reads every manifest that
    is here. Raises `StoreError` if one cannot be read: it may be the only one that needs a blob.
    """
    wanted = set(digests)
    owners: dict[Digest, list[Owner]] = {}

    def add(digest: Digest, owner: Owner) -> None:
        of_blob = owners.setdefault(digest, [])
        if owner not in of_blob and len(of_blob) < _MOST_OWNERS:
            of_blob.append(owner)

    def read(repo: Repo, digest: Digest) -> Manifest | None:
        if digest in wanted:
            add(digest, Owner(repo, True))
        return manifest_of_bytes(places.of(repo), digest)

    # the scrub finds damaged manifests itself; until such a manifest is repaired, it is not known what it named
    for repo, _, manifest in walk(catalog, read, damaged_may_be_missing):
        for blob in manifest.blobs:
            if blob.digest in wanted:
                add(blob.digest, Owner(repo, False))
    return owners


def dangling_records(catalog: Catalog, places: BlobPlaces) -> Iterator[str]:
    """Blocking: yields tags without their manifest, manifests without their bytes, and records that cannot be read, as
    text for people. Raises `StoreError` if something cannot be listed.

    Such records are harmless: if there is an upstream, the next pull repairs them.
    """
    for repo in catalog.repositories():
        for digest in catalog.manifest_digests(repo):
            if trouble := _trouble_with_manifest(catalog, places.of(repo), repo, digest):
                yield f"{repo}@{digest}: {trouble}"
        for tag in catalog.tags(repo):
            if trouble := _trouble_with_tag(catalog, repo, tag):
                yield f"{repo}:{tag}: {trouble}"


def _trouble_with_manifest(catalog: Catalog, store: Blobs, repo: Repo, digest: Digest) -> str | None:
    try:
        catalog.get_manifest(repo, digest)
        return None if has_blob(store, digest) else "its manifest is gone"
    except StoreError as error:
        return str(error)


def _trouble_with_tag(catalog: Catalog, repo: Repo, tag: str) -> str | None:
    try:
        pointer = catalog.get_tag(repo, tag)
        if pointer is None or catalog.get_manifest(repo, pointer.digest) is not None:
            return None
    except StoreError as error:
        return str(error)
    return f"points to {pointer.digest}, which is not here"


# ----------------------------------------------------------------------------------------------------- on a schedule


async def scrub_when_due(
    scrub: Scrub,
    store: Blobs,
    records: Records,
    *,
    every: float,
    since: float,
    try_hold: Callable[[], Awaitable[Lease | None]],
    look_every: float = 600.0,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Scrubs the whole store `every` seconds after the last scrub was complete, or after `since` (epoch seconds) if
    there was none. Runs until cancelled.

    One process at a time scrubs: the one that gets the lock. `try_hold` returns it, or None if another process has
    it. An interrupted scrub is continued without waiting until the next one is due.
    """

    async def scrub_if_due() -> None:
        due = _is_due(await asyncio.to_thread(read_progress, records), every, since, now())
        lease = await try_hold() if due else None
        if lease is not None:
            with lease:
                # another process may just have finished a scrub
                if _is_due(await asyncio.to_thread(read_progress, records), every, since, now()):
                    await scrub_all(scrub, store, records, now=now)

    await run_rounds(scrub_if_due, look_every, failed="scrub failed", crashed="scrub crashed", sleep=sleep)


def _is_due(last: ScrubProgress | None, every: float, since: float, now: float) -> bool:
    if last is None:
        return now - since >= every
    if last.complete_at is None:
        return True
    telemetry.SCRUB_COMPLETE.set(last.complete_at)
    return now - last.complete_at >= every

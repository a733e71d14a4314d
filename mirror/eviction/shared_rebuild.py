"""Rebuilds the index in parts, which all worker processes of a store share.

    not whole ── the lock "rebuild" ──> leader: begins a rebuild, or goes on with one that was interrupted
                       │                   │
                       └── is held ──> helper     each takes the parts that nobody works at: a lock for each of them
                                           │
    part: locked ── read, written ── noted in the index ──> done, also after a restart of the mirror
                                           │
    all parts done ──> leader: records without a file dropped ── MARK ──> whole

Which parts are done is noted in the index itself: if the index is lost again, the notes are lost with it. When a
process dies, the kernel gives up its locks: another one becomes the leader, and the part is done again, which changes
nothing that was right. Clients and evictions write their changes to the index as always, also in parts that are done.

The parts are the repositories, by a hash of their names, and then the blobs, by the first two digits of their digests.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Final

from mirror import telemetry
from mirror.errors import IndexUnavailable
from mirror.eviction.giving_way import NOBODY, Giving
from mirror.eviction.reconcile import (
    MARK,
    IndexWriting,
    PatientCalls,
    Reconciled,
    drop_strays,
    is_whole,
    log_ended,
)
from mirror.graph.blob_places import BlobPlaces
from mirror.oci.reference import Repo
from mirror.ports import Catalog, ContentIndex, PartedBlobs, RebuildState

#: Parts of the repositories, and of the blobs. After a kill, each process repeats at most one.
_PARTS: Final = 64
#: Blobs of one folder, of 256, that make a store large: then each is taken to have some.
_MANY: Final = 16
#: Seconds between two looks whether there is something to help with.
_LOOK_EVERY: Final = 0.25

#: Takes the lock of this name; None if another process has it. It is released at the end of the `with`.
TryHold = Callable[[str], Awaitable[AbstractContextManager[object] | None]]


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a rebuild: its name in the index, and the lock of whoever works at it."""

    name: str
    lock: str
    work: Callable[[IndexWriting], Awaitable[int]]


async def ensure(
    store: PartedBlobs,
    catalog: Catalog,
    index: ContentIndex,
    *,
    try_hold: TryHold,
    places: BlobPlaces | None = None,
    give_way: Giving = NOBODY,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Reconciled | None:
    """Rebuilds the index if it is not whole, together with all processes that call this; returns None if it is whole,
    otherwise, once it is, what this process has done.

    `try_hold` takes locks that all processes of this store share. Evictions must not wait for them. `give_way` is as in
    `reconcile`. Raises `IndexUnavailable`, and `StoreError`, also if a manifest cannot be read: its part is not done
    then, and all others are.
    """
    if await is_whole(index):
        return None
    writing = IndexWriting(store, catalog, index, places, PatientCalls(sleep), give_way)
    return await _SharedRebuild(store, catalog, index, try_hold, writing, give_way, sleep).run()


class _SharedRebuild:
    """What one process does in a rebuild."""

    def __init__(
        self,
        store: PartedBlobs,
        catalog: Catalog,
        index: ContentIndex,
        try_hold: TryHold,
        writing: IndexWriting,
        give_way: Giving,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._index = index
        self._try_hold = try_hold
        self._give_way = give_way
        self._sleep = sleep
        self._call = PatientCalls(sleep)
        self._writing = writing
        self._parts: list[_Part] = []
        #: Parts in which this process could not read all manifests.
        self._failed: set[str] = set()
        #: Blobs in the index when this process began, and whether parts had been done before.
        self._before = 0
        self._resumed: bool | None = None

    async def run(self) -> Reconciled | None:
        """Leads or helps until the index is whole. Raises `IndexUnavailable`, `StoreError`."""
        while True:
            lease = await self._try_hold("rebuild")
            if lease is not None:
                with lease:
                    return await self._lead()
            if await is_whole(self._index):
                return self._result()
            state = await self._state()
            if state is not None:
                await self._work(state)
            await self._sleep(_LOOK_EVERY)

    async def _lead(self) -> Reconciled | None:
        if await is_whole(self._index):
            return self._result()
        state = await self._state()
        if state is None:
            state = RebuildState(await self._call(partial(self._index.begin_rebuild, MARK)), {})
        while True:
            await self._work(state)
            state = await self._current(state.token)
            if not self._undone(state):
                break
            await self._sleep(_LOOK_EVERY)
        self._writing.raise_trouble()
        blobs, dropped = (await self._call(self._index.usage)).blobs, 0
        if blobs > sum(state.done.values()):
            dropped = await drop_strays(self._store, self._index, self._call)
        await self._call(partial(self._index.set_marker, MARK, state.token))
        return self._result(added=max(0, blobs - self._before), dropped=dropped)

    async def _state(self) -> RebuildState | None:
        return await self._call(partial(self._index.rebuild_state, MARK))

    async def _current(self, token: str) -> RebuildState:
        """The state of this rebuild. Raises `IndexUnavailable` if another one has begun since."""
        state = await self._state()
        if state is None or state.token != token:
            raise IndexUnavailable("the index was lost, or rebuilt elsewhere, during its rebuild")
        return state

    async def _work(self, state: RebuildState) -> None:
        """Does the parts that nobody has done or does."""
        if self._resumed is None:
            self._resumed = bool(state.done)
            telemetry.log.info("reconcile started", parts_done=len(state.done))
            self._before = (await self._call(self._index.usage)).blobs
            self._parts = await asyncio.to_thread(lambda: list(self._all_parts()))
        for part in self._undone(state):
            lease = await self._try_hold(part.lock)
            if lease is None:
                continue
            with lease:
                if part.name not in (await self._current(state.token)).done:
                    await self._do(part, state.token)

    def _undone(self, state: RebuildState) -> list[_Part]:
        return [part for part in self._parts if part.name not in state.done and part.name not in self._failed]

    async def _do(self, part: _Part, token: str) -> None:
        unread = self._writing.unread
        blobs = await part.work(self._writing)
        if self._writing.unread > unread:
            self._failed.add(part.name)
        else:
            await self._call(partial(self._index.note_rebuilt, part.name, blobs, token))

    def _all_parts(self) -> Iterator[_Part]:
        """Blocking: the parts that are not empty, so that a small store needs few calls of the index. Content that
        comes later is written to the index when it comes. Raises `StoreError`.
        """
        repositories: dict[int, list[Repo]] = {}
        for repo in self._catalog.repositories():
            repositories.setdefault(zlib.crc32(str(repo).encode()) % _PARTS, []).append(repo)
        for number, repos in sorted(repositories.items()):
            yield _Part(f"repositories {number}", f"rebuild-{number}", partial(_link, repos))
        # digests are random: if one folder has many blobs, each part has some
        is_large = sum(1 for _ in islice(self._store.walk_part("00"), _MANY)) == _MANY
        for number in range(_PARTS):
            each = 256 // _PARTS
            digits = [f"{first:02x}" for first in range(number * each, (number + 1) * each)]
            if is_large or any(True for each in digits for _ in self._store.walk_part(each)):
                yield _Part(f"blobs {number}", f"rebuild-{number}", partial(self._put, digits))

    async def _put(self, digits: list[str], writing: IndexWriting) -> int:
        # sorted, one folder after the other: what is written together is then together in the index, too
        walks = (self._give_way.slices(self._store.walk_part(each)) for each in digits)
        folders = (sorted(walk, key=lambda info: str(info.digest)) for walk in walks)
        return await writing.blobs(chain.from_iterable(folders))

    def _result(self, *, added: int = 0, dropped: int = 0) -> Reconciled | None:
        if self._resumed is None:
            return None
        result = replace(self._writing.counts, added=added, dropped=dropped, resumed=self._resumed)
        log_ended(result)
        return result


async def _link(repos: list[Repo], writing: IndexWriting) -> int:
    for repo in repos:
        await writing.repository(repo)
    return 0

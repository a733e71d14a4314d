"""One blob, not in the store, of which small parts are asked for: their bytes are fetched alone, and out of turn.

    enter() ──> open: the spans beside the growing file ──> leave(), idle ──> closed ──> enter() …
      │
      ├── want()  the places of a request that are not here ──> fetched
      └── read()  bytes at a position ──> here, in the prefix, or in the store: a reader
                    ├── a fetch of this process brings them ────> waits for it; its error is the error of its asker
                    ├── another process, or a fill, brings them ─> looks every few milliseconds
                    └── nobody does ────────────────────────────> begins a fetch

`part_files.py` knows what is here, `part_fetches.py` fetches what is not. Bytes that are read here are **not
verified**.

Bytes that somebody else has claimed and that stand still are not waited for: `read` raises `StoreError`, and the caller
goes past the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from mirror.errors import StoreError
from mirror.fills.looks import Looks
from mirror.fills.part_fetches import Asker, PartFetches, PartTools
from mirror.fills.part_files import STUCK, Awaited, PartFiles, ReadableNow
from mirror.oci.digest import Digest
from mirror.oci.span import Span
from mirror.policy.fills.span_blocks import BLOCK

#: Fetches that one reader begins for a byte: others may fail by the rights of somebody else.
_MOST_BEGUN: Final = 8


class LazyBlob:
    """See the head of this file. One in each process for a digest and the registry that sends it."""

    def __init__(self, digest: Digest, upstream: str, size: int, tools: PartTools) -> None:
        """`size` is that of the whole blob in bytes, as a manifest says it; `upstream` the registry's name."""
        self.digest: Final = digest
        self.upstream: Final = upstream
        self.size: Final = size
        #: Requests that read parts now.
        self.users = 0
        #: When a part was asked for last, by the clock of the tools.
        self.asked_at = tools.clock()
        self._tools = tools
        self._files = PartFiles(digest, upstream, size, tools.store, tools.clock)
        self._fetches = PartFetches(self._files, tools)
        self._opening = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<LazyBlob {str(self.digest)[:19]}… {self.users} users, {len(self._fetches.under_way)} fetches>"

    @property
    def is_idle(self) -> bool:
        """True if nobody reads parts, and none is fetched."""
        return not self.users and self._fetches.is_idle

    @property
    def is_fetching(self) -> bool:
        """True if this process fetches parts now."""
        return bool(self._fetches.under_way)

    async def enter(self) -> None:
        """Opens the files. The caller must `leave`. Raises `NotInParts` if the blob is in the store meanwhile, or
        cannot have spans; `StoreError`.
        """
        self.users += 1
        self.asked_at = self._tools.clock()
        try:
            async with self._opening:
                await self._tools.in_thread(self._files.open)
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """The counterpart of `enter`."""
        self.users -= 1
        self.asked_at = self._tools.clock()
        if not self.users:
            self._files.use_no_more()

    def close(self) -> None:
        """Closes the files of an idle blob. Repeatable; `enter` opens them again."""
        if self.is_idle:
            self._files.close()

    async def aclose(self) -> None:
        """Ends all fetches: whole blocks stay. Repeatable."""
        try:
            await self._fetches.aclose()
        finally:
            self._files.close()

    async def want(self, places: Iterable[Span], asker: Asker) -> bool:
        """Begins to fetch what is not here of these places (whole blocks). False if all of it is here."""
        missing = await self._tools.in_thread(self._files.missing, tuple(places))
        if missing:
            self._fetches.begin(missing, asker)
        return bool(missing)

    async def read(self, position: int, stop: int, asker: Asker) -> ReadableNow:
        """Returns a reader of the bytes from `position` on, perhaps not up to `stop`, once there are any.

        Raises `UpstreamError` if they cannot be had, `NotInParts` if they cannot be had in parts, and `StoreError` if
        the store cannot take or give them, or whoever fetches them makes no progress.
        """
        fetches = self._fetches
        looks, begun = Looks(self._tools.sleep, self._tools.clock, None), 0
        while True:
            # both before the look: what happens after it wakes this one, or is seen
            changed = fetches.changed
            awaited = [fetch for fetch in fetches.under_way if fetch.covers(position) and fetch.is_awaited_by(asker)]
            found = await self._tools.in_thread(self._files.look, position, stop, unwanted=_close_reader)
            if isinstance(found, ReadableNow):
                return found
            if awaited:
                await fetches.wait(changed)
                failed = [fetch.error for fetch in awaited if fetch.error and fetch.asker.is_like(asker)]
                if failed and not any(fetch in fetches.under_way for fetch in awaited):
                    raise failed[0].with_traceback(None) from None
                looks.begin(None)
                continue
            if not found.comes:
                begun += 1
                if begun > _MOST_BEGUN:
                    raise StoreError(f"byte {position} of {self.digest} does not come")
                start = position // BLOCK * BLOCK
                fetches.begin([Span(start, min(-(-stop // BLOCK) * BLOCK, self.size))], asker)
                continue
            if not looks.moved(found.seen) and looks.still > STUCK:
                raise StoreError(f"whoever fetches byte {position} of {self.digest} makes no progress")
            await looks.pause()

    def here(self) -> int:
        """Blocking: how many bytes of the blob are here. Raises `NotInParts`, `StoreError`."""
        return self._files.here()

    def sync(self) -> None:
        """Blocking: makes what is here survive a power cut. Raises `StoreError`."""
        self._files.opened().sync()

    async def note_served(self, line: dict[str, object]) -> None:
        """Remembers who is given unverified bytes. Raises `StoreError`."""
        await self._tools.in_thread(lambda: self._files.opened().note_served(line))

    async def accuse(self, reason: str) -> None:
        """The whole was wrong: the sources that gave parts of it here are not asked for it again for some time."""
        await self._fetches.accuse(reason)


def _close_reader(found: ReadableNow | Awaited) -> None:
    if isinstance(found, ReadableNow):
        found.reader.close()

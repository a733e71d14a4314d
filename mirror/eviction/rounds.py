"""The rounds that keep store and index in order, one each second in each worker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from mirror.aio.closing import close_all
from mirror.eviction.rebuilding import IndexRebuilder
from mirror.eviction.space import Space
from mirror.eviction.usage import StoreUsage
from mirror.eviction.write_behind import WriteBehind
from mirror.rounds import run_rounds


class EvictionRounds:
    """Flushes what waits for the index, rebuilds the index if it was lost, and evicts what is too much."""

    def __init__(
        self,
        space: Space,
        usage: StoreUsage,
        write_behind: WriteBehind,
        rebuilder: IndexRebuilder,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        interval: float = 1.0,
    ) -> None:
        """`interval` is in seconds."""
        self._space = space
        self._usage = usage
        self._write_behind = write_behind
        self._rebuilder = rebuilder
        self._sleep = sleep
        self._interval = interval

    async def run(self) -> None:
        """Does a round every `interval` seconds, until cancelled. Then ends a rebuild and a walk that are under way."""
        try:
            await self._sleep(self._interval)
            await run_rounds(
                self.tick,
                self._interval,
                failed="eviction failed",
                crashed="eviction crashed",
                # a disk that is read-only, or full of pinned images, stays so for many rounds
                once=True,
                sleep=self._sleep,
            )
        finally:
            await close_all(self._rebuilder.aclose, self._usage.aclose)

    async def tick(self) -> None:
        """Does one round. Raises `StoreError`."""
        await self._write_behind.flush()
        await self._rebuilder.check()
        await self._space.check()

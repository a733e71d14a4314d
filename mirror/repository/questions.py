"""Questions to upstreams: each is asked once for all who wait, and its answer is remembered for a while.

asked here before, lately ──> the remembered answer, also of other processes (`memo`)
being asked in this process ──> that answer (`once`)
being asked in another process ──> wait for its end, then look at the disk again (`locked`)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Final, Protocol

from mirror import telemetry
from mirror.aio.memo import MISSING, Memo
from mirror.caller import caller_key
from mirror.errors import StoreError
from mirror.intake.store_health import StoreHealth

#: Seconds for which upstream is not asked again after it answered "not found".
_UNKNOWN_FOR: Final = 10.0
#: Seconds to wait for the lock of another process that asks upstream. After that each process asks for itself.
#: Containerd gives up if it gets no headers for 30 s; both waits of a pull by tag (tag, manifest) stay well below that.
_LOCKED_FOR: Final = 10.0


class Exclusive(Protocol):
    """A lock over all processes that share a store."""

    def __call__(self, key: str, /) -> AbstractAsyncContextManager[object]: ...


class Questions:
    """The questions of all repositories of one process."""

    def __init__(self, memo: Memo, exclusive: Exclusive, health: StoreHealth) -> None:
        self.memo = memo
        self._exclusive = exclusive
        self._health = health

    async def is_unknown(self, what: str) -> bool:
        """True if upstream has just told the current caller that it does not have this."""
        return await self.memo.get(caller_key(what)) is not MISSING

    async def note_unknown(self, what: str) -> None:
        """Remembers for a while that upstream told the current caller that it does not have this."""
        await self.memo.put(caller_key(what), "unknown", _UNKNOWN_FOR)

    @asynccontextmanager
    async def locked(self, key: str) -> AsyncIterator[None]:
        """Holds a lock over all processes, so that upstream is asked only once. The body also runs if the lock fails or
        cannot be had in time, for example because its holder hangs.
        """
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(_LOCKED_FOR):
                    await stack.enter_async_context(self._exclusive(key))
            except StoreError as error:
                self._health.failed(error, key)
            except TimeoutError:
                telemetry.log.warning("lock not obtained", key=key, waited=_LOCKED_FOR)
            yield

"""What every implementation of `Locks` does. A test class inherits `LocksSuite` and supplies the fixture `process`,
which makes the locks of one more process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mirror.ports import Locks

#: A name as a client can choose it.
KEY = "tag docker.io/library/alpine:latest"
#: Seconds; far beyond what a busy machine needs.
_PATIENT = 60.0


async def take_and_leave(locks: Locks, name: str) -> None:
    """Wait for a lock and release it at once."""
    async with locks.hold(name):
        pass


class LocksSuite:
    """Fixture to supply: `process`."""

    async def test_one_process_at_a_time_has_a_lock(self, process: Callable[[], Locks]) -> None:
        """The others wait until it is released."""
        inside: list[int] = []
        most = 0

        async def work(locks: Locks, number: int) -> None:
            nonlocal most
            async with locks.hold(KEY):
                inside.append(number)
                most = max(most, len(inside))
                await asyncio.sleep(0)
                inside.remove(number)

        async with asyncio.timeout(_PATIENT):
            await asyncio.gather(*(work(process(), number) for number in range(20)))
        assert most == 1

    async def test_a_cancelled_waiter_leaves_nothing(self, process: Callable[[], Locks]) -> None:
        """The lock is free again when its holder has released it."""
        async with asyncio.timeout(_PATIENT):
            async with process().hold(KEY):
                waiting = asyncio.create_task(take_and_leave(process(), KEY))
                await asyncio.sleep(0)
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
            await take_and_leave(process(), KEY)

    async def test_a_lock_that_is_taken_is_not_taken_again(self, process: Callable[[], Locks]) -> None:
        """Not even by its own process; another name is free; a second release does not release another's lock."""
        first = process()
        lease = await first.try_hold("house")
        assert lease is not None
        assert await first.try_hold("house") is None
        assert await process().try_hold("house") is None
        assert await process().try_hold("sync") is not None
        assert not lease.lost.is_set()
        lease.release()
        async with asyncio.timeout(_PATIENT), process().hold("house"):
            lease.release()
            assert await first.try_hold("house") is None

    async def test_a_lease_ends_with_its_context(self, process: Callable[[], Locks]) -> None:
        """Also if the work under it fails."""
        lease = await process().try_hold("house")
        assert lease is not None
        try:
            with lease:
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        async with asyncio.timeout(_PATIENT), process().hold("house"):
            pass

"""The rounds of a process, and their end."""

from __future__ import annotations

import asyncio

import pytest

from mirror.oci.digest import Digest
from tests.support.eviction_world import START, World, until


class Turns:
    """A `sleep` that waits for the test."""

    def __init__(self) -> None:
        self.waits = 0
        self._go: asyncio.Queue[None] = asyncio.Queue()

    async def __call__(self, seconds: float) -> None:
        self.waits += 1
        await self._go.get()

    async def next(self) -> None:
        """One round; returns when it is over."""
        waits = self.waits
        self._go.put_nowait(None)
        await until(lambda: self.waits > waits)


async def test_it_runs_in_rounds(world: World) -> None:
    """Each round flushes uses and comes back below the high water; trouble with the disk does not end it."""
    turns = Turns()
    parts = world.another(lambda: (), sleep=turns)
    running = asyncio.ensure_future(parts.rounds.run())
    await until(lambda: turns.waits == 1)
    digests = [await world.add(number) for number in range(10)]
    parts.write_behind.touch(digests[0])
    await turns.next()
    assert world.present() == {digests[0], *digests[3:]}
    found = await world.port.get(digests[0])
    assert found is not None
    assert found.last_used == START
    world.store.failing = True
    await turns.next()
    world.store.failing = False
    await world.add(20, 200)
    await turns.next()
    assert world.present() == {digests[0], *digests[5:], *sized(world, 20, 200)}
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def sized(world: World, number: int, size: int) -> set[Digest]:
    """The digest of a blob that `add` made."""
    digest = Digest.of(f"{number:08}".encode().ljust(size, b"."))
    world.store.stat(digest)
    return {digest}


async def test_stopping_stops_a_rebuild(world: World) -> None:
    """A rebuild under way ends with `run`."""
    begun, never = asyncio.Event(), asyncio.Event()
    ended: list[str] = []

    async def rebuild() -> None:
        begun.set()
        try:
            await never.wait()
        finally:
            ended.append("rebuild")

    turns = Turns()
    parts = world.another(lambda: (), rebuild=rebuild, sleep=turns)
    await world.port.clear()
    running = asyncio.ensure_future(parts.rounds.run())
    await turns.next()
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended == ["rebuild"]

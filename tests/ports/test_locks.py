"""Locks that processes on one store share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from mirror.store.local.locks import Locks


@pytest.fixture
def process(tmp_path: Path) -> Callable[[], Locks]:
    """Makes the view that each of several processes has: they share nothing but files."""
    layout = LocalStore(Layout(tmp_path)).layout
    return lambda: Locks(layout)


async def test_one_at_a_time(process: Callable[[], Locks]) -> None:
    """Whoever comes second waits until the first has left."""
    inside: list[str] = []
    most = 0

    async def work(locks: Locks, name: str) -> None:
        nonlocal most
        async with locks.exclusive("tag docker.io/library/alpine:latest"):
            inside.append(name)
            most = max(most, len(inside))
            await asyncio.sleep(0)
            inside.remove(name)

    await asyncio.gather(*(work(process(), str(number)) for number in range(20)))
    assert most == 1


async def test_a_cancelled_waiter_leaves_nothing(process: Callable[[], Locks]) -> None:
    """Waiting can be given up, and the lock is free when its holder has left."""
    async with process().exclusive("x"):
        waiting = asyncio.create_task(_enter(process(), "x"))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    async with asyncio.timeout(10):
        await _enter(process(), "x")


async def _enter(locks: Locks, key: str) -> None:
    async with locks.exclusive(key):
        pass


async def test_long_work_keeps_no_key_waiting(process: Callable[[], Locks]) -> None:
    """A named lock has a file of its own: none of the keys, which share files, meets it."""
    async with process().named("rebuild"), asyncio.timeout(60):
        for number in range(3000):
            await _enter(process(), f"tag {number}")


def test_a_post_is_held_by_one_until_it_goes(process: Callable[[], Locks]) -> None:
    """Of all processes one has it; when its descriptor is closed, as by its death, another may."""
    held = process().try_hold("house")
    assert held is not None
    assert process().try_hold("house") is None
    os.close(held)
    again = process().try_hold("house")
    assert again is not None
    os.close(again)

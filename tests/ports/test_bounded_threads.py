"""Threads of which only so much work may wait."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Iterator

import pytest

from mirror.aio.bounded_threads import BoundedThreads, in_thread
from mirror.errors import BucketUnavailable


@pytest.fixture
def threads() -> Iterator[BoundedThreads]:
    pool = BoundedThreads("test", 2, 1, lambda: BucketUnavailable("too many wait", retry_after=1.0))
    yield pool
    pool.shutdown(wait=True)


def test_what_is_too_much_is_refused_and_what_has_ended_makes_room(threads: BoundedThreads) -> None:
    gate = threading.Event()
    futures = [threads.submit(gate.wait) for _ in range(3)]
    with pytest.raises(BucketUnavailable, match="too many wait"):
        threads.submit(gate.wait)
    gate.set()
    assert [future.result() for future in futures] == [True] * 3
    assert threads.submit(int, "7").result() == 7


async def test_who_no_longer_waits_makes_room(threads: BoundedThreads) -> None:
    gate = threading.Event()
    running = [threads.submit(gate.wait) for _ in range(2)]
    waiting = asyncio.ensure_future(in_thread(threads, gate.wait))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    waits = threads.submit(int, "7")
    gate.set()
    assert waits.result() == 7
    assert [future.result() for future in running] == [True, True]


async def test_the_context_goes_along(threads: BoundedThreads) -> None:
    known: contextvars.ContextVar[str] = contextvars.ContextVar("known", default="nothing")
    known.set("the request")
    for executor in (threads, None):
        assert await in_thread(executor, known.get) == "the request"

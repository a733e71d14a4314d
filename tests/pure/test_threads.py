"""Work in threads that outlives the one who waits for it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from mirror.aio.threads import uninterrupted


class _Work:
    """A thread's work that goes on until it is let go."""

    def __init__(self, error: Exception | None = None) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.over = False
        self._error = error

    def __call__(self) -> str:
        self.begun.set()
        self.go_on.wait()
        self.over = True
        if self._error:
            raise self._error
        return "made"

    def start(self) -> asyncio.Future[str]:
        return asyncio.ensure_future(asyncio.to_thread(self))


async def test_its_result_and_its_error() -> None:
    """Whoever is not cancelled gets what the work gives or raises."""
    work, failing = _Work(), _Work(ValueError("no"))
    work.go_on.set()
    failing.go_on.set()
    assert await uninterrupted(work.start(), unwanted=lambda _: pytest.fail("it was wanted")) == "made"
    with pytest.raises(ValueError, match="no"):
        await uninterrupted(failing.start())


@pytest.mark.parametrize("times", [1, 3])
async def test_cancelled(times: int) -> None:
    """However often it is cancelled: stopped, waited for, and what it made is handed back; then the cancellation."""
    work, calls = _Work(), list[str]()
    waiting = asyncio.create_task(
        uninterrupted(work.start(), stop=lambda: calls.append("stop"), unwanted=lambda made: calls.append(made))
    )
    await asyncio.to_thread(work.begun.wait)
    for _ in range(times):
        waiting.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
    assert calls == ["stop"]
    work.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert work.over
    assert calls == ["stop", "made"]


async def test_an_error_after_the_cancellation() -> None:
    """It is nobody's any more: no one is told of it, and nothing is handed back."""
    work = _Work(ValueError("no"))
    waiting = asyncio.create_task(uninterrupted(work.start(), unwanted=lambda _: pytest.fail("nothing was made")))
    await asyncio.to_thread(work.begun.wait)
    waiting.cancel()
    work.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert work.over

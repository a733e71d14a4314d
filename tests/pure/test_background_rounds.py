"""Work in the background goes on after any error, ends when it is cancelled, and then has no lock any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from mirror.aio.singleflight import cancel_and_wait
from mirror.errors import IndexUnavailable, StoreError, Unsupported
from mirror.ports import Records
from mirror.rounds import KeptLock, begin, run_rounds


class _Lease:
    """A lock that may be lost; `released` counts."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        self.released = 0

    def fence(self, records: Records) -> Records:
        return records

    def release(self) -> None:
        self.released += 1

    def __enter__(self) -> _Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class _Script:
    """What each round does: raises an error, or returns the seconds. After the last one the pause never ends, so that
    `pauses` has all.
    """

    def __init__(self, *rounds: BaseException | float | None) -> None:
        self._rounds = iter(rounds)
        self._left = len(rounds)
        self.pauses: list[float] = []
        self.over = asyncio.Event()

    async def work(self) -> float | None:
        outcome = next(self._rounds)
        self._left -= 1
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if not self._left:
            self.over.set()
            await asyncio.Event().wait()

    async def run(self, **more: Any) -> list[dict[str, Any]]:
        """Runs all rounds, and returns the log."""
        with capture_logs() as lines:
            running = asyncio.create_task(run_rounds(self.work, 60.0, crashed="it crashed", sleep=self.sleep, **more))
            await asyncio.wait({asyncio.create_task(self.over.wait()), running}, return_when="FIRST_COMPLETED")
            assert not running.done(), running.exception()
            await cancel_and_wait(running)
        return [dict(line) for line in lines]


async def test_a_round_says_how_long_the_pause_is() -> None:
    """Or leaves it at the usual."""
    script = _Script(None, 5.0, 0.0, None)
    assert await script.run(failed="it failed") == []
    assert script.pauses == [60.0, 5.0, 0.0, 60.0]


async def test_errors_are_logged_and_the_rounds_go_on() -> None:
    """Those that are expected with their reason, all others with a traceback."""
    script = _Script(StoreError("full"), IndexUnavailable("away"), ValueError("a mistake"), Unsupported("other"), None)
    lines = await script.run(failed="it failed")
    assert [(line["event"], line["log_level"], line.get("reason")) for line in lines] == [
        ("it failed", "warning", "full"),
        ("it failed", "warning", "away"),
        ("it crashed", "error", None),
        ("it crashed", "error", None),
    ]
    assert script.pauses == [60.0] * 5


async def test_what_is_expected_differs() -> None:
    """Work that says so expects other errors, or none."""
    lines = await _Script(Unsupported("no"), StoreError("full")).run(failed="it failed", expected=(Unsupported,))
    assert [line["event"] for line in lines] == ["it failed", "it crashed"]
    lines = await _Script(StoreError("full")).run()
    assert [line["event"] for line in lines] == ["it crashed"]


@pytest.mark.parametrize("after_error", [7.0, lambda: 7.0], ids=["seconds", "function"])
async def test_the_pause_after_an_error(after_error: float | Callable[[], float]) -> None:
    """It is the same for every kind of error, and for no round without one."""
    script = _Script(StoreError("full"), ValueError("a mistake"), None)
    await script.run(failed="it failed", after_error=after_error)
    assert script.pauses == [7.0, 7.0, 60.0]


async def test_a_reason_that_stays_is_logged_once() -> None:
    """Until another comes, or until a round has gone well; a crash in between says nothing about it."""
    full, away = StoreError("full"), StoreError("away")
    lines = await _Script(full, full, ValueError(), full, away, full, None, full).run(failed="it failed", once=True)
    assert [line.get("reason", line["event"]) for line in lines] == ["full", "it crashed", "away", "full", "full"]
    lines = await _Script(ValueError(1), ValueError(1), full, ValueError(1), ValueError(2), None, ValueError(2)).run(
        failed="it failed", once=True
    )
    assert [line["event"] for line in lines] == ["it crashed", "it failed", "it crashed", "it crashed"]


async def test_the_cancellation_of_something_else_is_no_end() -> None:
    """Of work that others share, say: the round has failed, and the next one comes."""

    async def shared() -> None:
        await asyncio.Event().wait()

    async def wait_for_it() -> None:
        task = asyncio.ensure_future(shared())
        asyncio.get_running_loop().call_soon(task.cancel)
        await task

    script = _Script(asyncio.CancelledError(), None)
    lines = await script.run(failed="it failed", after_error=7.0)
    assert [line["event"] for line in lines] == ["it crashed"]
    assert script.pauses == [7.0, 60.0]
    with capture_logs() as logged:
        running = asyncio.create_task(run_rounds(wait_for_it, 60.0, crashed="it crashed", sleep=script.sleep))
        script.over.clear()
        await asyncio.wait({asyncio.create_task(script.over.wait()), running}, return_when="FIRST_COMPLETED")
        assert not running.done()
        await cancel_and_wait(running)
    assert [line["event"] for line in logged] == ["it crashed"]


@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
async def test_work_that_ends_by_an_error_is_in_the_log_at_once(error: type[BaseException]) -> None:
    """Not only when somebody ends the process. Work that is cancelled, or has nothing to do, is not."""

    async def fail() -> None:
        raise error

    async def last() -> None:
        await asyncio.Event().wait()

    async def needless() -> None:
        return

    with capture_logs() as lines:
        await asyncio.wait({begin(fail()), begin(needless())})
        await cancel_and_wait(begin(last()))
    assert [(line["event"], line["work"].rpartition(".")[2]) for line in lines] == [("background work ended", "fail")]


@pytest.mark.parametrize("place", ["at work", "in the pause"])
async def test_who_is_cancelled_has_no_lock_any_more(place: str) -> None:
    """The end is no error, and nothing is logged."""
    lease, there = _Lease(), asyncio.Event()

    async def take() -> _Lease:
        return lease

    async def reach(here: str) -> None:
        if here == place:
            there.set()
            await asyncio.Event().wait()

    async def run() -> None:
        async def work() -> None:
            assert await lock.taken() is lease
            await reach("at work")

        with KeptLock(take) as lock:
            await run_rounds(work, 1.0, crashed="it crashed", sleep=lambda _: reach("in the pause"))

    with capture_logs() as lines:
        running = asyncio.create_task(run())
        await there.wait()
        before = lease.released
        await cancel_and_wait(running)
    assert running.cancelled()
    assert (before, lease.released) == (0, 1)
    assert lines == []


async def test_a_pause_ends_early_for_who_is_woken() -> None:
    """Also if that happens during the work; the work sees it, and ends it."""
    woken, rounds = asyncio.Event(), asyncio.Queue[bool]()

    async def work() -> None:
        was_woken = woken.is_set()
        woken.clear()
        rounds.put_nowait(was_woken)
        if rounds.qsize() == 1 and was_woken:
            woken.set()

    running = asyncio.create_task(run_rounds(work, 3600.0, crashed="it crashed", woken=woken))
    assert await rounds.get() is False
    woken.set()
    assert [await rounds.get(), await rounds.get()] == [True, True]
    await cancel_and_wait(running)


async def test_the_pause_ends_for_who_is_not_woken() -> None:
    """An event that nobody sets is no reason to wait for it."""
    rounds = asyncio.Queue[None]()

    async def work() -> float:
        rounds.put_nowait(None)
        return 0.0

    running = asyncio.create_task(run_rounds(work, 3600.0, crashed="it crashed", woken=asyncio.Event()))
    for _ in range(3):
        await rounds.get()
    await cancel_and_wait(running)


# ----------------------------------------------------------------------------------------------------- the kept lock


async def _taking(outcomes: Iterator[_Lease | Exception | None]) -> _Lease | None:
    outcome = next(outcomes)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


async def test_a_lock_is_asked_for_until_it_is_free_and_then_kept() -> None:
    """An error of the locks, too, is followed by another attempt."""
    lease = _Lease()
    outcomes = iter([None, StoreError("full"), lease])
    with KeptLock(lambda: _taking(outcomes)) as lock:
        assert await lock.taken() is None
        with pytest.raises(StoreError):
            await lock.taken()
        assert lock.lease is None
        assert await lock.taken() is lease
        assert await lock.taken() is lock.lease is lease
        before = lease.released
    assert (before, lease.released) == (0, 1)
    assert lock.lease is None


async def test_a_lock_that_was_lost_is_given_up_and_asked_for_again() -> None:
    """As another process may have it, no work is done with it."""
    first, second = _Lease(), _Lease()
    outcomes = iter([first, None, second])
    with KeptLock(lambda: _taking(outcomes)) as lock:
        assert await lock.taken() is first
        assert not lock.is_lost
        first.lost.set()
        assert lock.is_lost
        assert await lock.taken() is None
        assert first.released == 1
        assert not lock.is_lost
        assert await lock.taken() is second
    assert (first.released, second.released) == (1, 1)

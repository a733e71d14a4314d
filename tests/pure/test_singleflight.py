"""Work that is shared, and tasks that are ended."""

from __future__ import annotations

import asyncio

import pytest

from mirror.aio.singleflight import SingleFlight, cancel_and_wait
from tests.support.cancelling import cancelled_again_and_again, ends_slowly


async def test_work_asked_for_at_once_is_done_once() -> None:
    """Everyone who asks meanwhile gets the one result; whoever asks later has it done anew."""
    once = SingleFlight()
    calls = 0

    async def work() -> int:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        return calls

    assert await asyncio.gather(*(once.run("x", work) for _ in range(10))) == [1] * 10
    assert await once.run("x", work) == 2


async def test_what_began_before_the_question_is_no_answer_to_it() -> None:
    """All who ask while work runs have the result of work that began after they asked, the same for all of them."""
    once = SingleFlight()
    state, began = "old", 0
    gate = asyncio.Event()

    async def look() -> str:
        nonlocal began
        began += 1
        seen = state
        await gate.wait()
        return seen

    first = asyncio.create_task(once.run("x", look))
    for _ in range(10):
        await asyncio.sleep(0)
    assert began == 1
    state = "new"
    later = [asyncio.create_task(once.run_since("x", look)) for _ in range(5)]
    for _ in range(10):
        await asyncio.sleep(0)
    gate.set()
    assert await first == "old"
    assert await asyncio.gather(*later) == ["new"] * 5
    assert began == 2


async def test_a_caller_that_repeats_work_holds_up_nobody() -> None:
    """Not even if it begins in the moment in which the work has ended, and the event loop has not noticed."""
    once, late, begun = SingleFlight(), list[asyncio.Task[int]](), 0

    async def asks_again() -> int:
        assert not once.under_way("x")
        for _ in range(100):
            if await once.run("x", work) > 1:
                break
        return begun

    async def work() -> int:
        nonlocal begun
        begun += 1
        if not late:
            # its turn is the one before that of whoever waits for this work
            late.append(asyncio.create_task(asks_again()))
        return begun

    assert await once.run("x", work) == 1
    assert await late[0] == 2


@pytest.mark.parametrize("since", [False, True])
async def test_work_that_has_just_ended(since: bool) -> None:
    """Its callers may be about to remember the result, so nobody runs it again; unless it began too early."""
    once, late, begun = SingleFlight(), list[asyncio.Task[int]](), 0

    async def work() -> int:
        nonlocal begun
        begun += 1
        if not late:
            # its turn is the one before that of whoever waits for this work
            late.append(asyncio.create_task((once.run_since if since else once.run)("x", work)))
        return begun

    assert await once.run("x", work) == 1
    assert await late[0] == begun == (2 if since else 1)


async def test_an_error_reaches_all() -> None:
    """Nobody is left waiting for work that failed."""
    once = SingleFlight()

    async def work() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    results = await asyncio.gather(*(once.run("x", work) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [ValueError] * 3


async def test_a_cancelled_caller_does_not_cancel_the_work() -> None:
    """The first one neither: the work goes on, and the others have its result."""
    once = SingleFlight()
    release = asyncio.Event()

    async def work() -> str:
        await release.wait()
        return "done"

    first = asyncio.create_task(once.run("x", work))
    second = asyncio.create_task(once.run("x", work))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    release.set()
    assert await second == "done"


async def test_closing_ends_what_runs() -> None:
    """Nothing is left behind, and callers learn of it."""
    once = SingleFlight()
    waiting = asyncio.create_task(once.run("x", asyncio.Event().wait))
    await asyncio.sleep(0)
    await once.aclose()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_task_that_swallows_a_cancellation_is_ended_all_the_same() -> None:
    """Libraries do that; a stop must not wait for ever because of it."""
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed == 3:
                    raise

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await cancel_and_wait(task)
    assert task.cancelled()


async def test_whoever_ends_a_task_waits_for_it_though_cancelled() -> None:
    """The task may have a thread that works with files of the caller, which the caller closes next."""
    may_end = asyncio.Event()
    task = asyncio.create_task(ends_slowly(may_end))
    await asyncio.sleep(0)
    await cancelled_again_and_again(asyncio.create_task(cancel_and_wait(task)), may_end)
    assert task.done()

"""A run of a rule that is cancelled on purpose writes its record in a thread: the record may be in a bucket."""

from __future__ import annotations

import asyncio
import threading

import pytest

from mirror.prefetch.progress import ProgressMeter
from mirror.prefetch.sync_rules import run_noting
from tests.support.cancelling import cancelled_again_and_again, ends_slowly


async def test_the_end_of_a_cancelled_run_is_not_recorded_on_the_loop() -> None:
    threads = []
    meter = ProgressMeter()
    started = asyncio.Event()

    async def work() -> None:
        started.set()
        await asyncio.Event().wait()

    async def note() -> None:
        """Nothing to note."""

    run = asyncio.create_task(run_noting(work(), note, meter, lambda: threads.append(threading.get_ident())))
    await started.wait()
    meter.cancelled = True
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert len(threads) == 1
    assert threading.get_ident() not in threads


async def test_the_end_of_a_run_that_ends_slowly_is_recorded() -> None:
    """Whoever cancels it does so again when it has not ended after a moment."""
    recorded, may_end = [], asyncio.Event()
    meter = ProgressMeter()
    meter.cancelled = True

    async def note() -> None:
        """Nothing to note."""

    run = asyncio.create_task(run_noting(ends_slowly(may_end), note, meter, lambda: recorded.append("cancelled")))
    await cancelled_again_and_again(run, may_end)
    assert recorded == ["cancelled"]

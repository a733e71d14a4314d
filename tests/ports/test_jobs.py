"""Jobs on disk: what is left of them by crashes, mistakes and crowds. Their ordinary life is tested with processes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mirror.aio.singleflight import cancel_and_wait
from mirror.errors import JobUnknown, NameUnknown, StoreError, TooManyJobs
from mirror.prefetch.job_record import Job, JobState
from mirror.prefetch.jobs import Ended, Jobs
from mirror.prefetch.progress import ProgressMeter
from mirror.store.local.blobs import LocalStore
from mirror.store.local.json_records import JsonRecords
from mirror.store.local.layout import Layout
from mirror.store.local.locks import FileLocks
from tests.support.cancelling import cancelled_again_and_again, ends_slowly
from tests.support.live_mirror import until


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Of a store that exists."""
    layout = Layout(tmp_path / "store")
    LocalStore(layout)
    return layout


class Bench:
    """Work of several kinds, and how often each was begun."""

    def __init__(self) -> None:
        self.begun: list[Mapping[str, Any]] = []
        self.gate = asyncio.Event()

    async def good(self, arguments: Mapping[str, Any], meter: ProgressMeter) -> Ended:
        """Waits for the gate."""
        self.begun.append(arguments)
        await self.gate.wait()
        return Ended(True, {"images": 1})

    async def wrong(self, _arguments: Mapping[str, Any], _meter: ProgressMeter) -> Ended:
        """Fails as expected."""
        raise NameUnknown("no such rule")

    async def crash(self, _arguments: Mapping[str, Any], _meter: ProgressMeter) -> Ended:
        """Has a mistake."""
        raise ZeroDivisionError


def _jobs(layout: Layout, bench: Bench, *, at_once: int = 2, now: Callable[[], float] = time.time) -> Jobs:
    return Jobs(
        *(JsonRecords(layout, kind) for kind in ("jobs", "job-queue", "job-cancels")),
        locks=FileLocks(layout),
        work={"good": bench.good, "wrong": bench.wrong, "crash": bench.crash},
        at_once=at_once,
        record_every=0.01,
        now=now,
    )


@asynccontextmanager
async def _running(*all_jobs: Jobs) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(jobs.run()) for jobs in all_jobs]
    try:
        yield
    finally:
        await cancel_and_wait(*tasks)


async def _state(jobs: Jobs, name: str, *states: str) -> dict[str, Any]:
    job: dict[str, Any] = {}
    while job.get("state") not in states:
        job = dict(await jobs.get(name))
        await asyncio.sleep(0.005)
    return job


async def test_several_processes_run_each_job_once(layout: Layout) -> None:
    """However many look at the queue, and never more at once than there are slots."""
    bench = Bench()
    crowd = [_jobs(layout, bench) for _ in range(4)]
    names = [(await crowd[0].submit("good", {"n": number}))["id"] for number in range(6)]
    async with _running(*crowd):
        await until(lambda: len(bench.begun) == 2)
        states = [job["state"] for job in await crowd[1].all()]
        assert sorted(states) == ["queued"] * 4 + ["running"] * 2
        bench.gate.set()
        for name in names:
            await _state(crowd[2], name, "done")
    assert sorted(arguments["n"] for arguments in bench.begun) == [0, 1, 2, 3, 4, 5]
    assert [job["arguments"]["n"] for job in await crowd[3].all()] == [5, 4, 3, 2, 1, 0]


async def test_a_failed_or_crashed_job_does_not_stop_the_others(layout: Layout) -> None:
    """A failed job says why, a crashed one only that it crashed, one of an unknown kind is refused; later jobs run."""
    bench = Bench()
    bench.gate.set()
    jobs = _jobs(layout, bench, at_once=1)
    async with _running(jobs):
        names = {kind: (await jobs.submit(kind, {}))["id"] for kind in ("wrong", "crash", "strange", "good")}
        ended = {kind: await _state(jobs, name, "done", "failed") for kind, name in names.items()}
    assert {kind: job["state"] for kind, job in ended.items()} == {
        "wrong": "failed",
        "crash": "failed",
        "strange": "failed",
        "good": "done",
    }
    assert ended["wrong"]["result"] == {"error": "no such rule"}
    assert ended["crash"]["result"] == {"error": "unexpected ZeroDivisionError; the log has more"}
    assert "no job of kind 'strange'" in ended["strange"]["result"]["error"]


async def test_too_many_jobs_are_refused(layout: Layout) -> None:
    """The queue is bounded; jobs that were accepted stay."""
    jobs = _jobs(layout, Bench())
    for number in range(100):
        await jobs.submit("good", {"n": number})
    with pytest.raises(TooManyJobs):
        await jobs.submit("good", {})
    [first, *_] = await jobs.all()
    await jobs.cancel(first["id"])
    await jobs.submit("good", {})


async def test_a_crash_at_any_step_of_starting_a_job(layout: Layout) -> None:
    """The job is interrupted or still waits; it is never run twice or lost."""
    bench = Bench()
    bench.gate.set()
    jobs = _jobs(layout, bench, at_once=1)
    records, queue = JsonRecords(layout, "jobs"), JsonRecords(layout, "job-queue")
    taken, waiting, ended, unannounced = [(await jobs.submit("good", {"n": number}))["id"] for number in range(4)]
    # taken, and dead before it was dropped from the queue
    records.put(taken, {**(records.get(taken) or {}), "state": "running", "slot": 0})
    # ended, and cancelled at the same moment
    async with _running(jobs):
        await _state(jobs, waiting, "done")
        await _state(jobs, ended, "done")
        await _state(jobs, unannounced, "done")
    JsonRecords(layout, "job-cancels").put(ended, {})
    # in the queue, and nowhere else
    queue.put("lost", {"created": 0})
    async with _running(jobs):
        last = (await jobs.submit("good", {"n": 9}))["id"]
        await _state(jobs, last, "done")
    assert (await jobs.get(taken))["state"] == "interrupted"
    assert sorted(arguments["n"] for arguments in bench.begun) == [1, 2, 3, 9]
    assert list(queue.all()) == []
    assert list(JsonRecords(layout, "job-cancels").all()) == []
    with pytest.raises(JobUnknown):
        await jobs.get("lost")


async def test_a_job_whose_slot_is_locked_is_running(layout: Layout) -> None:
    """A job counts as interrupted once the lock of its slot is free, and not before."""
    jobs = _jobs(layout, Bench())
    name = (await jobs.submit("good", {}))["id"]
    records = JsonRecords(layout, "jobs")
    records.put(name, {**(records.get(name) or {}), "state": "running", "slot": 1})
    slot = FileLocks(layout).try_hold_now("job-1")
    assert slot is not None
    assert (await jobs.get(name))["state"] == "running"
    slot.release()
    assert (await jobs.get(name))["state"] == "interrupted"
    assert [job["state"] for job in await jobs.all()] == ["interrupted"]


async def test_the_end_of_the_process_interrupts_its_jobs(layout: Layout) -> None:
    """Its jobs are marked as interrupted, and their slots are free."""
    bench = Bench()
    jobs = _jobs(layout, bench)
    name = (await jobs.submit("good", {}))["id"]
    async with _running(jobs):
        await _state(jobs, name, "running")
    assert (await jobs.get(name))["result"] == {"error": "its process ended before it was done"}
    assert FileLocks(layout).try_hold_now("job-0") is not None


async def test_a_waiting_job_outlives_a_mirror_whose_processes_stop_one_by_one(layout: Layout) -> None:
    """The process that still runs does not take it, to be stopped with it a moment later; the next mirror does."""
    bench, clock = Bench(), [100.0]
    first, second = (_jobs(layout, bench, at_once=1, now=lambda: clock[0]) for _ in range(2))
    running = (await first.submit("good", {"n": 0}))["id"]
    # the older one goes first
    clock[0] += 1
    waiting = (await first.submit("good", {"n": 1}))["id"]
    async with _running(first):
        await _state(first, running, "running")
    assert (await second.get(running))["state"] == "interrupted"
    for clock[0] in (101.0, 105.9):
        await second._start_waiting()
        assert (await second.get(waiting))["state"] == "queued"
    clock[0] = 102.0
    restarted = _jobs(layout, bench, at_once=1, now=lambda: clock[0])
    async with _running(restarted):
        await _state(restarted, waiting, "running")
        bench.gate.set()
        await _state(restarted, waiting, "done")


async def test_a_waiting_job_is_taken_by_another_process_once_it_goes_on(layout: Layout) -> None:
    """A worker is replaced, the others stay: after a moment, or at once if it died."""
    bench, clock = Bench(), [100.0]
    stopped, other = (_jobs(layout, bench, at_once=1, now=lambda: clock[0]) for _ in range(2))
    name = (await stopped.submit("good", {"n": 0}))["id"]
    clock[0] += 1
    async with _running(stopped):
        await _state(stopped, name, "running")
    waiting = (await other.submit("good", {"n": 1}))["id"]
    await other._start_waiting()
    assert (await other.get(waiting))["state"] == "queued"
    clock[0] += 5
    bench.gate.set()
    async with _running(other):
        await _state(other, waiting, "done")
        records = JsonRecords(layout, "jobs")
        dead = (await other.submit("good", {"n": 2}))["id"]
        await _state(other, dead, "done")
        records.put(dead, {**(records.get(dead) or {}), "state": "running", "slot": 0})
        last = (await other.submit("good", {"n": 3}))["id"]
        await _state(other, last, "done")
    assert (await other.get(dead))["state"] == "interrupted"


async def test_an_interrupted_job_is_recorded_beside_the_loop(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records may be in a bucket that answers slowly, while the server ends its connections."""
    jobs, loop = _jobs(layout, Bench()), threading.get_ident()
    written: list[tuple[object, bool]] = []
    write = Jobs._write

    def noted(self: Jobs, job: Job) -> None:
        written.append((job.state, threading.get_ident() == loop))
        write(self, job)

    monkeypatch.setattr(Jobs, "_write", noted)
    name = (await jobs.submit("good", {}))["id"]
    async with _running(jobs):
        await _state(jobs, name, "running")
    assert (JobState.INTERRUPTED, False) in written
    assert True not in [on_loop for _, on_loop in written]


async def test_a_job_that_ends_slowly_is_interrupted_too(layout: Layout) -> None:
    """Whoever stops the process cancels it again when it has not ended after a moment."""
    bench, may_end = Bench(), asyncio.Event()

    async def slow(arguments: Mapping[str, Any], meter: ProgressMeter) -> Ended:
        await ends_slowly(may_end)
        raise AssertionError("unreachable")

    bench.good = slow  # type: ignore[method-assign]
    jobs = _jobs(layout, bench)
    name = (await jobs.submit("good", {}))["id"]
    running = asyncio.create_task(jobs.run())
    await until(lambda: jobs._running)
    job = jobs._running[name]
    await cancelled_again_and_again(job, may_end)
    # not by `get`, which tells it by the free slot
    record = JsonRecords(layout, "jobs").get(name)
    await cancel_and_wait(running)
    assert record is not None
    assert record["state"] == "interrupted"


async def test_a_job_that_has_ended_is_not_interrupted_any_more(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends while a thread records that the job is done, on a disk that is slow."""
    bench, may_write, is_writing = Bench(), threading.Event(), threading.Event()
    jobs, finish = _jobs(layout, bench), Jobs._finish

    def slowly(self: Jobs, *arguments: Any, **named: Any) -> Any:
        is_writing.set()
        assert may_write.wait(30)
        return finish(self, *arguments, **named)

    monkeypatch.setattr(Jobs, "_finish", slowly)
    name = (await jobs.submit("good", {}))["id"]
    running = asyncio.create_task(jobs.run())
    bench.gate.set()
    await asyncio.to_thread(is_writing.wait, 30)
    job = jobs._running[name]
    job.cancel()
    await asyncio.wait({job}, timeout=0.1)
    may_write.set()
    await cancel_and_wait(running)
    record = JsonRecords(layout, "jobs").get(name)
    assert record is not None
    assert record["state"] == "done"


async def test_a_job_goes_on_while_nobody_can_tell_whether_to_cancel_it(layout: Layout) -> None:
    """A disk that cannot be read for a moment ends no work of hours."""
    bench, asked = Bench(), asyncio.Event()
    loop = asyncio.get_running_loop()
    jobs = _jobs(layout, bench)
    cancels = jobs._cancels

    class _Unreadable:
        def get(self, _key: str) -> None:
            loop.call_soon_threadsafe(asked.set)
            raise StoreError("the disk does not answer")

    name = (await jobs.submit("good", {}))["id"]
    jobs._cancels = _Unreadable()  # type: ignore[assignment]
    jobs._record_every = 0.01
    running = asyncio.create_task(jobs.run())
    await asked.wait()
    jobs._cancels = cancels
    bench.gate.set()
    await until(lambda: not jobs._running)
    assert (await jobs.get(name))["state"] == "done"
    await cancel_and_wait(running)

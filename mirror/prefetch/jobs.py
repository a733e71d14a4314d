"""Jobs: work that runs in the background. Any worker process can run a job, show its state, or cancel it.

    submit() ──> queued ── a worker has a slot ──> running ──┬─> done       everything requested is here
                   │                                         ├─> failed     something is missing; `result` says what
                   └── cancel() ──> cancelled <── cancel() ──┤
                                                             └─> interrupted   its process was stopped, or died

Everything is on disk, so that any process can answer:

    jobs/        a record of each job: its request, its state, its progress (about once a second), its result
    job-queue/   a record for each waiting job; the worker that takes the job deletes it, under a lock
    job-cancels/ a record for each job that is to be cancelled; the process that runs the job looks for it
    locks/job-<n>  the slots. A job runs in a slot whose lock its process holds. So all processes together never run
                   more jobs than there are slots, and if a running job's slot is free, its process has died

When a mirror stops, its processes do not stop at the same moment. So a waiting job is not taken right after a process
has interrupted its own jobs: it would be interrupted by the stop as well, and not wait for the next start.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeAlias

from mirror import telemetry
from mirror.aio.singleflight import cancel_and_wait
from mirror.aio.threads import uninterrupted
from mirror.errors import JobUnknown, MirrorError, StoreError, TooManyJobs
from mirror.oci.reference import Repo
from mirror.policy.image_names import Image
from mirror.ports import Lease, Locks, Records
from mirror.prefetch.batch import prefetch
from mirror.prefetch.job_record import Job, JobJson, JobState
from mirror.prefetch.progress import ProgressMeter
from mirror.repository.protocol import Readable
from mirror.rounds import run_rounds
from mirror.values.platforms import parse_platforms

#: Seconds between two looks at the queue; between two looks after an error; and between two records of progress.
_LOOK_EVERY: Final = 1.0
_AFTER_ERROR: Final = 30.0
#: Seconds after the stop of a process in which others that run already take no job: they may be about to stop, too.
_REST: Final = 5.0
_RECORD_EVERY: Final = 1.0
#: How many jobs run at once, may wait, and stay on disk after their end; and for how many seconds they stay then.
_AT_ONCE: Final = 2
_MOST_QUEUED: Final = 100
_MOST_ENDED: Final = 200
_ENDED_FOR: Final = 7 * 86400.0
#: How many images a job's result lists, unless more have failed.
_MOST_LISTED: Final = 200


@dataclass(frozen=True, slots=True)
class Ended:
    """How some work ended. `ok`: all of it succeeded; `result`: its outcome, as JSON."""

    ok: bool
    result: Mapping[str, Any]


#: The function that does a job's work. It gets the arguments that the job was submitted with, and a meter to fill.
Work: TypeAlias = Callable[[Mapping[str, Any], ProgressMeter], Awaitable[Ended]]


def prefetching(source_for: Callable[[Repo], Readable], parse_image: Callable[[str], Image]) -> Work:
    """The work of jobs of the kind `prefetch`. Their arguments are `images`, `platforms` and `referrers`, which were
    checked before the job was submitted.
    """

    async def work(arguments: Mapping[str, Any], meter: ProgressMeter) -> Ended:
        images = [parse_image(str(text)) for text in arguments["images"]]
        meter.expect(len(images))
        prefetched = await prefetch(
            source_for,
            images,
            platforms=parse_platforms(arguments["platforms"]),
            referrers=bool(arguments["referrers"]),
            report=meter.note,
        )
        first = {} if prefetched.ok else {"first_failure": str(prefetched.failures[0])}
        return Ended(prefetched.ok, {**_shortened(prefetched.to_json()), **first})

    return work


def _shortened(result: dict[str, Any]) -> dict[str, Any]:
    """The result with every failed image, but only as many of the others as a person reads; `more` counts the rest."""
    images = result["images"]
    listed = [image for image in images if not image["ok"]]
    listed += [image for image in images if image["ok"]][: max(0, _MOST_LISTED - len(listed))]
    return {**result, "images": listed, "more": len(images) - len(listed)}


class Jobs:
    """The jobs, as one process sees them. A process that does not call `run` can submit, show and cancel jobs, and
    other processes run them.
    """

    def __init__(
        self,
        jobs: Records,
        queue: Records,
        cancels: Records,
        *,
        locks: Locks,
        work: Mapping[str, Work],
        at_once: int = _AT_ONCE,
        record_every: float = _RECORD_EVERY,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`locks` are shared by all processes on one store. `work` gives the function for each kind of job."""
        self._jobs = jobs
        self._queue = queue
        self._cancels = cancels
        self._locks = locks
        self._work = work
        self._slots = range(at_once)
        self._record_every = record_every
        self.now = now
        self._began = now()
        self._wake = asyncio.Event()
        self._running: dict[str, asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"<Jobs in {len(self._slots)} slots, running here {sorted(self._running)}>"

    # ----------------------------------------------------------------------------------------- submit, show, cancel

    async def submit(self, kind: str, arguments: Mapping[str, Any]) -> JobJson:
        """Create a job and return it. It is on disk when this returns. Raises `TooManyJobs`, `StoreError`."""
        job = await asyncio.to_thread(self._submit, kind, arguments)
        self._wake.set()
        return job.to_json()

    def _submit(self, kind: str, arguments: Mapping[str, Any]) -> Job:
        if sum(1 for _ in self._queue.all()) >= _MOST_QUEUED:
            raise TooManyJobs(f"{_MOST_QUEUED} jobs are waiting already")
        self._prune()
        job = Job(secrets.token_hex(6), kind, JobState.QUEUED, self.now(), dict(arguments))
        self._write(job)
        self._queue.put(job.id, {"created": job.created})
        return job

    async def get(self, name: str) -> JobJson:
        """The job with its present state. Raises `JobUnknown`, `StoreError`."""
        return (await self._read(name)).to_json()

    async def all(self) -> list[JobJson]:
        """All jobs on disk, the newest first, with their results and progress shortened."""
        jobs = await asyncio.to_thread(lambda: sorted(self._all(), key=lambda job: job.created, reverse=True))
        return [(await self._checked(job)).summary() for job in jobs]

    async def cancel(self, name: str) -> JobJson:
        """Cancel a job, whichever process runs it, and return it; a job that has ended is not changed. A running job
        ends a little later. Raises `JobUnknown`, `StoreError`.
        """
        async with self._locks.hold("jobs"):
            job = await asyncio.to_thread(self._request_cancel, await self._read(name))
        self._wake.set()
        return job.to_json()

    def _request_cancel(self, job: Job) -> Job:
        if job.state is JobState.QUEUED:
            self._queue.drop(job.id)
            return self._end(job, JobState.CANCELLED)
        if job.state is JobState.RUNNING and not job.cancelling:
            self._cancels.put(job.id, {"asked": self.now()})
            return replace(job, cancelling=True)
        return job

    async def _read(self, name: str) -> Job:
        job = Job.from_record(await asyncio.to_thread(self._jobs.get, name))
        if job is None:
            raise JobUnknown(f"no job {name[:80]!r}")
        job = await self._checked(job)
        if job.state is not JobState.RUNNING or await asyncio.to_thread(self._cancels.get, name) is None:
            return job
        return replace(job, cancelling=True)

    def _all(self) -> Iterator[Job]:
        for record in self._jobs.all():
            if (job := Job.from_record(record)) is not None:
                yield job

    def _write(self, job: Job) -> None:
        self._jobs.put(job.id, job.to_record())

    async def _checked(self, job: Job) -> Job:
        """The job itself, or, if it is said to run but no process holds its slot, how it ended; a job that did not end
        properly is marked as interrupted.
        """
        if job.state is not JobState.RUNNING:
            return job
        slot = await self._locks.try_hold(_lock(job.slot))
        if slot is None:
            return job
        with slot:
            return await uninterrupted(asyncio.to_thread(self._end_unless_ended, job))

    def _end_unless_ended(self, job: Job) -> Job:
        # the job may have ended properly after its record was read and before the lock was taken
        latest = Job.from_record(self._jobs.get(job.id)) or job
        return self._died(latest) if latest.state is JobState.RUNNING else latest

    def _died(self, job: Job) -> Job:
        # without its slot: nobody knows when its process ended, and no other one stops with it
        return self._interrupted(replace(job, slot=None))

    def _interrupted(self, job: Job) -> Job:
        return self._end(job, JobState.INTERRUPTED, {"error": "its process ended before it was done"})

    def _end(self, job: Job, state: JobState, result: Mapping[str, Any] | None = None) -> Job:
        ended = replace(job, state=state, ended=self.now(), result=dict(result or {}))
        self._write(ended)
        self._cancels.drop(job.id)
        return ended

    def _prune(self) -> None:
        """Delete the records of jobs that ended long ago, or that are too many, and cancel records of ended jobs."""
        over = sorted((job for job in self._all() if job.is_over), key=lambda job: job.created, reverse=True)
        for number, job in enumerate(over):
            if number >= _MOST_ENDED or self.now() - job.created > _ENDED_FOR:
                self._jobs.drop(job.id)
        for name in {cancel["key"] for cancel in self._cancels.all()} & {job.id for job in over}:
            # the job ended while it was being cancelled
            self._cancels.drop(name)

    # ------------------------------------------------------------------------------------------------------- running

    async def run(self) -> None:
        """Run waiting jobs until cancelled; the jobs that this process runs then are interrupted."""

        async def start_waiting() -> None:
            self._wake.clear()
            await self._start_waiting()

        try:
            await run_rounds(
                start_waiting,
                _LOOK_EVERY,
                failed="job queue failed",
                crashed="job queue crashed",
                after_error=_AFTER_ERROR,
                woken=self._wake,
            )
        finally:
            await cancel_and_wait(*self._running.values())

    async def _start_waiting(self) -> None:
        """Start waiting jobs, the oldest first, while there are free slots. Raises `StoreError`."""
        waiting = await asyncio.to_thread(lambda: sorted(self._queue.all(), key=_created))
        for entry in waiting:
            slot = await self._free_slot()
            if slot is None:
                return
            number, lock = slot
            job = None
            try:
                # with the lock: what its last owner has recorded, it has recorded by now
                if await asyncio.to_thread(self._is_resting):
                    return
                async with self._locks.hold("jobs"):
                    job = await asyncio.to_thread(self._claim, entry["key"], number)
            finally:
                if job is None:
                    lock.release()
            if job is not None:
                task = asyncio.create_task(self._run_job(job))
                self._running[job.id] = task
                # a callback, not the task itself: a task that is cancelled before it begins runs no `finally`
                task.add_done_callback(partial(self._ended, job.id, lock))

    def _ended(self, name: str, lock: Lease, _task: asyncio.Task[None]) -> None:
        lock.release()
        del self._running[name]
        self._wake.set()

    async def _free_slot(self) -> tuple[int, Lease] | None:
        """The number of a free slot, and its lock; None if all slots are taken."""
        for number in self._slots:
            lock = await self._locks.try_hold(_lock(number))
            if lock is not None:
                return number, lock
        return None

    def _is_resting(self) -> bool:
        """True if a process has stopped a moment ago, since this one began."""
        return any(
            job.state is JobState.INTERRUPTED
            and job.slot is not None
            and job.ended is not None
            and self._began < job.ended
            and 0 <= self.now() - job.ended < _REST
            for job in self._all()
        )

    def _claim(self, name: str, slot: int) -> Job | None:
        """Take a job out of the queue; None if another process did. This process has the slot's lock, so a job whose
        record says that it runs in this slot was interrupted.
        """
        for other in self._all():
            if other.state is JobState.RUNNING and other.slot == slot:
                self._died(other)
        waits = self._queue.get(name) is not None
        job = Job.from_record(self._jobs.get(name))
        if not waits or job is None or job.state is not JobState.QUEUED:
            self._queue.drop(name)
            return None
        # in this order: a crash in between leaves an interrupted job, never one that waits for ever
        job = replace(job, state=JobState.RUNNING, started=self.now(), slot=slot, worker=os.getpid())
        self._write(job)
        self._queue.drop(name)
        return job

    async def _run_job(self, job: Job) -> None:
        """Run one job to its end, and keep its record up to date."""
        telemetry.log.info("job started", job=job.id, kind=job.kind)
        meter = ProgressMeter()
        task = asyncio.ensure_future(self._begin(job, meter))
        is_interrupted = False
        try:
            await self._await_end(job, meter, task)
        except BaseException:
            # work that has ended already is not interrupted by what comes afterwards
            is_interrupted = not task.done()
            raise
        finally:
            try:
                await cancel_and_wait(task)
            finally:
                # also if this was cancelled again while the work took long to end
                await self._record_end(replace(job, progress=meter.to_json()), task, is_interrupted=is_interrupted)

    async def _await_end(self, job: Job, meter: ProgressMeter, task: asyncio.Task[Ended]) -> None:
        """Returns once the work has ended. Until then, records its progress, and cancels it if an operator wants it."""
        while not task.done():
            await asyncio.wait({task}, timeout=self._record_every)
            if not task.done() and await uninterrupted(asyncio.to_thread(self._record_progress, job, meter)):
                meter.cancelled = True
                await cancel_and_wait(task)

    async def _record_end(self, job: Job, task: asyncio.Future[Ended], *, is_interrupted: bool) -> None:
        record = self._interrupted if is_interrupted else partial(self._finish, task=task)
        try:
            # a thread that went on after this could write over what another process records then
            await uninterrupted(asyncio.to_thread(record, job))
        except StoreError as error:
            # the record cannot be updated; other processes see by the free slot that the job is over
            telemetry.log.error("job record cannot be written", job=job.id, reason=str(error))

    async def _begin(self, job: Job, meter: ProgressMeter) -> Ended:
        work = self._work.get(job.kind)
        if work is None:
            return Ended(False, {"error": f"this version knows no job of kind {job.kind!r}"})
        return await work(job.arguments, meter)

    def _record_progress(self, job: Job, meter: ProgressMeter) -> bool:
        """Blocking: write the progress; true if the job is to be cancelled. What cannot be written or read now may be
        possible the next time.
        """
        with suppress(StoreError):
            self._write(replace(job, progress=meter.to_json()))
        with suppress(StoreError):
            return self._cancels.get(job.id) is not None
        return False

    def _finish(self, job: Job, task: asyncio.Future[Ended]) -> Job:
        """Blocking: record how the job ended."""
        if task.cancelled():
            state, result = JobState.CANCELLED, {}
        elif error := task.exception():
            state, result = JobState.FAILED, {"error": str(error)}
            if not isinstance(error, MirrorError):
                telemetry.log.error("job crashed", job=job.id, exc_info=error)
                result = {"error": f"unexpected {type(error).__name__}; the log has more"}
        else:
            ended = task.result()
            state, result = (JobState.DONE if ended.ok else JobState.FAILED), dict(ended.result)
        job = self._end(job, state, result)
        reason = {"reason": result["error"]} if "error" in result else {}
        telemetry.log.info("job ended", job=job.id, kind=job.kind, state=state.value, **reason)
        return job


def _lock(slot: int | None) -> str:
    return f"job-{slot or 0}"


def _created(entry: Mapping[str, Any]) -> float:
    created = entry.get("created")
    return float(created) if isinstance(created, int | float) else 0.0

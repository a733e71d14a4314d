"""Jobs: work that runs in the background. Any worker process can run a job, show its state, or cancel it.

    submit() ──> queued ── a worker has a slot ──> running ──┬─> done       everything requested is here
                   │                                         ├─> failed     something is missing; `result` says what
                   └── cancel() ──> cancelled <── cancel() ──┤
                                                             └─> interrupted   its process was stopped, or died

Everything is on disk, so that any process can answer:

    jobs/        a note for each job: its request, its state, its progress (about once a second), its result
    job-queue/   a note for each waiting job; the worker that takes the job deletes the note, under a lock
    job-cancels/ a note for each job that is to be cancelled; the process that runs the job looks for it
    locks/job-<n>  the slots. A job runs in a slot whose lock its process holds. So all processes together never run
                   more jobs than there are slots, and if a running job's slot is free, its process has died
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
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
from mirror.prefetch.progress import ProgressMeter
from mirror.repository.protocol import Readable
from mirror.values.platforms import parse_platforms
from mirror.values.timestamps import moment

#: Seconds between two looks at the queue; between two looks after an error; and between two notes of progress.
_LOOK_EVERY: Final = 1.0
_AFTER_TROUBLE: Final = 30.0
_TELL_EVERY: Final = 1.0
#: How many jobs run at once, may wait, and are kept after their end; and for how many seconds they are kept then.
_AT_ONCE: Final = 2
_MOST_QUEUED: Final = 100
_MOST_KEPT: Final = 200
_KEPT_FOR: Final = 7 * 86400.0
#: How many images a job's result lists, unless more have failed; and how many images of each job a list of jobs names.
_MOST_TOLD: Final = 200
_FEW_NAMED: Final = 10


class JobState(Enum):
    """The state of a job; see the drawing at the top of this module."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


_OVER: Final = frozenset(state.value for state in JobState) - {JobState.QUEUED.value, JobState.RUNNING.value}


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
        done = await prefetch(
            source_for,
            images,
            platforms=parse_platforms(arguments["platforms"]),
            referrers=bool(arguments["referrers"]),
            report=meter.note,
        )
        first = {} if done.ok else {"first_failure": str(done.failures[0])}
        return Ended(done.ok, {**_shortened(done.to_json()), **first})

    return work


def _shortened(result: dict[str, Any]) -> dict[str, Any]:
    """The result with every failed image, but only as many of the others as a person reads; `more` counts the rest."""
    images = result["images"]
    told = [image for image in images if not image["ok"]]
    told += [image for image in images if image["ok"]][: max(0, _MOST_TOLD - len(told))]
    return {**result, "images": told, "more": len(images) - len(told)}


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
        tell_every: float = _TELL_EVERY,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`locks` are shared by all processes on one store. `work` gives the function for each kind of job."""
        self._jobs = jobs
        self._queue = queue
        self._cancels = cancels
        self._locks = locks
        self._work = work
        self._slots = range(at_once)
        self._tell_every = tell_every
        self.now = now
        self._poked = asyncio.Event()
        self._running: dict[str, asyncio.Task[None]] = {}

    # ----------------------------------------------------------------------------------------- submit, show, cancel

    async def submit(self, kind: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Create a job and return it. It is on disk when this returns. Raises `TooManyJobs`, `StoreError`."""
        note = await asyncio.to_thread(self._submit, kind, arguments)
        self._poked.set()
        return _told(note)

    def _submit(self, kind: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if sum(1 for _ in self._queue.all()) >= _MOST_QUEUED:
            raise TooManyJobs(f"{_MOST_QUEUED} jobs are waiting already")
        self._prune()
        name = secrets.token_hex(6)
        note = {
            "id": name,
            "kind": kind,
            "arguments": dict(arguments),
            "state": JobState.QUEUED.value,
            "created": self.now(),
        }
        self._jobs.put(name, note)
        self._queue.put(name, {"created": note["created"]})
        return note

    async def get(self, name: str) -> dict[str, Any]:
        """The job with its present state. Raises `JobUnknown`, `StoreError`."""
        return _told(await self._read(name))

    async def all(self) -> list[dict[str, Any]]:
        """All jobs on disk, the newest first, with their results and progress shortened."""
        notes = await asyncio.to_thread(lambda: [note for note in self._jobs.all() if _is_whole(note)])
        return [_brief(_told(await self._checked(note))) for note in sorted(notes, key=_created, reverse=True)]

    async def cancel(self, name: str) -> dict[str, Any]:
        """Cancel a job, whichever process runs it, and return it; a job that has ended is not changed. A running job
        ends a little later. Raises `JobUnknown`, `StoreError`.
        """
        async with self._locks.hold("jobs"):
            note = await asyncio.to_thread(self._request_cancel, await self._read(name))
        self._poked.set()
        return _told(note)

    def _request_cancel(self, note: dict[str, Any]) -> dict[str, Any]:
        if note["state"] == JobState.QUEUED.value:
            self._queue.drop(note["id"])
            return self._end(note, JobState.CANCELLED)
        if note["state"] == JobState.RUNNING.value and not note.get("cancelling"):
            self._cancels.put(note["id"], {"asked": self.now()})
            return {**note, "cancelling": True}
        return note

    async def _read(self, name: str) -> dict[str, Any]:
        note = await asyncio.to_thread(self._jobs.get, name)
        if note is None or not _is_whole(note):
            raise JobUnknown(f"no job {name[:80]!r}")
        checked = await self._checked(note)
        if checked["state"] != JobState.RUNNING.value or await asyncio.to_thread(self._cancels.get, name) is None:
            return checked
        return {**checked, "cancelling": True}

    async def _checked(self, note: dict[str, Any]) -> dict[str, Any]:
        """The note itself, or, if it says that the job runs but no process holds the job's slot, the note of the job's
        end; a job that did not end properly is marked as interrupted.
        """
        if note["state"] != JobState.RUNNING.value:
            return note
        slot = await self._locks.try_hold(_lock(note.get("slot")))
        if slot is None:
            return note
        with slot:
            return await uninterrupted(asyncio.to_thread(self._end_unless_ended, note))

    def _end_unless_ended(self, note: dict[str, Any]) -> dict[str, Any]:
        # the job may have ended properly after the note was read and before the lock was taken
        latest = self._jobs.get(note["id"]) or note
        return self._interrupted(latest) if latest["state"] == JobState.RUNNING.value else latest

    def _interrupted(self, note: dict[str, Any]) -> dict[str, Any]:
        return self._end(note, JobState.INTERRUPTED, {"error": "its process ended before it was done"})

    def _end(self, note: dict[str, Any], state: JobState, result: Mapping[str, Any] | None = None) -> dict[str, Any]:
        ended = {**note, "state": state.value, "ended": self.now(), "result": dict(result or {})}
        self._jobs.put(note["id"], ended)
        self._cancels.drop(note["id"])
        return ended

    def _prune(self) -> None:
        """Delete the notes of jobs that ended long ago, or that are too many, and cancel notes of ended jobs."""
        over = sorted((note for note in self._jobs.all() if note.get("state") in _OVER), key=_created, reverse=True)
        for number, note in enumerate(over):
            if number >= _MOST_KEPT or self.now() - _created(note) > _KEPT_FOR:
                self._jobs.drop(note["key"])
        ended = {note["key"] for note in over}
        for cancel in self._cancels.all():
            if cancel["key"] in ended:
                # the job ended while it was being cancelled
                self._cancels.drop(cancel["key"])

    # ------------------------------------------------------------------------------------------------------- running

    async def run(self) -> None:
        """Run waiting jobs until cancelled; the jobs that this process runs then are interrupted."""
        try:
            while True:
                self._poked.clear()
                pause = _LOOK_EVERY
                try:
                    await self._take_up()
                except StoreError as error:
                    telemetry.log.warning("job queue failed", reason=str(error))
                    pause = _AFTER_TROUBLE
                except Exception:
                    # any error is survived: without this task no job would ever run again
                    telemetry.log.exception("job queue crashed")
                    pause = _AFTER_TROUBLE
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._poked.wait()
        finally:
            await cancel_and_wait(*self._running.values())

    async def _take_up(self) -> None:
        waiting = await asyncio.to_thread(lambda: sorted(self._queue.all(), key=_created))
        for one in waiting:
            slot = await self._free_slot()
            if slot is None:
                return
            number, lease = slot
            note = None
            try:
                async with self._locks.hold("jobs"):
                    note = await asyncio.to_thread(self._claim, one["key"], number)
            finally:
                if note is None:
                    lease.release()
            if note is not None:
                task = asyncio.create_task(self._carry(note))
                self._running[note["id"]] = task
                # a callback, not the task itself: a task that is cancelled before it begins runs no `finally`
                task.add_done_callback(partial(self._let_go, note["id"], lease))

    def _let_go(self, name: str, lease: Lease, _task: asyncio.Task[None]) -> None:
        lease.release()
        del self._running[name]
        self._poked.set()

    async def _free_slot(self) -> tuple[int, Lease] | None:
        """The number of a free slot, and its lock; None if all slots are taken."""
        for number in self._slots:
            lease = await self._locks.try_hold(_lock(number))
            if lease is not None:
                return number, lease
        return None

    def _claim(self, name: str, slot: int) -> dict[str, Any] | None:
        """Take a job out of the queue; None if another process did. This process has the slot's lock, so a job whose
        note says that it runs in this slot was interrupted.
        """
        for note in self._jobs.all():
            if note.get("state") == JobState.RUNNING.value and note.get("slot") == slot:
                self._interrupted(note)
        waits = self._queue.get(name) is not None
        found = self._jobs.get(name)
        if not waits or found is None or found.get("state") != JobState.QUEUED.value:
            self._queue.drop(name)
            return None
        # in this order: a crash in between leaves an interrupted job, never one that waits for ever
        taken = {**found, "state": JobState.RUNNING.value, "started": self.now(), "slot": slot, "worker": os.getpid()}
        self._jobs.put(name, taken)
        self._queue.drop(name)
        return taken

    async def _carry(self, note: dict[str, Any]) -> None:
        """Run one job to its end, and keep its note up to date."""
        telemetry.log.info("job started", job=note["id"], kind=note["kind"])
        meter = ProgressMeter()
        task = asyncio.ensure_future(self._begin(note, meter))
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=self._tell_every)
                if not task.done() and await asyncio.to_thread(self._tell, note, meter):
                    meter.called_off = True
                    await cancel_and_wait(task)
            await asyncio.to_thread(self._conclude, note, meter, task)
        except asyncio.CancelledError:
            await cancel_and_wait(task)
            with suppress(StoreError):
                self._interrupted({**note, "progress": meter.to_json()})
            raise
        except StoreError as error:
            # the note cannot be updated; other processes see by the free slot that the job is over
            telemetry.log.error("job record cannot be written", job=note["id"], reason=str(error))
        finally:
            await cancel_and_wait(task)

    async def _begin(self, note: dict[str, Any], meter: ProgressMeter) -> Ended:
        work = self._work.get(note["kind"])
        if work is None:
            return Ended(False, {"error": f"this version knows no job of kind {note['kind']!r}"})
        return await work(note.get("arguments") or {}, meter)

    def _tell(self, note: dict[str, Any], meter: ProgressMeter) -> bool:
        """Blocking: write the progress; true if the job is to be cancelled."""
        with suppress(StoreError):
            self._jobs.put(note["id"], {**note, "progress": meter.to_json()})
        return self._cancels.get(note["id"]) is not None

    def _conclude(self, note: dict[str, Any], meter: ProgressMeter, task: asyncio.Future[Ended]) -> None:
        """Blocking: write down how the job ended."""
        told = {**note, "progress": meter.to_json()}
        if task.cancelled():
            state, result = JobState.CANCELLED, {}
        elif error := task.exception():
            state, result = JobState.FAILED, {"error": str(error)}
            if not isinstance(error, MirrorError):
                telemetry.log.error("job crashed", job=note["id"], exc_info=error)
                result = {"error": f"unexpected {type(error).__name__}; the log has more"}
        else:
            ended = task.result()
            state, result = (JobState.DONE if ended.ok else JobState.FAILED), dict(ended.result)
        self._end(told, state, result)
        why = {"error": result["error"]} if "error" in result else {}
        telemetry.log.info("job ended", job=note["id"], kind=note["kind"], state=state.value, **why)


def _lock(slot: object) -> str:
    return f"job-{slot if isinstance(slot, int) else 0}"


def _created(note: Mapping[str, Any]) -> float:
    found = note.get("created")
    return float(found) if isinstance(found, int | float) else 0.0


def _is_whole(note: Mapping[str, Any]) -> bool:
    """True if the note is a job's: notes are files, and people may edit files."""
    return isinstance(note.get("id"), str) and note.get("state") in {state.value for state in JobState}


def _told(note: Mapping[str, Any]) -> dict[str, Any]:
    """The job as clients see it: times as text, without internal fields."""
    told = {name: value for name, value in note.items() if name not in ("key", "slot")}
    for name in ("created", "started", "ended"):
        told[name] = moment(told.get(name))
    return told


def _brief(job: dict[str, Any]) -> dict[str, Any]:
    """The job without long lists, to be shown in a list of jobs."""
    brief = {name: value for name, value in job.items() if name not in ("result", "progress")}
    arguments = dict(job.get("arguments") or {})
    if isinstance(images := arguments.get("images"), list):
        brief["arguments"] = {**arguments, "images": images[:_FEW_NAMED], "more": len(images[_FEW_NAMED:])}
    for part in ("result", "progress"):
        if isinstance(job.get(part), dict):
            brief[part] = {name: value for name, value in job[part].items() if not isinstance(value, list)}
    return brief

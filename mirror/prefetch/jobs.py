"""Work that somebody asked for and does not wait for. Any worker process takes it, runs it, tells of it, ends it.

    submit() ──> queued ── a worker has a slot ──> running ──┬─> done       all that was asked for is here
                   │                                         ├─> failed     something is not; `result` says what
                   └── cancel() ──> cancelled <── cancel() ──┤
                                                             └─> interrupted   its process was stopped, or died

Everything is on disk, so that any process can answer:

    jobs/        a note for each job: what was asked for, its state, its progress (about once a second), its result
    job-queue/   a note for each job that waits; whoever takes it drops it, under a lock
    job-cancels/ a note for each job that is to be ended; its runner looks for it
    locks/job-<n>  the slots. A job runs in a slot whose lock its process holds, so there are never more jobs than slots
                   over all processes, and a running job whose slot is free has lost its process
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

from mirror import telemetry
from mirror.aio.singleflight import end
from mirror.errors import JobUnknown, MirrorError, StoreError, TooManyJobs
from mirror.oci.reference import Repo
from mirror.policy.image_names import Image
from mirror.prefetch.prefetch import prefetch
from mirror.prefetch.progress import ProgressMeter
from mirror.prefetch.pulling import PullSource
from mirror.values.platforms import parse_platforms
from mirror.values.timestamps import moment

__all__ = ["Ended", "JobRecords", "JobState", "Jobs", "Work", "prefetching"]

#: Seconds between two looks at the queue; the same after the disk failed us; and between two notes of progress.
_LOOK_EVERY: Final = 1.0
_AFTER_TROUBLE: Final = 30.0
_TELL_EVERY: Final = 1.0
#: Jobs at once, waiting, and kept when ended; and for how many seconds those are kept.
_AT_ONCE: Final = 2
_MOST_QUEUED: Final = 100
_MOST_KEPT: Final = 200
_KEPT_FOR: Final = 7 * 86400.0
#: Images that a result tells one by one, unless more have failed; and that a list of jobs names of each.
_MOST_TOLD: Final = 200
_FEW_NAMED: Final = 10


class JobRecords(Protocol):
    """Small notes by key, on disk (`store/local/records.py`). All calls block shortly and may raise `StoreError`."""

    def read(self, key: str) -> dict[str, Any] | None:
        """None where there is none."""

    def write(self, key: str, note: Mapping[str, Any]) -> None:
        """Replaces it."""

    def drop(self, key: str) -> bool:
        """Whether there was one."""

    def all(self) -> Iterator[dict[str, Any]]:
        """In no order; each with its `key`."""


class JobState(Enum):
    """See the drawing above."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


_OVER: Final = frozenset(state.value for state in JobState) - {JobState.QUEUED.value, JobState.RUNNING.value}


@dataclass(frozen=True, slots=True)
class Ended:
    """How some work ended: whether all of it succeeded, and what it has to tell, as JSON."""

    ok: bool
    result: Mapping[str, Any]


#: What a job does: gets the arguments that it was submitted with, and a meter to fill.
Work: TypeAlias = Callable[[Mapping[str, Any], ProgressMeter], Awaitable[Ended]]


def prefetching(source_for: Callable[[Repo], PullSource], parse_image: Callable[[str], Image]) -> Work:
    """Work of the kind `prefetch`: `images`, `platforms` and `referrers`, checked already."""

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
    """What failed is told whole; of what is here, as much as people read."""
    images = result["images"]
    told = [image for image in images if not image["ok"]]
    told += [image for image in images if image["ok"]][: max(0, _MOST_TOLD - len(told))]
    return {**result, "images": told, "more": len(images) - len(told)}


class Jobs:
    """One for each process. Without `run` it can submit, tell and cancel, and others do the work."""

    def __init__(
        self,
        jobs: JobRecords,
        queue: JobRecords,
        cancels: JobRecords,
        *,
        hold: Callable[[str], int | None],
        alone: Callable[[str], AbstractAsyncContextManager[None]],
        work: Mapping[str, Work],
        at_once: int = _AT_ONCE,
        tell_every: float = _TELL_EVERY,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`hold` takes a lock until its descriptor is closed or the process ends, and `alone` waits for one; both over
        all processes on one store. `work` is what can be asked for, by kind.
        """
        self._jobs = jobs
        self._queue = queue
        self._cancels = cancels
        self._hold = hold
        self._alone = alone
        self._work = work
        self._slots = range(at_once)
        self._tell_every = tell_every
        self.now = now
        self._poked = asyncio.Event()
        self._running: dict[str, asyncio.Task[None]] = {}

    # ------------------------------------------------------------------------------------------- asked from outside

    async def submit(self, kind: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """A new job, on disk when this returns. Raises `TooManyJobs`, `StoreError`."""
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
        self._jobs.write(name, note)
        self._queue.write(name, {"created": note["created"]})
        return note

    async def get(self, name: str) -> dict[str, Any]:
        """How it stands. Raises `JobUnknown`."""
        return _told(await asyncio.to_thread(self._read, name))

    async def all(self) -> list[dict[str, Any]]:
        """All that are kept, the newest first, without what is told of each blob."""
        notes = await asyncio.to_thread(lambda: [self._checked(note) for note in self._jobs.all() if _is_whole(note)])
        return [_brief(_told(note)) for note in sorted(notes, key=_created, reverse=True)]

    async def cancel(self, name: str) -> dict[str, Any]:
        """Have it ended, whichever process runs it; one that is over stays as it is. Raises `JobUnknown`."""
        async with self._alone("jobs"):
            note = await asyncio.to_thread(self._cancel, name)
        self._poked.set()
        return _told(note)

    def _cancel(self, name: str) -> dict[str, Any]:
        note = self._read(name)
        if note["state"] == JobState.QUEUED.value:
            self._queue.drop(name)
            return self._end(note, JobState.CANCELLED)
        if note["state"] == JobState.RUNNING.value and not note.get("cancelling"):
            self._cancels.write(name, {"asked": self.now()})
            return {**note, "cancelling": True}
        return note

    def _read(self, name: str) -> dict[str, Any]:
        note = self._jobs.read(name)
        if note is None or not _is_whole(note):
            raise JobUnknown(f"no job {name[:80]!r}")
        checked = self._checked(note)
        if checked["state"] == JobState.RUNNING.value and self._cancels.read(name) is not None:
            return {**checked, "cancelling": True}
        return checked

    def _checked(self, note: dict[str, Any]) -> dict[str, Any]:
        """The same, or that it was interrupted: it says that it runs, but nobody holds its slot."""
        if note["state"] != JobState.RUNNING.value:
            return note
        held = self._hold(_lock(note.get("slot")))
        if held is None:
            return note
        try:
            # it may have ended properly between our look and our having the lock
            latest = self._jobs.read(note["id"]) or note
            return self._interrupted(latest) if latest["state"] == JobState.RUNNING.value else latest
        finally:
            os.close(held)

    def _interrupted(self, note: dict[str, Any]) -> dict[str, Any]:
        return self._end(note, JobState.INTERRUPTED, {"error": "its process ended before it was done"})

    def _end(self, note: dict[str, Any], state: JobState, result: Mapping[str, Any] | None = None) -> dict[str, Any]:
        ended = {**note, "state": state.value, "ended": self.now(), "result": dict(result or {})}
        self._jobs.write(note["id"], ended)
        self._cancels.drop(note["id"])
        return ended

    def _prune(self) -> None:
        """What has ended is kept for a while, and not without bound."""
        over = sorted((note for note in self._jobs.all() if note.get("state") in _OVER), key=_created, reverse=True)
        for number, note in enumerate(over):
            if number >= _MOST_KEPT or self.now() - _created(note) > _KEPT_FOR:
                self._jobs.drop(note["key"])
        ended = {note["key"] for note in over}
        for cancel in self._cancels.all():
            if cancel["key"] in ended:
                # it ended while it was being called off
                self._cancels.drop(cancel["key"])

    # ------------------------------------------------------------------------------------------------------- running

    async def run(self) -> None:
        """Take up jobs until cancelled; then those that run here are interrupted."""
        try:
            while True:
                self._poked.clear()
                pause = _LOOK_EVERY
                try:
                    await self._take_up()
                except StoreError as error:
                    telemetry.log.warning("taking up jobs failed", reason=str(error))
                    pause = _AFTER_TROUBLE
                except Exception:
                    # whatever it was: without this task no job is ever run again
                    telemetry.log.exception("taking up jobs crashed")
                    pause = _AFTER_TROUBLE
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._poked.wait()
        finally:
            await end(*self._running.values())

    async def _take_up(self) -> None:
        waiting = await asyncio.to_thread(lambda: sorted(self._queue.all(), key=_created))
        for one in waiting:
            slot = self._free_slot()
            if slot is None:
                return
            number, held = slot
            note = None
            try:
                async with self._alone("jobs"):
                    note = await asyncio.to_thread(self._claim, one["key"], number)
            finally:
                if note is None:
                    os.close(held)
            if note is not None:
                task = asyncio.create_task(self._carry(note))
                self._running[note["id"]] = task
                # not by the task itself: one that is cancelled before it begins ends nothing
                task.add_done_callback(partial(self._let_go, note["id"], held))

    def _let_go(self, name: str, held: int, _task: asyncio.Task[None]) -> None:
        os.close(held)
        del self._running[name]
        self._poked.set()

    def _free_slot(self) -> tuple[int, int] | None:
        """A slot with the descriptor that holds it."""
        for number in self._slots:
            held = self._hold(_lock(number))
            if held is not None:
                return number, held
        return None

    def _claim(self, name: str, slot: int) -> dict[str, Any] | None:
        """Take a job out of the queue; None: somebody else did. The slot is ours: what says it runs in it does not."""
        for note in self._jobs.all():
            if note.get("state") == JobState.RUNNING.value and note.get("slot") == slot:
                self._interrupted(note)
        waits = self._queue.read(name) is not None
        found = self._jobs.read(name)
        if not waits or found is None or found.get("state") != JobState.QUEUED.value:
            self._queue.drop(name)
            return None
        # in this order: a crash in between leaves a job that is interrupted, never one that waits for ever
        taken = {**found, "state": JobState.RUNNING.value, "started": self.now(), "slot": slot, "worker": os.getpid()}
        self._jobs.write(name, taken)
        self._queue.drop(name)
        return taken

    async def _carry(self, note: dict[str, Any]) -> None:
        """One job, from here to its end."""
        telemetry.log.info("job started", job=note["id"], kind=note["kind"])
        meter = ProgressMeter()
        task = asyncio.ensure_future(self._begin(note, meter))
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=self._tell_every)
                if not task.done() and await asyncio.to_thread(self._tell, note, meter):
                    meter.called_off = True
                    await end(task)
            await asyncio.to_thread(self._conclude, note, meter, task)
        except asyncio.CancelledError:
            await end(task)
            with suppress(StoreError):
                self._interrupted({**note, "progress": meter.to_json()})
            raise
        except StoreError as error:
            # nobody can be told; that it is over shows by its slot
            telemetry.log.error("a job's note cannot be written", job=note["id"], reason=str(error))
        finally:
            await end(task)

    async def _begin(self, note: dict[str, Any], meter: ProgressMeter) -> Ended:
        work = self._work.get(note["kind"])
        if work is None:
            return Ended(False, {"error": f"this version knows no job of kind {note['kind']!r}"})
        return await work(note.get("arguments") or {}, meter)

    def _tell(self, note: dict[str, Any], meter: ProgressMeter) -> bool:
        """Blocking: note how far it is; whether somebody wants it ended."""
        with suppress(StoreError):
            self._jobs.write(note["id"], {**note, "progress": meter.to_json()})
        return self._cancels.read(note["id"]) is not None

    def _conclude(self, note: dict[str, Any], meter: ProgressMeter, task: asyncio.Future[Ended]) -> None:
        """Blocking: write down how it ended."""
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
    """Whether it is one of ours: notes are files, and files may be edited."""
    return isinstance(note.get("id"), str) and note.get("state") in {state.value for state in JobState}


def _told(note: Mapping[str, Any]) -> dict[str, Any]:
    """As others see it: times as text, without what is only ours."""
    told = {name: value for name, value in note.items() if name not in ("key", "slot")}
    for name in ("created", "started", "ended"):
        told[name] = moment(told.get(name))
    return told


def _brief(job: dict[str, Any]) -> dict[str, Any]:
    """For lists: a result can be as long as its list of images, and that can be long."""
    brief = {name: value for name, value in job.items() if name not in ("result", "progress")}
    arguments = dict(job.get("arguments") or {})
    if isinstance(images := arguments.get("images"), list):
        brief["arguments"] = {**arguments, "images": images[:_FEW_NAMED], "more": len(images[_FEW_NAMED:])}
    for part in ("result", "progress"):
        if isinstance(job.get(part), dict):
            brief[part] = {name: value for name, value in job[part].items() if not isinstance(value, list)}
    return brief

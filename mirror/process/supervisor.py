"""The parent of the workers: starts them, replaces those that die, exchanges them for a new configuration, ends them.

    slot: starting ──> ready ──> ended ──(pause, doubled each time it died young)──> starting
                          ├──(its event loop stands still for too long)──> stacks written, killed ──> ended
                          ├──(SIGHUP: its successor is ready)──> draining ──> ended
                          └──(SIGTERM to the parent)──────────> draining ──> ended; killed if it takes too long

    SIGHUP ──> read the configuration ──┬─ bad ──────────────────────────────> every mistake is logged, nothing changes
                                        └─ good ──> start one worker with it ──┬─ it ends ──> nothing changes either
                                                                               └─ ready ──> one slot after the other

Workers are new processes, not forks: each starts with clean threads and clean memory. They notice the parent's death by
end-of-file on a pipe, so that no worker is left behind. A worker and its successor accept from the same sockets, so no
connection is refused in between, and the old worker answers the connections that it has accepted.

Workers read a copy of the configuration file that was validated, kept by the parent: a worker that replaces a dead one
must not read a file that is being edited.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mirror import telemetry
from mirror.aio.cancellation import raise_if_cancelled
from mirror.aio.closing import close_all
from mirror.errors import ConfigError, MirrorError, reason_of
from mirror.heartbeat import Heartbeats
from mirror.process.listeners import AdminListener, InternalListener, address_of
from mirror.process.systemd import Systemd
from mirror.rounds import begin, run_rounds
from mirror.telemetry.worker_files import add_ended

#: Seconds: a worker that dies sooner than this after its start is replaced only after a pause.
_YOUNG = 10.0
_LONGEST_PAUSE = 30.0
#: Seconds beyond the drain before a worker is killed.
_GRACE = 10.0
#: Seconds within which a worker with a new configuration must answer.
_START = 60.0
#: Seconds between two checks that the workers' event loops turn.
_LOOK = 0.5
#: Seconds that a blocked worker has to write the stacks of its threads.
_STACKS_TIME = 1.0
#: Exit status of a command whose configuration cannot be used.
_UNUSABLE = 2
_MEMORY = "/dev/shm"  # noqa: S108 - the folder's name cannot be guessed, and it is ours alone
_METRICS = "mirror-metrics-"


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """How workers are started: the `arguments` of their command, the `descriptors` that they inherit, their `drain`
    time in seconds, and for how many seconds their event loop may stand still (`blocked`; 0: no limit).

    The plan owns the descriptors.
    """

    arguments: Sequence[str]
    drain: float
    tls: bool = False
    descriptors: Sequence[int] = ()
    blocked: float = 0.0

    def close(self) -> None:
        """Close the descriptors. To be called when no more workers will be started with this plan."""
        for descriptor in self.descriptors:
            os.close(descriptor)


async def supervise(
    plan: WorkerPlan,
    listeners: Sequence[Sequence[socket.socket]],
    *,
    reread: Callable[[], WorkerPlan],
    admin: Sequence[AdminListener] = (),
    internal: InternalListener | None = None,
) -> None:
    """Run one worker for each element of `listeners`, which holds the sockets of that worker, until SIGTERM or SIGINT.

    `admin` are the listeners of the admin API, each with a socket for each worker; `internal` is the listener for other
    replicas. `reread` makes a new plan at SIGHUP
    and raises `ConfigError` with every mistake. Raises `ConfigError`, or `MirrorError` if a worker cannot start.
    """
    with _metrics_folder() as metrics:
        await _Supervisor(plan, listeners, reread, metrics, admin, internal).run()


@contextmanager
def _metrics_folder() -> Iterator[str]:
    """A folder for the workers' counters, in memory if possible: workers map the files in it, and the kernel kills a
    process that writes to a mapped file on a full disk. Folders left by mirrors that were killed are removed.
    """
    memory = None if "TMPDIR" in os.environ or not os.access(_MEMORY, os.W_OK) else _MEMORY
    for leftover in Path(memory or tempfile.gettempdir()).glob(f"{_METRICS}*"):
        with suppress(OSError):
            if (lock := _try_lock(leftover)) is not None:
                shutil.rmtree(leftover, ignore_errors=True)
                os.close(lock)
    lock = None
    while lock is None:
        folder = tempfile.mkdtemp(prefix=_METRICS, dir=memory)
        # another mirror that starts now may have removed the folder as a leftover
        with suppress(FileNotFoundError):
            lock = _try_lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _try_lock(folder: str | Path) -> int | None:
    """Lock a folder for as long as this process lives, and return its descriptor; None if another process has the lock.
    Raises `OSError`.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@dataclass(eq=False, slots=True)
class _Worker:
    """One worker process. `ready` is true once it answers, false if it ended before; `ended` gives its exit code.
    `blocked` is true if it was killed because its event loop stood still.
    """

    slot: int
    process: asyncio.subprocess.Process
    drain: float
    ready: asyncio.Future[bool]
    ended: asyncio.Task[int]
    blocked: bool = False


class _Supervisor:
    def __init__(
        self,
        plan: WorkerPlan,
        listeners: Sequence[Sequence[socket.socket]],
        reread: Callable[[], WorkerPlan],
        metrics: str,
        admin: Sequence[AdminListener],
        internal: InternalListener | None,
    ) -> None:
        self._admin = admin
        self._internal = internal
        self._plan = plan
        self._listeners = listeners
        self._reread = reread
        self._stop = asyncio.Event()
        self._hung_up = asyncio.Event()
        #: Every process that has not ended, including those that drain.
        self._workers: set[_Worker] = set()
        #: The current worker of each slot.
        self._current: dict[int, _Worker] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._parent_read, self._parent_write = os.pipe()
        self._beats = Heartbeats.of(len(listeners))
        self._systemd = Systemd.of(os.environ)
        #: Process ids of ended workers whose counters have not been added up yet.
        self._gone: set[int] = set()
        self._environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": metrics}
        # only this process notifies systemd
        self._environment.pop("NOTIFY_SOCKET", None)

    def __repr__(self) -> str:
        current = ", ".join(f"{slot}: {worker.process.pid}" for slot, worker in sorted(self._current.items()))
        return f"<Supervisor of {len(self._workers)} workers, by slot {{{current}}}>"

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._hung_up.set)
        stopping = asyncio.create_task(self._stop.wait())
        working: list[asyncio.Task[None]] = []
        try:
            starting = asyncio.create_task(self._begin())
            working.append(starting)
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                self._log_listeners()
                self._systemd.ready()
                working += [begin(self._keep_running(slot)) for slot in range(len(self._listeners))]
                working.append(begin(self._reload_on_hang_ups()))
                working.append(begin(self._watch()))
                await stopping
        finally:
            self._systemd.stopping()
            self._stop.set()
            stopping.cancel()
            for task in working:
                task.cancel()
            await close_all(
                lambda: asyncio.gather(*working, return_exceptions=True),
                self._end,
                self._plan.close,
                self._beats.close,
                lambda: os.close(self._parent_write),
                lambda: os.close(self._parent_read),
            )

    def _log_listeners(self) -> None:
        for listener in self._listeners[0]:
            telemetry.log.info(
                "listening", address=address_of(listener), tls=self._plan.tls, workers=len(self._listeners)
            )
        for admin in self._admin:
            telemetry.log.info("admin listening", address=admin.address)
        if self._internal is not None:
            telemetry.log.info("internal listening", address=address_of(self._internal.sockets[0]))

    # ------------------------------------------------------------------------------------------- one slot

    async def _begin(self) -> None:
        """Start the first worker of every slot; return once all answer. Raises `ConfigError`, `MirrorError`."""
        for slot in range(len(self._listeners)):
            self._current[slot] = await self._start(slot, self._plan)
        for worker in self._current.values():
            if not await worker.ready:
                code = await worker.ended
                message = f"a worker ended with exit code {code} while it was starting"
                raise ConfigError([message]) if code == _UNUSABLE else MirrorError(message)

    async def _keep_running(self, slot: int) -> None:
        """Keep one worker running in this slot."""
        pause = 0.0
        while True:
            worker, began = self._current[slot], time.monotonic()
            code = await asyncio.shield(worker.ended)
            if self._current[slot] is not worker:
                continue
            pause = _longer(pause) if time.monotonic() - began < _YOUNG else 0.0
            telemetry.log.error("worker died", slot=slot, code=code, restart_in=pause)
            await asyncio.sleep(pause)
            # a new configuration may have filled the slot meanwhile
            while self._current[slot] is worker:
                try:
                    self._current[slot] = await self._start(slot, self._plan, after_blocked=worker.blocked)
                except (Exception, asyncio.CancelledError) as error:
                    raise_if_cancelled(error)
                    # as while the machine has no memory for another process: without a new one nobody fills the slot
                    pause = _longer(pause)
                    telemetry.log.exception("start of a worker crashed", slot=slot, retry_in=pause)
                    await asyncio.sleep(pause)

    async def _start(self, slot: int, plan: WorkerPlan, *, after_blocked: bool = False) -> _Worker:
        ready_read, ready_write = os.pipe()
        descriptors = [listener.fileno() for listener in self._listeners[slot]]
        command = [sys.executable, "-m", "mirror", "worker", *plan.arguments]
        command += [
            "--sockets",
            ",".join(map(str, descriptors)),
            "--ready",
            str(ready_write),
            "--parent",
            str(self._parent_read),
        ]
        if self._admin:
            admin = [listener.sockets[slot].fileno() for listener in self._admin]
            descriptors += admin
            command += ["--admin", ",".join(map(str, admin))]
        if self._internal is not None:
            internal = self._internal.sockets[slot].fileno()
            descriptors += [internal, self._internal.nonces]
            command += ["--internal", str(internal), "--nonces", str(self._internal.nonces)]
        command += ["--beats", str(self._beats.descriptor), "--slot", str(slot)]
        if after_blocked:
            # the new worker counts the killed one, because this process has no metrics
            command += ["--after-blocked"]
        descriptors += [*plan.descriptors, ready_write, self._parent_read, self._beats.descriptor]
        try:
            process = await asyncio.create_subprocess_exec(
                *command, pass_fds=descriptors, env=self._environment, start_new_session=True
            )
        except BaseException:
            os.close(ready_read)
            raise
        finally:
            os.close(ready_write)
        ready = answer_of(ready_read)
        # process ids are reused: the files of this id now belong to a live worker
        self._gone.discard(process.pid)
        worker = _Worker(slot, process, plan.drain, ready, asyncio.create_task(self._wait_for_end(process)))
        self._workers.add(worker)
        worker.ended.add_done_callback(lambda _: self._ended(worker))
        telemetry.log.info("worker started", slot=slot, worker=process.pid)
        return worker

    def _ended(self, worker: _Worker) -> None:
        self._workers.discard(worker)
        if self._current.get(worker.slot) is worker:
            self._beats.put(worker.slot, 0)

    async def _wait_for_end(self, process: asyncio.subprocess.Process) -> int:
        code = await process.wait()
        self._gone.add(process.pid)
        self._add_up()
        return code

    def _add_up(self) -> None:
        """Add up the counters of ended workers; while a scrape sums them, leave it to the next call."""
        for pid in list(self._gone):
            try:
                if not add_ended(self._environment["PROMETHEUS_MULTIPROC_DIR"], pid):
                    continue
            except (OSError, RuntimeError) as error:
                # scrapes still include them, in their own files
                telemetry.log.warning("worker counters cannot be added", worker=pid, reason=reason_of(error))
            self._gone.discard(pid)

    # ------------------------------------------------------------------------------------------ those that hang

    async def _watch(self) -> None:
        """Kill a worker whose event loop stands still; its slot is filled again as if it had died.

        The time is counted in our own checks, not by the clock: if the whole machine or its container stood still, the
        worker is not to blame.
        """
        looks: dict[int, tuple[_Worker, int, int]] = {}

        async def look() -> None:
            self._systemd.alive()
            self._add_up()
            for slot, worker in list(self._current.items()):
                last = self._beats.last(slot)
                watched, before, count = looks.get(slot, (worker, 0, 0))
                count = count + 1 if (watched, before) == (worker, last) and last else 0
                looks[slot] = worker, last, count
                if self._plan.blocked and count * _LOOK >= self._plan.blocked:
                    telemetry.log.error(
                        "blocked worker killed", slot=slot, worker=worker.process.pid, blocked=count * _LOOK
                    )
                    worker.blocked = True
                    self._beats.put(slot, 0)
                    # makes the worker write the stacks of its threads, if it still can
                    _signal(worker, signal.SIGUSR2)
                    await asyncio.wait([worker.ended], timeout=_STACKS_TIME)
                    _signal(worker, signal.SIGKILL)

        await run_rounds(look, _LOOK, crashed="watch over workers crashed", once=True)

    # ------------------------------------------------------------------------------- another configuration

    async def _reload_on_hang_ups(self) -> None:
        while True:
            await self._hung_up.wait()
            self._hung_up.clear()
            try:
                await self._reload()
            except (Exception, asyncio.CancelledError) as error:
                raise_if_cancelled(error)
                # the mirror keeps serving, whatever the error
                telemetry.log.exception("reload crashed")

    async def _reload(self) -> None:
        try:
            plan = await asyncio.to_thread(self._reread)
        except ConfigError as error:
            for mistake in error.mistakes:
                telemetry.log.error("configuration refused", mistake=mistake)
            telemetry.log.error("configuration not reloaded", mistakes=len(error.mistakes))
            return
        late = 0
        for slot in range(len(self._listeners)):
            if await self._replace(slot, plan):
                if self._plan is not plan:
                    self._plan.close()
                    self._plan = plan
            elif slot == 0:
                plan.close()
                telemetry.log.error("configuration not reloaded")
                return
            else:
                late += 1
        telemetry.log.info("configuration reloaded", workers=len(self._listeners) - late, left=late)

    async def _replace(self, slot: int, plan: WorkerPlan) -> bool:
        """Start a worker with this plan in a slot, and let the current one drain. False if the new one did not
        start.
        """
        try:
            fresh = await self._start(slot, plan)
        except Exception:
            telemetry.log.exception("start of a worker crashed", slot=slot)
            return False
        try:
            async with asyncio.timeout(_START):
                ready = await asyncio.shield(fresh.ready)
        except TimeoutError:
            ready = False
            _signal(fresh, signal.SIGKILL)
        if not ready:
            telemetry.log.error("worker ended while starting", slot=slot, code=await fresh.ended)
            return False
        old, self._current[slot] = self._current[slot], fresh
        task = asyncio.create_task(_drain(old))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        return True

    # ------------------------------------------------------------------------------------------- the end

    async def _end(self) -> None:
        """Stop listening, then ask every worker to drain, then kill those that do not end in time."""
        internal = [self._internal.sockets] if self._internal is not None else []
        for sockets in (*self._listeners, *(admin.sockets for admin in self._admin), *internal):
            for listener in sockets:
                listener.close()
        await asyncio.gather(*(_drain(worker) for worker in tuple(self._workers)), *self._retiring)


def _longer(pause: float) -> float:
    """The seconds to wait after a start that has failed, or that a worker has not outlived for long."""
    return min(max(1.0, pause * 2), _LONGEST_PAUSE)


def answer_of(descriptor: int) -> asyncio.Future[bool]:
    """Whether a byte comes out of a pipe before its end; it is closed then. Whoever waits may give up."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bool] = loop.create_future()

    def answered() -> None:
        loop.remove_reader(descriptor)
        came = bool(os.read(descriptor, 1))
        os.close(descriptor)
        # a mirror that is stopped while it starts has cancelled the wait
        if not answer.done():
            answer.set_result(came)

    loop.add_reader(descriptor, answered)
    return answer


async def _drain(worker: _Worker) -> None:
    """Ask a worker to drain, and kill it if it takes too long. Returns when it has ended."""
    _signal(worker, signal.SIGTERM)
    _, late = await asyncio.wait([worker.ended], timeout=worker.drain + _GRACE)
    if late:
        telemetry.log.error("worker killed after drain timeout", worker=worker.process.pid)
        _signal(worker, signal.SIGKILL)
        await asyncio.wait(late)


def _signal(worker: _Worker, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        worker.process.send_signal(number)

"""The parent of several workers: opens the listeners, starts the workers, replaces those that die, ends them all.

    slot: starting ──> ready ──> ended ──(pause, longer each time it died young)──> starting
                          └──(SIGTERM to the parent)──> draining ──> ended; killed if it takes too long

Workers are new processes, not forks: each begins with clean threads and clean memory. They learn of the parent's death
by the end of a pipe, so that none is left behind.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mirror import telemetry
from mirror.errors import ConfigError
from mirror.listen import AdminListener, address_of

__all__ = ["supervise"]

#: Seconds: a worker that dies sooner than this after its start is not replaced at once.
_YOUNG = 10.0
_LONGEST_PAUSE = 30.0
#: Seconds beyond the drain before a worker is killed.
_GRACE = 10.0
_MEMORY = "/dev/shm"  # noqa: S108 - the folder's name cannot be guessed, and it is ours alone
_METRICS = "mirror-metrics-"


async def supervise(
    arguments: Sequence[str],
    listeners: Sequence[Sequence[socket.socket]],
    *,
    drain: float,
    tls: bool,
    admin: Sequence[AdminListener] = (),
) -> None:
    """Run one worker for each element of `listeners`, which are its sockets, until SIGTERM or SIGINT.

    `admin` are more, each with a socket for each worker. `arguments` are those of the worker's command. Raises
    `ConfigError` where a worker cannot even start.
    """
    with _metrics_folder() as metrics:
        await _Supervisor(arguments, listeners, drain, metrics, tls, admin).run()


@contextmanager
def _metrics_folder() -> Iterator[str]:
    """A folder for what the workers count, in memory where that is possible: they map its files, and a process that
    writes to a mapped file on a full disk is killed by the kernel. What killed mirrors have left there is removed.
    """
    memory = None if "TMPDIR" in os.environ or not os.access(_MEMORY, os.W_OK) else _MEMORY
    for leftover in Path(memory or tempfile.gettempdir()).glob(f"{_METRICS}*"):
        with suppress(OSError):
            if (held := _try_hold(leftover)) is not None:
                shutil.rmtree(leftover, ignore_errors=True)
                os.close(held)
    held = None
    while held is None:
        folder = tempfile.mkdtemp(prefix=_METRICS, dir=memory)
        # another mirror that starts now may have taken it for a leftover
        with suppress(FileNotFoundError):
            held = _try_hold(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _try_hold(folder: str | Path) -> int | None:
    """Lock a folder for as long as this process lives; None: another one has it. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


class _Supervisor:
    def __init__(
        self,
        arguments: Sequence[str],
        listeners: Sequence[Sequence[socket.socket]],
        drain: float,
        metrics: str,
        tls: bool,
        admin: Sequence[AdminListener],
    ) -> None:
        self._admin = admin
        self._arguments = list(arguments)
        self._listeners = listeners
        self._drain = drain
        self._tls = tls
        self._stop = asyncio.Event()
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._alive, self._life = os.pipe()
        self._environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": metrics}

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        # a terminal that closes must not cut off every pull
        loop.add_signal_handler(signal.SIGHUP, telemetry.log.info, "SIGHUP ignored")
        first: list[asyncio.Future[None]] = [loop.create_future() for _ in self._listeners]
        slots = [asyncio.create_task(self._keep(slot, first[slot])) for slot in range(len(first))]
        try:
            starting = asyncio.ensure_future(asyncio.gather(*first))
            stopping = asyncio.create_task(self._stop.wait())
            waiting: list[asyncio.Future[Any]] = [starting, stopping]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                for listener in self._listeners[0]:
                    telemetry.log.info(
                        "listening", address=address_of(listener), tls=self._tls, workers=len(self._listeners)
                    )
                for admin in self._admin:
                    telemetry.log.info("admin listening", address=admin.address)
                await stopping
            else:
                starting.cancel()
            stopping.cancel()
        finally:
            self._stop.set()
            await self._end()
            for one in slots:
                one.cancel()
            await asyncio.gather(*slots, return_exceptions=True)
            os.close(self._life)
            os.close(self._alive)

    async def _keep(self, slot: int, first: asyncio.Future[None]) -> None:
        """Keep one worker running in this slot."""
        pause = 0.0
        while not self._stop.is_set():
            began = time.monotonic()
            code = await self._run_worker(slot, first)
            if self._stop.is_set():
                return
            if not first.done():
                first.set_exception(ConfigError([f"a worker ended with code {code} while it was starting"]))
                return
            pause = min(max(1.0, pause * 2), _LONGEST_PAUSE) if time.monotonic() - began < _YOUNG else 0.0
            telemetry.log.error("worker died", slot=slot, code=code, restart_in=pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause)

    async def _run_worker(self, slot: int, first: asyncio.Future[None]) -> int:
        sockets = self._listeners[slot]
        told, tell = os.pipe()
        descriptors = [one.fileno() for one in sockets]
        command = [sys.executable, "-m", "mirror", "worker", *self._arguments]
        command += ["--sockets", ",".join(map(str, descriptors)), "--ready", str(tell), "--parent", str(self._alive)]
        if self._admin:
            asked = [admin.sockets[slot].fileno() for admin in self._admin]
            descriptors += asked
            command += ["--admin", ",".join(map(str, asked))]
        try:
            process = await asyncio.create_subprocess_exec(
                *command, pass_fds=[*descriptors, tell, self._alive], env=self._environment, start_new_session=True
            )
        finally:
            os.close(tell)
        self._processes[slot] = process
        telemetry.log.info("worker started", slot=slot, worker=process.pid)
        waiting = asyncio.create_task(asyncio.to_thread(os.read, told, 1))
        try:
            if await waiting and not first.done():
                first.set_result(None)
            return await process.wait()
        finally:
            os.close(told)
            telemetry.worker_ended(process.pid)
            self._forget(process.pid)
            self._processes.pop(slot, None)

    def _forget(self, pid: int) -> None:
        """Live gauges of a dead worker must not be summed; counters stay."""
        for leftover in Path(self._environment["PROMETHEUS_MULTIPROC_DIR"]).glob(f"gauge_live*_{pid}.db"):
            with suppress(OSError):
                leftover.unlink()

    async def _end(self) -> None:
        """Stop listening, then ask every worker to drain, then insist."""
        for sockets in (*self._listeners, *(admin.sockets for admin in self._admin)):
            for one in sockets:
                one.close()
        running = list(self._processes.values())
        for process in running:
            with suppress(ProcessLookupError):
                process.terminate()
        if running:
            ended = [asyncio.create_task(process.wait()) for process in running]
            _, late = await asyncio.wait(ended, timeout=self._drain + _GRACE)
            if late:
                for process in running:
                    if process.returncode is None:
                        telemetry.log.error("worker killed, it did not drain in time", worker=process.pid)
                        with suppress(ProcessLookupError):
                            process.kill()
                await asyncio.wait(late)

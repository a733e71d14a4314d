"""Ends a worker, or the power, right before one of the steps by which it changes the disk.

    steps = Steps(tmp_path / "steps")                     # in the test
    with ForkedWorkers(config, steps=steps) as workers:
        workers.start()
        steps.kill_before(3)                              # the third step from now on
        ... a request ...
        steps.hit                                         # False: the request took fewer steps

A step is a call that creates, writes, syncs, renames, links or deletes a file below one of the folders of hosted
content, or the beginning or end of a transaction of the outbox of events. The number is shared with the worker through
a mapped file, so that it counts from one request on.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from mirror.errors import MirrorError
from mirror.index.outbox import SqliteOutbox
from tests.support.ext4 import FS_IOC_SHUTDOWN, NO_LOG_FLUSH

_FORM: Final = struct.Struct("=qq")
_KILL: Final = 1
_CUT: Final = 2
_CALLS: Final = (
    "open",
    "write",
    "fsync",
    "fdatasync",
    "rename",
    "replace",
    "link",
    "unlink",
    "mkdir",
    "rmdir",
    "ftruncate",
)
_FOLDERS: Final = ("hosted", "hosted-queue", "uploads", "repositories", "ingest", "events", "retention")


class Steps:
    """The test's end of it; `file` is made anew."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.write_bytes(_FORM.pack(0, 0))
        self._shared = _map(file)

    def kill_before(self, number: int) -> None:
        """SIGKILL to the worker before step `number` from now on (from 1)."""
        self._shared[:] = _FORM.pack(number, _KILL)

    def cut_before(self, number: int) -> None:
        """Cut the power of the disk before step `number` from now on (from 1). The worker runs on, as a machine does
        for its last moment.
        """
        self._shared[:] = _FORM.pack(number, _CUT)

    @property
    def hit(self) -> bool:
        """Whether that step has come; if not, it does not come any more."""
        left, kind = _FORM.unpack(self._shared[:])
        self._shared[:] = _FORM.pack(0, 0)
        return bool(kind) and left == 0


def install(file: Path, root: Path) -> None:
    """In a worker: count its steps below the store's `root`."""
    shared, lock = _map(file), threading.Lock()
    below = tuple(f"{root}/{folder}/" for folder in _FOLDERS)
    opened = os.open

    def concerns(call: str, arguments: tuple[Any, ...]) -> bool:
        first = arguments[0]
        if call == "open" and not (len(arguments) > 1 and arguments[1] & (os.O_CREAT | os.O_TRUNC)):
            return False
        try:
            path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else os.fspath(first)
        except OSError:
            return False
        return f"{path}/".startswith(below)

    def step() -> None:
        with lock:
            left, kind = _FORM.unpack(shared[:])
            if left <= 0:
                return
            shared[:] = _FORM.pack(left - 1, kind)
            if left > 1:
                return
            if kind == _KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            descriptor = opened(root, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, NO_LOG_FLUSH)
            finally:
                os.close(descriptor)

    def wrapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            if concerns(name, arguments):
                step()
            return call(*arguments, **named)

        return run

    for name in _CALLS:
        setattr(os, name, wrapped(name, getattr(os, name)))
    _step_at_transactions(step)


def in_another_process(steps: Steps, root: Path, call: Callable[[], object]) -> bool:
    """Runs it in a process whose steps below `root` are counted. False if it was killed, or got an error."""
    process = os.fork()
    if not process:
        status = 1
        try:
            install(steps.file, root)
            call()
            status = 0
        except MirrorError:
            status = 2
        finally:
            os._exit(status)
    _, status = os.waitpid(process, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 2, -signal.SIGKILL)
    return code == 0


def _step_at_transactions(step: Callable[[], None]) -> None:
    inner = SqliteOutbox._transact

    def transact(*arguments: Any) -> bool:
        step()
        done = inner(*arguments)
        step()
        return done

    setattr(SqliteOutbox, "_transact", transact)  # noqa: B010 - for mypy, no method can be assigned


def _map(file: Path) -> mmap.mmap:
    with file.open("r+b") as opened:
        return mmap.mmap(opened.fileno(), _FORM.size)

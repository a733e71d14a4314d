"""Server programs: started, read, measured and ended by their own process id.

    Server() ── line(…) ──> running ── stop() ──> ended (SIGTERM, after a time-out SIGKILL)

What a program costs is read from /proc for its whole process tree, without the client that asks it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

#: Seconds to wait for something that has to happen; nothing is judged by it.
PATIENCE = 60.0

_TICK = os.sysconf("SC_CLK_TCK")


class BenchFailed(Exception):
    """A program is missing, ended early or answered wrongly: there is no figure to print."""


def say(text: str) -> None:
    """Tell whoever waits what is being done."""
    print(f"… {text}", file=sys.stderr, flush=True)


def program(name: str) -> str:
    """The full path of an installed program. Raises `BenchFailed`."""
    # a login shell of Debian has no sbin in its path, where the daemons live
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))
    if path is None:
        raise BenchFailed(f"{name} is not installed")
    return path


def free_port() -> int:
    """A TCP port of the loopback that was free a moment ago, for programs that cannot tell which one they chose."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Server:
    """A running server program; what it writes goes to a file."""

    def __init__(self, argv: Sequence[str], *, log: Path, cwd: Path | None = None) -> None:
        self.name = Path(argv[0]).name
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=cwd, start_new_session=True
            )

    @property
    def pid(self) -> int:
        """The root of the process tree."""
        return self._process.pid

    def wait(self, answer: Callable[[], T | None], what: str, patience: float = PATIENCE) -> T:
        """Ask until the answer is not None. Raises `BenchFailed` when the program ends before, or after so many
        seconds.
        """
        deadline = time.monotonic() + patience
        while (found := answer()) is None:
            if self._process.poll() is not None:
                raise BenchFailed(
                    f"{self.name} ended (exit code {self._process.returncode}) before {what}: {self._tail()}"
                )
            if time.monotonic() > deadline:
                raise BenchFailed(f"{self.name}: not within {patience:g} s: {what}: {self._tail()}")
            time.sleep(0.02)
        return found

    def line(self, wanted: Callable[[str], T | None], what: str) -> T:
        """The first answer that is not None to a line of the program's output. Raises `BenchFailed`."""

        def look() -> T | None:
            lines = self._log.read_text(errors="replace").splitlines()
            return next((found for line in lines if (found := wanted(line)) is not None), None)

        return self.wait(look, what)

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]

    def stop(self) -> None:
        """Repeatable."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(15.0)
            except subprocess.TimeoutExpired:
                # its children are in its session, which is named after it
                os.killpg(self._process.pid, 9)
                self._process.wait()


def wait_listening(server: Server, port: int) -> None:
    """Until the program accepts connections. Raises `BenchFailed`."""

    def accepts() -> bool | None:
        try:
            with socket.create_connection(("127.0.0.1", port), 5.0):
                return True
        except OSError:
            return None

    server.wait(accepts, f"listening on port {port}")


def _stat(pid: int) -> list[str]:
    # the name of the program, in parentheses, may hold spaces (proc(5))
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _tree(root: int) -> list[int]:
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents[int(entry)] = int(_stat(int(entry))[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found = [root]
    for pid in found:
        found.extend(child for child, parent in parents.items() if parent == pid)
    return found


def cpu_seconds(root: int) -> float:
    """User and system time of a process, its living descendants and those that have ended and been waited for."""
    ticks = 0
    for pid in _tree(root):
        try:
            # fields 14 to 17 of proc(5): utime, stime, cutime, cstime
            ticks += sum(int(field) for field in _stat(pid)[11:15])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return ticks / _TICK


def memory(root: int) -> int:
    """Bytes that a process and its descendants hold, pages that they share counted once (PSS). Without the kernel's."""
    return sum(memory_of_each(root))


def memory_of_each(root: int) -> list[int]:
    """Likewise, of each of these processes."""
    found = []
    for pid in _tree(root):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        found.append(sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")))
    return found


def settle(measure: Callable[[], float], *, change: float, pause: float, limit: float = 30.0) -> float:
    """Measure until two looks `pause` seconds apart differ by no more than `change`: what goes on after the last byte
    was sent (a second fetch, a sync, a collection) belongs to the cost. Returns the last value after `limit` seconds.
    """
    deadline = time.monotonic() + limit
    before = measure()
    while time.monotonic() < deadline:
        time.sleep(pause)
        after = measure()
        if abs(after - before) <= change:
            return after
        before = after
    return before

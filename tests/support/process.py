"""Programs that the tests start: their output line by line, and always an end.

    ProgramProcess() ── wait_for(line) … ──> stop()  SIGTERM, then SIGKILL after a time-out
                                         └─> kill()  SIGKILL

Two threads read stdout and stderr, so that no program ever blocks on a full pipe and every line is there when a test
fails. `lines` reads what is left in the pipes before it answers: a line that a program wrote before it did something is
there for whoever has seen what it did, however late the threads get their turn. Programs are ended by their own process
id only.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Self, TypeVar

T = TypeVar("T")

#: Seconds to wait for something that has to happen; generous, because nothing is judged by it.
PATIENCE = 120.0

#: How many of the last lines a failure shows.
_SHOWN = 200


class ProgramFailed(AssertionError):
    """A program ended early, or its awaited output never came. The message has the end of its output."""


class CommandFailed(AssertionError):
    """A command that should succeed did not. Shows what it wrote."""


def program(name: str) -> str:
    """The full path of an installed program. A missing one fails the test: it is never skipped.

    Raises `ProgramFailed`.
    """
    # a login shell of Debian has no sbin in its path, where the daemons live
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))
    if path is None:
        raise ProgramFailed(f"{name} is not installed; tests/run installs every program that the tests need")
    return path


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    timeout: float = PATIENCE,
    stdin: bytes | None = None,
) -> bytes:
    """Run a command to its end and return its stdout. Raises `CommandFailed` unless it ends with 0 in `timeout` s."""
    command = [program(str(argv[0])), *map(str, argv[1:])]
    try:
        done = subprocess.run(
            command, env=_environment(env), input=stdin, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        shown = b"\n".join(part for part in (error.stdout, error.stderr) if part).decode(errors="replace")
        raise CommandFailed(f"{' '.join(command)}: not done after {timeout:g} s\n{shown}") from error
    if done.returncode != 0:
        shown = (done.stdout[-8192:] + done.stderr[-8192:]).decode(errors="replace")
        raise CommandFailed(f"{' '.join(command)}: exit code {done.returncode}\n{shown}")
    return done.stdout


def eventually(question: Callable[[], T | None], what: str, *, timeout: float = PATIENCE) -> T:
    """Ask until the answer is neither None nor False, for conditions that nothing announces (the kernel's tables).

    Raises `ProgramFailed` after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        answer = question()
        if answer is not None and answer is not False:
            return answer
        if time.monotonic() > deadline:
            raise ProgramFailed(f"not within {timeout:g} s: {what}")
        time.sleep(0.01)


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    return {**os.environ, **(extra or {})}


class ProgramProcess:
    """A running program. Use as a context manager, or call `stop`."""

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        name: str | None = None,
    ) -> None:
        command = [program(str(argv[0])), *map(str, argv[1:])]
        self.name = name or Path(command[0]).name
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            command,
            env=_environment(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # signals meant for the tests (a Ctrl-C) end the tests, whose clean-up then ends this
            start_new_session=True,
        )
        #: The pipes that may have more, with the beginning of a line whose end has not come yet.
        self._pipes: dict[IO[bytes], bytes] = {
            stream: b"" for stream in (self._process.stdout, self._process.stderr) if stream is not None
        }
        self._readers = [
            threading.Thread(target=self._read, args=(stream,), name=f"{self.name}-output", daemon=True)
            for stream in self._pipes
        ]
        for stream in self._pipes:
            os.set_blocking(stream.fileno(), False)
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[bytes]) -> None:
        poll = select.poll()
        poll.register(stream, select.POLLIN)
        while True:
            poll.poll()
            with self._changed:
                self._take(stream)
                if stream not in self._pipes:
                    stream.close()
                    return

    def _take(self, stream: IO[bytes]) -> None:
        """Everything that is in a pipe now; called with the lock held. At its end the pipe is taken out of `_pipes`."""
        while stream in self._pipes:
            try:
                piece = os.read(stream.fileno(), 1 << 16)
            except BlockingIOError:
                return
            *whole, rest = (self._pipes[stream] + piece).split(b"\n")
            if piece:
                self._pipes[stream] = rest
            else:
                del self._pipes[stream]
                whole += [rest] if rest else []
            self._lines += [line.decode(errors="replace").rstrip("\r\n") for line in whole]
            self._changed.notify_all()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    @property
    def lines(self) -> list[str]:
        """Everything written so far, also what no thread has read yet; stdout and stderr in order of arrival."""
        with self._changed:
            for stream in list(self._pipes):
                self._take(stream)
            return list(self._lines)

    def tail(self) -> str:
        """The last lines, for failure messages."""
        return f"--- {self.name}, last lines ---\n" + "\n".join(self.lines[-_SHOWN:])

    def wait_for(self, wanted: Callable[[str], T | None], what: str, *, since: int = 0, timeout: float = PATIENCE) -> T:
        """The first answer, from line number `since` on, that is neither None nor False.

        Raises `ProgramFailed` when the program's output ends without it, or after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        seen = since
        with self._changed:
            while True:
                while seen < len(self._lines):
                    answer = wanted(self._lines[seen])
                    seen += 1
                    if answer is not None and answer is not False:
                        return answer
                if not self._pipes:
                    break
                if not self._changed.wait(deadline - time.monotonic()):
                    raise ProgramFailed(f"{self.name}: not within {timeout:g} s: {what}\n{self.tail()}")
        raise ProgramFailed(f"{self.name}: ended (exit code {self._process.wait()}) before {what}\n{self.tail()}")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process alone."""
        self._process.send_signal(number)

    def wait(self, timeout: float = PATIENCE) -> int:
        """The exit code. Raises `ProgramFailed` after `timeout` seconds."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise ProgramFailed(f"{self.name}: still running after {timeout:g} s\n{self.tail()}") from error
        # a child that outlives the program may hold the pipes open: what it says is no longer waited for, and all that
        # the program said is in `lines`
        # a child that outlives the program may hold the pipes open: what it says is no longer waited for
        for reader in self._readers:
            reader.join(5.0)
        return code

    def stop(self, timeout: float = PATIENCE) -> int:
        """SIGTERM, then SIGKILL after `timeout` seconds. Returns the exit code (negative: a signal). Repeatable."""
        if self.running:
            self._process.terminate()
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self.wait()

    def kill(self) -> int:
        """SIGKILL. Repeatable."""
        if self.running:
            self._process.kill()
        return self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

"""Workers that begin in a few milliseconds, to be killed by the thousand.

    with ForkedWorkers(config) as workers:          # one process that has imported everything, and one listener
        pid = workers.start()                       # its fork: the worker that `serve` starts, from `run_worker` on
        ... ask 127.0.0.1:workers.port ...
        workers.kill()                              # SIGKILL; what waits in the listener's queue waits on

The process that forks runs nothing else: neither threads nor an event loop are copied into a worker.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from tests.support.breaking_steps import Steps, install
from tests.support.process import PATIENCE
from tests.support.several_connections import small_parts


class ForkedWorkers:
    """At most one worker at a time. `log` is the file that all of them write to. `beside`: on the listener of those.
    `steps`: where a worker is to end. `small_parts`: small blobs come over several connections
    (`several_connections.py`).
    """

    def __init__(
        self,
        config: Path,
        *,
        beside: ForkedWorkers | None = None,
        steps: Steps | None = None,
        small_parts: bool = False,
    ) -> None:
        self._config = config
        self._small_parts = small_parts
        self._steps = steps
        self._listener: socket.socket = (
            beside._listener.dup() if beside else socket.create_server(("127.0.0.1", 0), backlog=1024)
        )
        self.port = int(self._listener.getsockname()[1])
        self.log = config.parent / "workers.log"
        self._pid = 0

    def start(self, *, boot: int = 0, wait: bool = True) -> int:
        """Start a worker; returns once it answers, or at once if not `wait`. `boot` is the id of the machine's boot:
        after a simulated power cut the kernel's own id is still the same.
        """
        assert not self._pid, "it runs"
        self._say(f"start {boot}")
        self._pid = int(self._heard())
        if wait:
            self.wait_ready()
        return self._pid

    def wait_ready(self) -> None:
        """Until the worker that was started answers."""
        message = self._heard()
        assert message == "ready", f"the worker sent {message!r}:\n{self.log.read_text()[-4000:]}"

    def kill(self) -> None:
        """SIGKILL; returns when it is gone, which it may be already. Repeatable."""
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self._ended()

    def stop(self) -> None:
        """SIGTERM; returns when it has drained."""
        if self._pid:
            os.kill(self._pid, signal.SIGTERM)
            code = self._ended()
            assert code == 0, f"exit status {code}:\n{self.log.read_text()[-4000:]}"

    def _ended(self) -> int:
        self._pid = 0
        while True:
            message = self._heard()
            # it may have become ready in its last moment
            if message.startswith("ended"):
                return int(message.split()[1])

    def _say(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()

    def _heard(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline().decode().strip()
        assert line, f"the forking process is gone:\n{self.log.read_text()[-4000:]}"
        return line

    def __enter__(self) -> ForkedWorkers:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.support.forked_workers",
                    str(self._config),
                    str(self._listener.fileno()),
                    "small" if self._small_parts else "large",
                    *([str(self._steps.file)] if self._steps else []),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=[self._listener.fileno()],
                cwd=Path(__file__).resolve().parents[2],
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._process.stdout.close()
        self._listener.close()


def _main(config: Path, listener: int, parts: str, steps: Path | None) -> None:
    """The process that forks."""
    from mirror import telemetry
    from mirror.config import load
    from mirror.process.worker import run_worker

    if parts == "small":
        small_parts(setattr)
    loaded = load(config)
    telemetry.set_up_logging(loaded.log.level)
    print_to = os.dup(1)
    os.dup2(2, 1)

    def say(text: str) -> None:
        os.write(print_to, f"{text}\n".encode())

    for line in sys.stdin:
        _, boot = line.split()
        go, gone = os.pipe()
        pid = os.fork()
        if pid == 0:
            # the worker's number is sent before any message of its own
            os.read(go, 1)
            _pretend_boot(int(boot))
            if steps is not None:
                install(steps, loaded.store.root)
            code = 1
            try:
                # as an own descriptor: the loop closes it
                mine = socket.socket(fileno=os.dup(listener))
                run_worker(loaded, [mine], ready=lambda: say("ready"))
                code = 0
            finally:
                os._exit(code)
        say(str(pid))
        os.write(gone, b"1")
        os.close(go)
        os.close(gone)
        _, status = os.waitpid(pid, 0)
        say(f"ended {os.waitstatus_to_exitcode(status)}")


def _pretend_boot(number: int) -> None:
    from mirror.store.hosted import upload_files
    from mirror.store.local import blobs, recovery, span_file

    def boot_id() -> bytes:
        return number.to_bytes(16, "big")

    for module in (blobs, recovery, span_file, upload_files):
        vars(module)["boot_id"] = boot_id


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]) if len(sys.argv) > 4 else None)

"""A redis-server of the test's own, on a private unix socket.

A module makes its fixture of it: `with RedisServer() as server: yield server`. A machine without redis-server fails
these tests: what is not tried is not known to work.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from aiocache import RedisCache

from mirror.aio.memo import MEMO_TAG, redis_cache
from mirror.index.redis_address import RedisAddress
from mirror.index.redis_primary import RedisPool


class RedisServer:
    """Started by `start` or as a context; `arguments` are redis-server's own, as on its command line. `configuration`
    is the text of a file that it may rewrite.
    """

    def __init__(self, *arguments: str, configuration: str = "") -> None:
        found = shutil.which("redis-server")
        assert found, "redis-server is not installed, and these tests need a real one"
        self._program = found
        self._arguments = arguments
        # not pytest's directory: the path of a unix socket has at most 107 bytes
        self._directory = Path(tempfile.mkdtemp(prefix="redis-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._file = self._directory / "redis.conf"
        self._file.write_text(configuration)
        self.socket = self._directory / "redis.sock"

    @property
    def url(self) -> str:
        """Of database 0, without a password."""
        return f"unix://{self.socket}"

    @property
    def address(self) -> RedisAddress:
        """The same as a value."""
        return RedisAddress(socket=str(self.socket))

    def cache(self, *, budget: float = 0.1) -> RedisCache:
        """For a `Memo`, which closes it."""
        return redis_cache(RedisPool(self.address, MEMO_TAG, connections=8, budget=budget))

    def start(self, *arguments: str) -> None:
        """Returns once it answers. `arguments` come after those of the constructor."""
        assert self._process is None, "it runs already"
        self.socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [
                self._program,
                str(self._file),
                *("--port", "0", "--unixsocket", str(self.socket), "--dir", str(self._directory)),
                *("--save", "", "--appendonly", "no", "--daemonize", "no", "--loglevel", "warning"),
                *self._arguments,
                *arguments,
            ],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 30
        while not self._answers():
            assert self._process.poll() is None, f"redis-server ended with {self._process.returncode}"
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.01)

    def _answers(self) -> bool:
        """Whether it replies to PING, be it with an error."""
        try:
            return self.command("PING")[:1] in (b"+", b"-")
        except OSError:
            return False

    def command(self, *words: str) -> bytes:
        """Send one command on a connection of its own; the first 64 KiB of the raw reply."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(str(self.socket))
            encoded = [word.encode() for word in words]
            connection.sendall(b"*%d\r\n" % len(encoded))
            for word in encoded:
                connection.sendall(b"$%d\r\n%s\r\n" % (len(word), word))
            return connection.recv(65536)

    @property
    def runs(self) -> bool:
        """Whether there is a process, be it paused."""
        return self._process is not None

    def pause(self) -> None:
        """It neither answers nor dies."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """After `pause`."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """At once; its data are gone. Repeatable."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self, *arguments: str) -> None:
        """Kill and start, empty."""
        self.kill()
        self.start(*arguments)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "it does not run"
        os.kill(self._process.pid, number)

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

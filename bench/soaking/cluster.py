"""The programs of a soak: a registry as upstream, and the mirror with its workers, which can be stopped and started.

MirrorUnderTest ── start() ──> serving ── restart()  SIGTERM, then a new one on the same port
                                      └── stop()
"""

from __future__ import annotations

import json
import random
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.process import Server, free_port, program, wait_listening

WORKERS: Final = 4
_ROOT: Final = Path(__file__).resolve().parents[2]


def start_registry(directory: Path) -> tuple[Server, int]:
    """A registry with an empty directory of its own, and its port."""
    directory.mkdir()
    port = free_port()
    config = directory / "config.yml"
    config.write_text(f"""version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {directory}/data}}, cache: {{blobdescriptor: inmemory}}}}
http: {{addr: "127.0.0.1:{port}", secret: soak}}
""")
    server = Server([program("docker-registry"), "serve", str(config)], log=directory / "output")
    wait_listening(server, port)
    return server, port


@dataclass(frozen=True, slots=True)
class Settings:
    """Of the mirror: `capacity` in bytes, the water marks as parts of it, `read_timeout` in seconds."""

    upstream: int
    index: str
    capacity: int
    high: float
    low: float
    read_timeout: int


class MirrorUnderTest:
    """One store and one port, over any number of lives of the process. `logs` are the files that they wrote."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        directory.mkdir()
        self.store = directory / "store"
        self.port = _steady_port()
        self.logs: list[Path] = []
        self._directory = directory
        self._config = directory / "mirror.toml"
        self._config.write_text(_config(settings, self.store, self.port))
        self._server: Server | None = None

    @property
    def pid(self) -> int:
        """Of the parent of the workers; 0 while there is none."""
        return self._server.pid if self._server is not None else 0

    def start(self) -> None:
        """Blocks until it listens. Raises `BenchFailed`."""
        log = self._directory / f"mirror-{len(self.logs)}.log"
        self.logs.append(log)
        argv = [sys.executable, "-m", "mirror", "serve", "--config", str(self._config)]
        self._server = server = Server(argv, log=log, cwd=_ROOT)
        server.line(_says_listening, "listening")

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if that is not enough. Blocks. Repeatable."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    def restart(self) -> None:
        """Blocks until it listens again. Raises `BenchFailed`."""
        self.stop()
        self.start()

    def workers(self) -> list[int]:
        """Process ids, lowest first."""
        found: list[int] = []
        try:
            for task in Path(f"/proc/{self.pid}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            return []
        return sorted(found)


def _steady_port() -> int:
    """Below those that the kernel gives to clients: none of them can take it while the mirror is restarted."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(max(1024, lowest - 10_000), lowest)
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue


def _config(settings: Settings, store: Path, port: int) -> str:
    return f"""[server]
listen = ["127.0.0.1:{port}"]
workers = {WORKERS}
drain_timeout = "10s"
[store]
root = {json.dumps(str(store))}
capacity = "{settings.capacity}B"
high_water = {settings.high}
low_water = {settings.low}
[index]
url = {json.dumps(settings.index)}
[[upstream]]
name = "docker.io"
url = "http://127.0.0.1:{settings.upstream}"
read_timeout = "{settings.read_timeout}s"
[[route]]
match = "**"
tag_ttl = "10s"
"""


def _says_listening(line: str) -> bool | None:
    return True if '"event":"listening"' in line else None

"""The mirror as users run it: a process of its own with workers, asked over its listener and read through its log.

MirrorProcess(config) ── listening ──> serving ── stop()  SIGTERM: drains, exit code 0
                                              ├── freeze(), thaw()  SIGSTOP and SIGCONT to all
                                              ├── kill_worker(pid)  SIGKILL to one worker
                                              └── kill()  SIGKILL to all
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from tests.support.process import PATIENCE, ProgramProcess, eventually

#: The directory that the package lies in, so that `-m mirror` finds it wherever the tests are started from.
_TREE: Final = Path(__file__).resolve().parents[2]
#: Lines of trouble that are shown when a test fails.
_COMPLAINTS: Final = 50


def write_config(
    directory: Path,
    upstreams: Mapping[str, str],
    *,
    workers: int = 2,
    capacity: str = "10GB",
    index: str = "",
    index_timeout: str = "5s",
    tag_ttl: str = "5m",
    store: str = "",
    upstream: str = "",
    more: str = "",
) -> Path:
    """A configuration in `directory`, its store beside it; `upstreams` are root URLs by name. `store` are further lines
    of `[store]`, `upstream` those of each `[[upstream]]`, and `more` is TOML to add.

    Redis gets 5 seconds for each answer, because a busy machine can make it slow. A test that lets Redis hang sets a
    shorter `index_timeout`.
    """
    text = [
        "[server]",
        'listen = ["127.0.0.1:0"]',
        f"workers = {workers}",
        "[store]",
        f"root = {json.dumps(str(directory / 'store'))}",
        f'capacity = "{capacity}"',
        store,
        "[index]",
        f"url = {json.dumps(index)}",
        f"timeout = {json.dumps(index_timeout)}",
    ]
    for name, url in upstreams.items():
        text += ["[[upstream]]", f'name = "{name}"', f'url = "{url}"', upstream]
    for name in upstreams:
        text += ["[[route]]", f'match = "{name}/**"', f'tag_ttl = "{tag_ttl}"']
    file = directory / "mirror.toml"
    file.write_text("\n".join([*text, more, ""]))
    return file


class MirrorProcess:
    """A running mirror; it listens when the constructor returns. Raises `ProgramFailed` with its log if it does not."""

    def __init__(self, config: Path, *options: str, listeners: int = 1, env: Mapping[str, str] | None = None) -> None:
        python_path = os.pathsep.join(filter(None, [str(_TREE), os.environ.get("PYTHONPATH")]))
        self._process = ProgramProcess(
            [sys.executable, "-m", "mirror", "serve", "--config", config, *options],
            # what it leaves when it is killed goes with the configuration
            env={"PYTHONPATH": python_path, "TMPDIR": str(config.parent), **(env or {})},
            name="mirror",
        )
        self.addresses: list[str] = []
        try:
            seen = 0
            while len(self.addresses) < listeners:
                seen, address = self._process.wait_for(self._listening(seen), "every listener is ready", since=seen)
                if address not in self.addresses:
                    self.addresses.append(address)
        except BaseException:
            self._process.kill()
            raise

    @staticmethod
    def _listening(seen: int) -> Any:
        """Looks at the lines of the log from number `seen` on; returns the number of the next line, and the address in
        it.
        """

        def question(line: str) -> tuple[int, str] | None:
            nonlocal seen
            seen += 1
            entry = _entry(line)
            return (seen, entry["address"]) if entry.get("event") == "listening" else None

        return question

    # ----------------------------------------------------------------------------------------- where it is

    @property
    def pid(self) -> int:
        """Of the process that was started; its workers have others."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.running

    @property
    def address(self) -> str:
        """`127.0.0.1:port` of the first listener."""
        return self.addresses[0]

    @property
    def port(self) -> int:
        """Of the first listener."""
        return int(self.address.rpartition(":")[2])

    @property
    def url(self) -> str:
        """Root URL of the first listener, without a slash at its end."""
        return f"http://{self.address}"

    # ---------------------------------------------------------------------------------------- what it says

    @property
    def log(self) -> list[dict[str, Any]]:
        """The log up to now; lines that are not JSON stand as `{"event": "raw", "line": …}`.

        What the mirror logs before it does something is there for whoever has seen that. What it logs afterwards, as
        the line of a blob that was sent or of a small answer that was given again, may come later: `wait_for_event`.
        """
        return [_entry(line) for line in self._process.lines]

    def requests(self, *, path: str = "") -> list[dict[str, Any]]:
        """Logged requests whose path contains `path`. Small answers are logged before they are sent, the first time."""
        return [entry for entry in self.log if entry.get("event") == "request" and path in entry.get("path", "")]

    def wait_for_event(self, event: str, **wanted: Any) -> dict[str, Any]:
        """The first log line of this event with these values. Raises `ProgramFailed`."""

        def question(line: str) -> dict[str, Any] | None:
            entry = _entry(line)
            if entry.get("event") == event and all(entry.get(key) == value for key, value in wanted.items()):
                return entry
            return None

        return self._process.wait_for(question, f"it logs {event} {wanted}")

    def tail(self) -> str:
        """The last log lines, for failure messages."""
        return self._process.tail()

    def get(
        self, target: str, headers: Mapping[str, str] | None = None, *, method: str = "GET"
    ) -> tuple[int, Any, bytes]:
        """One request on a connection of its own: status, headers and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, target, headers=dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def metrics(self) -> dict[str, float]:
        """Every sample of `/metrics`, written as there: `name{label="value"}`, labels sorted by name."""
        status, _, body = self.get("/metrics")
        assert status == 200, f"/metrics: {status} {body[:500]!r}"
        return {
            _sample(sample.name, sample.labels): sample.value
            for family in text_string_to_metric_families(body.decode())
            for sample in family.samples
        }

    # ------------------------------------------------------------------------------------------ its workers

    def worker_pids(self) -> list[int]:
        """The processes that accept connections, the first one only if it has no child that does."""
        listening = _sockets(lambda local, _, state: state == "0A" and local == self.port).keys()
        children = [pid for pid in _descendants(self.pid) if listening & _open_sockets(pid)]
        return children or [self.pid]

    def wait_for_workers(self, wanted: int) -> list[int]:
        """Returns once this many accept connections. Raises `ProgramFailed`."""
        return eventually(
            lambda: pids if len(pids := self.worker_pids()) == wanted else None, f"{wanted} workers\n{self.tail()}"
        )

    def workers_of(self, connections: Sequence[socket.socket]) -> list[int]:
        """Which process has accepted each of these connections of ours. Raises `ProgramFailed` if one is left out."""
        ours = [connection.getsockname()[1] for connection in connections]

        def question() -> list[int] | None:
            owners = {inode: pid for pid in self.worker_pids() for inode in _open_sockets(pid)}
            accepted = _sockets(lambda local, _, __: local == self.port)
            found = {remote: owners[inode] for inode, remote in accepted.items() if inode in owners}
            return [found[port] for port in ours] if found.keys() >= set(ours) else None

        return eventually(question, f"workers accept the connections from ports {ours}")

    def kill_worker(self, pid: int) -> None:
        """SIGKILL to one worker."""
        assert pid in self.worker_pids(), f"{pid} is no worker of this mirror"
        os.kill(pid, signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP to it and every worker: its connections stay, and nothing answers."""
        # the parent first, or it would notice that its workers say nothing
        for pid in [self.pid, *_descendants(self.pid)]:
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """After `freeze`."""
        for pid in [*_descendants(self.pid), self.pid]:
            os.kill(pid, signal.SIGCONT)

    # --------------------------------------------------------------------------------------------- its end

    def begin_stop(self) -> None:
        """SIGTERM, without waiting."""
        self._process.signal(signal.SIGTERM)

    def wait(self) -> int:
        """The exit code, once it has ended by itself. Raises `ProgramFailed`."""
        return self._process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code once it has drained. Repeatable."""
        return self._process.stop()

    def kill(self) -> None:
        """SIGKILL to it and every worker. Repeatable."""
        pids = _descendants(self.pid) if self.running else []
        if self.running:
            # the parent first, or it would replace its workers; at once, or they would notice its end and drain
            self._process.signal(signal.SIGKILL)
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it went with its parent
        self._process.wait()

    def __enter__(self) -> MirrorProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        killed = not self.running
        if error is not None:
            # pytest shows it beside the failure: what the mirror complained of, wherever in its log, and its last lines
            complaints = [line for line in self._process.lines if _entry(line).get("level") in ("warning", "error")]
            print("--- mirror, warnings and errors ---", *complaints[-_COMPLAINTS:], self.tail(), sep="\n")
        try:
            code = self.stop()
        finally:
            self.kill()
        if error is None:
            assert killed or code == 0, f"exit code {code} after SIGTERM\n{self.tail()}"
            self.expect_clean_log()

    def expect_clean_log(self) -> None:
        """No unexpected exception was logged, and no worker had to be killed because it did not drain."""
        bad = [line for line in self._process.lines if "Traceback" in line or "did not drain" in line]
        assert not bad, f"{bad[0]}\n{self.tail()}"


def holder_of_lock(file: Path, pids: Iterable[int]) -> int | None:
    """Which of these processes holds the kernel's `flock` on a file; None if none does, or there is no such file.

    `/proc/locks` names who took the lock, and the file by device and inode (proc(5)).
    """
    try:
        inode = file.stat().st_ino
    except FileNotFoundError:
        return None
    wanted = set(pids)
    for line in Path("/proc/locks").read_text().splitlines():
        found = re.match(r"\d+: FLOCK +\w+ +WRITE (\d+) [0-9a-f]+:[0-9a-f]+:(\d+) ", line)
        if found and int(found[2]) == inode and int(found[1]) in wanted:
            return int(found[1])
    return None


def _entry(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    return entry if isinstance(entry, dict) else {"event": "raw", "line": line}


def _sample(name: str, labels: Mapping[str, str]) -> str:
    written = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    return f"{name}{{{written}}}" if written else name


def _descendants(pid: int) -> list[int]:
    """Children and theirs, as the kernel knows them now."""
    found: list[int] = []
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(word) for task in tasks for word in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return found
    for child in children:
        found += [child, *_descendants(child)]
    return found


def _open_sockets(pid: int) -> set[str]:
    """Inodes of a process's sockets."""
    found = set()
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(link)
            except FileNotFoundError:
                continue
            if target.startswith("socket:["):
                found.add(target[8:-1])
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has ended
    return found


def _sockets(wanted: Callable[[int, int, str], bool]) -> dict[str, int]:
    """This machine's IPv4 TCP sockets for which `wanted(local port, remote port, state)` holds: remote port by inode.

    The states are those of proc(5); `0A` is listening. A connection that is not accepted yet has inode 0.
    """
    found = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        local, remote = (int(word.partition(":")[2], 16) for word in words[1:3])
        if wanted(local, remote, words[3]):
            found[words[9]] = remote
    return found

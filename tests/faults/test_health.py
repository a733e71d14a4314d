"""Row 69: probes say whether the event loops turn, and wait for nothing else."""

from __future__ import annotations

import math
import os
import signal
import socket
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from mirror.config import load
from mirror.errors import ConfigError
from mirror.heartbeat import Heartbeat, Heartbeats
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import noise
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import PATIENCE, eventually
from tests.support.redis_server import RedisServer

_TREE = Path(__file__).resolve().parents[2]
_BLOCKING = _TREE / "tests/support/blocking"
_TAG = "/v2/library/app/manifests/v1"


@pytest.fixture
def full(registry: FakeRegistry) -> FakeRegistry:
    """One image."""
    registry.add_image("library/app", "v1", [noise(1000)])
    return registry


def _begin(mirror: MirrorProcess, target: str) -> socket.socket:
    """A request whose answer is not waited for."""
    connection = socket.create_connection(("127.0.0.1", mirror.port), timeout=PATIENCE)
    connection.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return connection


def _has_answered(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


def _blocking(tmp_path: Path) -> tuple[dict[str, str], Path]:
    """Environment of a mirror whose worker blocks once the file is there."""
    flag = tmp_path / "block"
    path = os.pathsep.join(filter(None, [str(_BLOCKING), str(_TREE), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, "BLOCK_WHEN": str(flag)}, flag


def _page(mirror: MirrorProcess, page: str) -> tuple[int, bytes] | None:
    """None where the worker that was chosen does not answer."""
    try:
        with closing(_begin(mirror, page)) as connection:
            connection.settimeout(1.0)
            received = connection.recv(65536)
    except (TimeoutError, ConnectionError):
        return None
    return (int(received.split()[1]), received.partition(b"\r\n\r\n")[2]) if received else None


def test_69_a_handler_that_blocks(full: FakeRegistry, tmp_path: Path) -> None:
    """Row 69: while a handler blocks the loop of one worker, the other reports it on `/livez`."""
    environment, flag = _blocking(tmp_path)
    config = write_config(tmp_path, {"docker.io": full.url}, workers=2)
    # it is reported after half of the time; the parent kills the worker after the whole
    with MirrorProcess(config, env={**environment, "MIRROR__SERVER__BLOCKED_TIMEOUT": "20s"}) as mirror:
        mirror.wait_for_workers(2)
        assert eventually(lambda: _page(mirror, "/livez"), "it answers") == (200, b"ok\n")
        flag.touch()
        with closing(_begin(mirror, "/v2/")) as blocked:
            eventually(lambda: not flag.exists(), "a handler blocks")
            [stuck] = mirror.workers_of([blocked])

            def says_so() -> bytes | None:
                answer = _page(mirror, "/livez")
                return answer[1] if answer and answer[0] == 503 else None

            assert eventually(says_so, "the other worker says so").startswith(b"a worker's event loop has not turned")
            assert not _has_answered(blocked)
            # what is served is served on
            assert eventually(lambda: _page(mirror, "/readyz"), "the other one answers")[0] == 200
            with suppress(ProcessLookupError):
                os.kill(stuck, signal.SIGKILL)
        eventually(
            lambda: _page(mirror, "/livez") == (200, b"ok\n") and len(mirror.worker_pids()) == 2, "all is well again"
        )


@pytest.mark.parametrize("workers", [1, 2])
def test_69_a_worker_that_blocks_is_replaced(full: FakeRegistry, tmp_path: Path, workers: int) -> None:
    """Row 69: a worker that stays blocked is killed and replaced; its log says where it stood."""
    environment, flag = _blocking(tmp_path)
    config = write_config(tmp_path, {"docker.io": full.url}, workers=workers)
    with MirrorProcess(config, env={**environment, "MIRROR__SERVER__BLOCKED_TIMEOUT": "3s"}) as mirror:
        before = mirror.wait_for_workers(workers)
        flag.touch()
        with closing(_begin(mirror, "/v2/")) as blocked:
            event = mirror.wait_for_event("blocked worker killed")
            with closing(blocked):
                blocked.settimeout(PATIENCE)
                assert _ends(blocked)
        assert event["worker"] in before
        died = mirror.wait_for_event("worker died", slot=event["slot"])
        assert died["code"] == -signal.SIGKILL
        now = eventually(
            lambda: pids if event["worker"] not in (pids := mirror.wait_for_workers(workers)) else None, "a new worker"
        )
        assert len(now) == workers
        assert mirror.get(_TAG)[0] == 200
        assert eventually(lambda: _page(mirror, "/livez"), "it answers") == (200, b"ok\n")
        # the new worker counts it as it begins
        eventually(lambda: mirror.metrics()["mirror_workers_blocked_total"] >= 1, "it is counted")
        stacks = [line["line"] for line in mirror.log if line["event"] == "raw"]
        assert any("sitecustomize.py" in line and "in base" in line for line in stacks), stacks


def _ends(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_69_a_worker_that_is_stopped_is_replaced(full: FakeRegistry, tmp_path: Path) -> None:
    """Row 69: a process that does not run at all (here: SIGSTOP) is replaced as well."""
    config = write_config(tmp_path, {"docker.io": full.url}, workers=2)
    with MirrorProcess(config, env={"MIRROR__SERVER__BLOCKED_TIMEOUT": "3s"}) as mirror:
        stopped = mirror.wait_for_workers(2)[0]
        os.kill(stopped, signal.SIGSTOP)
        mirror.wait_for_event("blocked worker killed", worker=stopped)
        eventually(lambda: stopped not in (now := mirror.worker_pids()) and len(now) == 2, "another one serves")


@pytest.mark.parametrize("page", ["/livez", "/readyz"])
def test_69_probes_wait_for_nothing_else(tmp_path: Path, page: str) -> None:
    """Row 69: with Redis hanging and an upstream that takes requests and says nothing, while pulls wait for it, alive
    and ready are answered.
    """
    with (
        closing(socket.create_server(("127.0.0.1", 0), backlog=100)) as black_hole,
        RedisServer() as redis,
    ):
        upstream = f"http://127.0.0.1:{black_hole.getsockname()[1]}"
        config = write_config(tmp_path, {"docker.io": upstream}, workers=1, index=redis.url, index_timeout="100ms")
        with MirrorProcess(config, env={"MIRROR__SERVER__DRAIN_TIMEOUT": "0s"}) as mirror:
            redis.pause()
            try:
                with closing(_begin(mirror, _TAG)) as pull:
                    black_hole.settimeout(PATIENCE)
                    taken, _ = black_hole.accept()
                    with closing(taken):
                        for _ in range(20):
                            assert mirror.get(page)[0] == 200
                        assert not _has_answered(pull)
            finally:
                redis.resume()


def test_69_the_silence_of_all_serving_workers() -> None:
    """Row 69: the longest silence of any slot counts; not that of a slot without a worker, or whose worker drains."""
    beats = Heartbeats.of(3)
    try:
        assert beats.silence() == 0
        first, second = Heartbeat(beats, 0), Heartbeat(Heartbeats(os.dup(beats.descriptor)), 1)
        first.beat()
        second.beat()
        assert 0 < beats.silence() < PATIENCE
        beats.put(1, beats.last(1) - 60 * 10**9)
        assert first.beats.silence() >= 60
        second.rest()
        second.beat()
        assert beats.last(1) == 0
        assert beats.silence() < 60
        second.beats.close()
    finally:
        beats.close()


def test_workers_know_whether_clients_are_served_at_another_one() -> None:
    """Also while they serve none themselves; the beats say it, and it outlasts the worker that did."""
    beats = Heartbeats.of(2)
    try:
        first, second = Heartbeat(beats, 0), Heartbeat(beats, 1)
        first.beat()
        second.beat()
        assert beats.idle() == math.inf
        second.beat(1000.0)
        first.beat()
        assert 0 <= beats.idle() < PATIENCE
        beats.put_use(1, time.monotonic_ns() - 60 * 10**9)
        # nothing new
        second.beat(1000.0)
        assert beats.idle() >= 60
        # by a clock that was set back
        second.beat(500.0)
        assert beats.idle() < 60
        beats.put_use(1, time.monotonic_ns() - 60 * 10**9)
        second.rest()
        assert 60 <= beats.idle() < math.inf
        assert beats.last(0) > 0
    finally:
        beats.close()


@pytest.mark.parametrize(("given", "is_good"), [("0", True), ('"0s"', True), ('"2s"', True), ('"1s"', False)])
def test_69_how_long_is_blocked(tmp_path: Path, given: str, is_good: bool) -> None:
    """Row 69: a time in which a worker may merely be busy is refused, by its name."""
    file = tmp_path / "mirror.toml"
    file.write_text(f"[server]\nblocked_timeout = {given}\n")
    if is_good:
        load(file)
        return
    with pytest.raises(ConfigError, match="too short") as caught:
        load(file)
    assert caught.value.mistakes[0].startswith("server.blocked_timeout: ")

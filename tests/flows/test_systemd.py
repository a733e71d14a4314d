"""What systemd is told: that the mirror answers, that it is alive, and that it ends."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mirror.process.systemd import Systemd
from tests.support.fake_registry import FakeRegistry
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import PATIENCE


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[socket.socket]:
    """Systemd's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.settimeout(PATIENCE)
        one.bind(str(tmp_path / "notify"))
        yield one


def _hear(ear: socket.socket, wanted: str) -> None:
    """Raises `TimeoutError`."""
    while ear.recv(100).decode() != wanted:
        pass


@pytest.mark.parametrize("workers", [1, 2])
def test_a_unit_of_type_notify(registry: FakeRegistry, tmp_path: Path, ear: socket.socket, workers: int) -> None:
    """Ready when it answers and not before, alive from then on, stopping at its end; workers do not know the socket."""
    told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000000"}
    with MirrorProcess(write_config(tmp_path, {"docker.io": registry.url}, workers=workers), env=told) as mirror:
        assert ear.recv(100) == b"READY=1"
        with closing(http.client.HTTPConnection("127.0.0.1", mirror.port, timeout=PATIENCE)) as connection:
            connection.request("GET", "/readyz")
            assert connection.getresponse().status == 200
        _hear(ear, "WATCHDOG=1")
        children = Path(f"/proc/{mirror.pid}/task/{mirror.pid}/children").read_text().split()
        environments = [Path(f"/proc/{child}/environ").read_bytes() for child in children]
        assert len(environments) >= workers
        assert all(b"NOTIFY_SOCKET" not in one for one in environments)
        assert mirror.stop() == 0
        _hear(ear, "STOPPING=1")


def test_four_messages_in_a_period(ear: socket.socket, tmp_path: Path) -> None:
    """However often the mirror looks; nothing where systemd does not watch."""
    now = 0.0
    watched = Systemd(str(tmp_path / "notify"), 2.0, lambda: now)
    for _ in range(20):
        watched.alive()
        now += 0.1
    Systemd(str(tmp_path / "notify")).alive()
    watched.stopping()
    said = [ear.recv(100) for _ in range(5)]
    assert said == [b"WATCHDOG=1"] * 4 + [b"STOPPING=1"]


def test_names_in_the_abstract_namespace() -> None:
    """Written with @, as systemd does for user units."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.settimeout(PATIENCE)
        ear.bind(b"\0mirror-test-notify-" + str(id(ear)).encode())
        Systemd.of({"NOTIFY_SOCKET": "@" + bytes(ear.getsockname()).decode()[1:]}).ready()
        assert ear.recv(100) == b"READY=1"


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": "/nonexistent/notify", "WATCHDOG_USEC": "soon"}])
def test_no_one_listens_on_the_socket(environment: dict[str, str]) -> None:
    """Nothing happens, and nothing fails."""
    one = Systemd.of(environment)
    for tell in (one.ready, one.alive, one.stopping):
        tell()

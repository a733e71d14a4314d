"""What every test of this tree has in common."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import uvloop

from tests.support.engines.fixtures import azurite as azurite
from tests.support.engines.fixtures import gcs as gcs
from tests.support.engines.fixtures import radosgw as radosgw
from tests.support.engines.fixtures import rclone as rclone
from tests.support.engines.fixtures import seaweedfs as seaweedfs
from tests.support.event_receiver import EventReceiver
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import LiveMirror, live_mirror
from tests.support.memory_bucket import CALLS_ON_LOOPS
from tests.support.push_target import PushTarget
from tests.support.redis_sets import ClusterSet, SentinelSet

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell that starts a run in the background has SIGINT ignored, and the programs that are tested inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)

# a busy machine is slow at drawing examples, and at running them
hypothesis.settings.register_profile(
    "busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("busy")

#: Programs that the tests start, with what makes them say their version.
_PROGRAMS = {
    "buildah": "--version",
    "containerd": "--version",
    "docker-registry": "--version",
    "dockerd": "--version",
    "podman": "--version",
    "radosgw": "--version",
    "redis-server": "--version",
    "skopeo": "--version",
    "umoci": "--version",
}


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that the mirror runs on: it differs from the stock one where sockets are concerned."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
def no_bucket_on_a_loop() -> Iterator[None]:
    """A bucket is far away: no event loop may wait for it (docs/decisions/0018)."""
    CALLS_ON_LOOPS.clear()
    yield
    assert not CALLS_ON_LOOPS, "\n".join(CALLS_ON_LOOPS)


@pytest.fixture(autouse=True)
def no_parameter_is_raised(request: pytest.FixtureRequest) -> Iterator[None]:
    """The parameters of tests live as long as the run. An exception among them that was raised refers to the frames it
    has passed, and so to the files and connections of this test, which other tests of the process then find open.
    """
    yield
    callspec = getattr(request.node, "callspec", None)
    for name, value in callspec.params.items() if callspec else ():
        raised = [one for one in _exceptions(value) if one.__traceback__ is not None]
        assert not raised, (
            f"the parameter {name} has {raised}, which was raised: take its type, and make one in the test"
        )


def _exceptions(value: object) -> Iterator[BaseException]:
    if isinstance(value, BaseException):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _exceptions(one)
    elif isinstance(value, list | tuple | set | frozenset):
        for one in value:
            yield from _exceptions(one)


@pytest.fixture(scope="session")
def sentinel_set() -> Iterator[SentinelSet]:
    """One of this test process, started for the first test that wants it: `redis_sentinels` is for tests."""
    with SentinelSet() as running:
        yield running


@pytest.fixture(scope="session")
def cluster_set() -> Iterator[ClusterSet]:
    """One of this test process, started for the first test that wants it: `redis_cluster` is for tests."""
    with ClusterSet() as running:
        yield running


@pytest.fixture
def redis_sentinels(sentinel_set: SentinelSet) -> SentinelSet:
    """A Redis with Sentinels, whole and empty."""
    sentinel_set.heal()
    return sentinel_set


@pytest.fixture
def redis_cluster(cluster_set: ClusterSet) -> ClusterSet:
    """A Redis Cluster, whole and empty."""
    cluster_set.heal()
    return cluster_set


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    """An upstream that does what a test tells it to."""
    with FakeRegistry() as running:
        yield running


@pytest.fixture
def target() -> Iterator[PushTarget]:
    """A registry without logins that takes pushes, and fails on demand."""
    with PushTarget() as running:
        yield running


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[EventReceiver]:
    """An endpoint that takes every event, until a test says otherwise."""
    with EventReceiver(tmp_path) as running:
        yield running


@pytest.fixture
async def mirror(registry: FakeRegistry, tmp_path: Path) -> AsyncIterator[LiveMirror]:
    """A mirror of `registry` as docker.io, on the test's own loop."""
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}) as running:
        yield running


def pytest_report_header() -> list[str]:
    """Which peers this run was made with: what a failure means depends on it."""
    found = []
    for name, option in _PROGRAMS.items():
        path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
        said = subprocess.run([path, option], capture_output=True, text=True, check=False).stdout if path else ""
        found.append(f"{name}: {said.splitlines()[0] if said else 'missing'}")
    return found


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What the loops of the faults counted, and which faults could not be caused here.

    Not in the faults' own file: where several processes test, the one that prints reads none but this.
    """
    faults = [one for each in terminalreporter.stats.values() for one in each if _is_of_faults(one)]
    counted = [
        f"{one.nodeid.rpartition('::')[2]}: {text}"
        for one in faults
        if one.when == "teardown"
        for name, text in one.user_properties
        if name == "counted"
    ]
    skipped = [one for one in faults if one.skipped]
    if not counted and not skipped:
        return
    terminalreporter.section("faults")
    for line in counted:
        terminalreporter.write_line(line)
    terminalreporter.write_line(f"faults that could not be caused here: {len(skipped)}")
    for one in skipped:
        terminalreporter.write_line(f"  {one.nodeid}: {one.longrepr[2] if isinstance(one.longrepr, tuple) else ''}")


def _is_of_faults(report: Any) -> bool:
    return isinstance(report, pytest.TestReport) and report.nodeid.startswith("tests/faults/")

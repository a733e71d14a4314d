"""Replicas with disks of their own that share a Redis: one of them runs what is due, whatever happens to Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_registry import FakeRegistry, stall, status
from tests.support.live_mirror import Clock, LiveMirror, live_mirror, noise, reached
from tests.support.redis_server import RedisServer
from tests.support.scripted import Stall

_EVERY = 6 * 3600
_RULE: dict[str, Any] = {"name": "app", "from": "docker.io/library/app", "tags": "1.*", "every": "6h"}


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    """One release."""
    with FakeRegistry() as running:
        running.add_image("library/app", "1.0", [noise(4096)])
        yield running


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """Shared by the replicas."""
    with RedisServer() as server:
        yield server


@asynccontextmanager
async def _replicas(
    registry: FakeRegistry, server: RedisServer, tmp_path: Path, **more: Any
) -> AsyncIterator[list[LiveMirror]]:
    """Two, whose first run is due."""
    clock = Clock()
    index = {"url": server.url, "timeout": 5.0}
    rules = [{**_RULE, **more}]
    upstreams = {"docker.io": registry.url}
    async with (
        live_mirror(tmp_path / "one", upstreams, clock=clock, index=index, sync=rules) as one,
        live_mirror(tmp_path / "two", upstreams, clock=clock, index=index, sync=rules) as two,
    ):
        for mirror in (one, two):
            await mirror.app.scheduler.tick()
            await mirror.app.scheduler.idle()
        clock.forward(301)
        yield [one, two]


async def _tick(mirrors: list[LiveMirror]) -> None:
    for mirror in mirrors:
        await mirror.app.scheduler.tick()
    for mirror in mirrors:
        await mirror.app.scheduler.idle()


async def _states(mirrors: list[LiveMirror]) -> list[tuple[str, str | None]]:
    states: list[tuple[str, str | None]] = []
    for mirror in mirrors:
        [rule] = await mirror.app.sync.status()
        states.append((rule["state"], rule["started_by"]))
    return states


def _have(mirrors: list[LiveMirror]) -> list[bool]:
    return [bool(mirror.app.storage.catalog.tags(mirror.app.sync.rules["app"].repo)) for mirror in mirrors]


async def test_one_replica_does_each_run(registry: FakeRegistry, redis_server: RedisServer, tmp_path: Path) -> None:
    """Time after time; the others know that it is done."""
    async with _replicas(registry, redis_server, tmp_path) as mirrors:
        for turn in range(1, 4):
            await _tick(mirrors)
            # who came second has seen that it is being done, and looks again
            mirrors[0].clock.forward(61)
            await _tick(mirrors)
            assert registry.count("tags") == turn
            assert await _states(mirrors) == [("ok", "schedule"), ("ok", "another replica")]
            mirrors[0].clock.forward(_EVERY)
        assert _have(mirrors) == [True, False]


async def test_while_one_runs_the_other_waits(
    registry: FakeRegistry, redis_server: RedisServer, tmp_path: Path
) -> None:
    """It asks again, because the first may not complete the run."""
    gate = Stall()
    registry.fail("blobs", stall(gate))
    async with _replicas(registry, redis_server, tmp_path) as mirrors:
        await mirrors[0].app.scheduler.tick()
        await reached(gate)
        await mirrors[1].app.scheduler.tick()
        await mirrors[1].app.scheduler.idle()
        assert await _states(mirrors) == [("running", "schedule"), ("never ran", None)]
        gate.release()
        await mirrors[0].app.scheduler.idle()
        mirrors[0].clock.forward(61)
        await _tick(mirrors)
        assert await _states(mirrors) == [("ok", "schedule"), ("ok", "another replica")]
        assert registry.count("tags") == 1


async def test_when_one_fails_the_other_tries(
    registry: FakeRegistry, redis_server: RedisServer, tmp_path: Path
) -> None:
    """The other may have more luck, or a disk that is not full."""
    registry.fail("tags", status(404))
    async with _replicas(registry, redis_server, tmp_path) as mirrors:
        await mirrors[0].app.scheduler.tick()
        await mirrors[0].app.scheduler.idle()
        mirrors[1].clock.forward(11)
        await _tick(mirrors)
        assert await _states(mirrors) == [("failed", "schedule"), ("ok", "schedule")]


async def test_when_one_is_gone_the_other_runs(
    registry: FakeRegistry, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Once the first one's lease has expired."""
    async with _replicas(registry, redis_server, tmp_path) as mirrors:
        await _tick(mirrors)
        mirrors[1].clock.forward(_EVERY)
        redis_server.command("FLUSHALL")
        await _tick(mirrors[1:])
        assert _have(mirrors) == [True, True]


async def test_without_redis_each_replica_runs(
    registry: FakeRegistry, redis_server: RedisServer, tmp_path: Path
) -> None:
    """That costs upstream a few more requests."""
    async with _replicas(registry, redis_server, tmp_path) as mirrors:
        redis_server.kill()
        await _tick(mirrors)
        assert await _states(mirrors) == [("ok", "schedule"), ("ok", "schedule")]
        assert _have(mirrors) == [True, True]
        assert mirrors[1].events("sync runs without lease")


async def test_every_replica(registry: FakeRegistry, redis_server: RedisServer, tmp_path: Path) -> None:
    """If the rule says so, each replica runs it for its own disk."""
    async with _replicas(registry, redis_server, tmp_path, every_replica=True) as mirrors:
        await _tick(mirrors)
        assert _have(mirrors) == [True, True]
        assert await _states(mirrors) == [("ok", "schedule"), ("ok", "schedule")]

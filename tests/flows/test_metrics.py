"""What operators read off the metrics while things happen. Values are of the whole test process: differences count."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from mirror.errors import IndexUnavailable
from mirror.index.redis import RedisIndex
from mirror.oci.digest import Digest
from mirror.server.process_metrics import beat_regularly
from tests.support.fake_registry import FakeRegistry, stall, status, wrong_bytes
from tests.support.live_mirror import LiveMirror, live_mirror, noise, reached, until
from tests.support.redis_server import RedisServer
from tests.support.scripted import Stall

_LAYER = noise(1 << 20)
_BLOB = f"/v2/library/app/blobs/{Digest.of(_LAYER)}"


def _value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_flights_and_their_followers(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Readers of a download are counted until they have it; connections while they are open."""
    registry.add_image("library/app", "v1", [_LAYER])
    await mirror.ask("/v2/library/app/manifests/v1")
    before = {name: _value(name) for name in ("mirror_flights", "mirror_followers", "mirror_connections")}
    gate = Stall()
    registry.fail("blobs", stall(gate))
    clients = [asyncio.create_task(mirror.ask(_BLOB)) for _ in range(3)]
    await reached(gate)
    await until(lambda: _value("mirror_followers") - before["mirror_followers"] == 3)
    assert _value("mirror_flights") - before["mirror_flights"] == 1
    # the first request's connection is open still, and used again
    assert _value("mirror_connections") - before["mirror_connections"] == 2
    gate.release()
    assert [len((await one).body) for one in clients] == [len(_LAYER)] * 3
    await mirror.idle()
    await until(lambda: _value("mirror_followers") == before["mirror_followers"])
    assert _value("mirror_flights") == before["mirror_flights"]


async def test_what_is_fetched_ahead(registry: FakeRegistry, tmp_path: Path) -> None:
    """A manifest counts from when it was given out until its blobs have their turn, also when the mirror stops."""
    registry.add_image("library/app", "v1", [_LAYER])
    before = _value("mirror_read_ahead_manifests")
    route = [{"match": "docker.io/**", "prefetch": True}]
    gate = Stall()
    registry.fail("blobs", stall(gate), times=2)
    upstreams = {"docker.io": registry.url}
    async with live_mirror(
        tmp_path / "store", upstreams, route=route, server={"max_concurrent_prefetches": 1}
    ) as mirror:
        await mirror.ask("/v2/library/app/manifests/v1")
        await reached(gate)
        assert _value("mirror_read_ahead_manifests") == before + 1
        gate.release()
        await until(lambda: _value("mirror_read_ahead_manifests") == before)
        await mirror.idle()


async def test_connections_that_close(mirror: LiveMirror) -> None:
    """Are no longer counted, however they end."""
    before = _value("mirror_connections")
    _, writer = await mirror.connect()
    await until(lambda: _value("mirror_connections") == before + 1)
    writer.transport.abort()
    await until(lambda: _value("mirror_connections") == before)
    await mirror.raw(b"nonsense\r\n\r\n")
    await until(lambda: _value("mirror_connections") == before)


async def test_errors_of_upstream_by_name(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Each failed call counts once, by what it was; a 404 is an answer, and no error."""

    def count(error: str) -> float:
        return _value("mirror_upstream_errors_total", upstream="docker.io", error=error)

    digest = registry.add_image("library/app", "v1", [_LAYER])
    unavailable, unknown = count("UpstreamUnavailable"), count("UpstreamNotFound")
    registry.fail("manifests", status(502), times=100)
    await mirror.ask("/v2/library/app/manifests/v1")
    assert count("UpstreamUnavailable") == unavailable + 1
    registry.heal()
    assert (await mirror.ask("/v2/library/app/manifests/none")).status == 404
    assert count("UpstreamNotFound") == unknown == 0
    assert (await mirror.ask(f"/v2/library/app/manifests/{digest}")).status == 200
    mismatch = count("DigestMismatch")
    registry.fail("blobs", wrong_bytes)
    await mirror.ask(_BLOB)
    await mirror.idle()
    assert count("DigestMismatch") == mismatch + 1


async def test_labels_below_a_wildcard(registry: FakeRegistry, tmp_path: Path) -> None:
    """Downloads of a registry under a wildcard are counted for the configured entry: names come from clients."""
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url, "*.pkg.dev": {}}) as mirror:
        assert mirror.app.shared.label("eu.pkg.dev") == "*.pkg.dev"
        assert mirror.app.shared.label("docker.io") == "docker.io"


async def test_the_breaker_of_redis() -> None:
    """Open while Redis is away, once however many calls fail, closed when it answers again or the index is closed."""
    before = _value("mirror_index_breaker_open")
    now = 0.0
    with RedisServer() as server:
        index = RedisIndex(server.address, store_id="0123456789abcdef", budget=5.0, now=lambda: now)
        await index.usage()
        assert _value("mirror_index_breaker_open") == before
        server.kill()
        for _ in range(3):
            with pytest.raises(IndexUnavailable):
                await index.usage()
        assert _value("mirror_index_breaker_open") == before + 1
        server.start()
        now = 100.0
        await index.usage()
        assert _value("mirror_index_breaker_open") == before
        server.kill()
        with pytest.raises(IndexUnavailable):
            await index.usage()
        await index.aclose()
        await index.aclose()
        assert _value("mirror_index_breaker_open") == before


async def test_unfinished_downloads_take_room(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Their bytes are told beside those of whole blobs, from one look of the evictor to the next."""
    partial = mirror.app.storage.layout.ingest(Digest.of(b"another"), "docker.io")
    partial.write_bytes(b"x" * 5000)
    await mirror.app.storage.eviction.rounds.tick()
    assert _value("mirror_store_partial_bytes") == 5000


async def test_the_pulse() -> None:
    """A timer that rings late is counted by how late; a worker counts as one that serves for as long as it does."""
    clock, wanted = 0.0, [0.1, 0.35, 0.05]
    over = asyncio.Event()

    async def sleep(seconds: float) -> None:
        nonlocal clock
        assert seconds == 0.1
        if not wanted:
            over.set()
            await asyncio.Event().wait()
        clock += wanted.pop(0)

    names = (
        "mirror_loop_lag_seconds_sum",
        "mirror_loop_lag_seconds_count",
        "mirror_workers",
        "mirror_worker_starts_total",
    )
    before = {name: _value(name) for name in names}
    task = asyncio.create_task(beat_regularly(sleep=sleep, clock=lambda: clock))
    await over.wait()
    after = {name: _value(name) - before[name] for name in names}
    assert after == {
        "mirror_loop_lag_seconds_sum": pytest.approx(0.25),
        "mirror_loop_lag_seconds_count": 3,
        "mirror_workers": 1,
        "mirror_worker_starts_total": 1,
    }
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert _value("mirror_workers") == before["mirror_workers"]
    assert _value("mirror_process_resident_bytes") > 1 << 20
    assert 3 < _value("mirror_process_open_descriptors") < _value("mirror_process_descriptors_limit")


async def test_every_family_is_of_this_mirror(mirror: LiveMirror) -> None:
    """Ours begin with one word, so that they are found; what runs is told by labels."""
    text = (await mirror.ask("/metrics")).body.decode()
    families = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
    assert {name for name in families if not name.startswith(("mirror_", "process_", "python_"))} == set()
    assert re.search(r'^mirror_build_info\{python="3[^"]*",version="[^"]+"\} 1\.0$', text, re.MULTILINE)

"""Blobs that are fetched because a manifest had to be fetched, before anybody asks for them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror.errors import StoreFull
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.image_names import Image
from mirror.prefetch.batch import prefetch
from tests.support.fake_registry import FakeRegistry, stall, status
from tests.support.live_mirror import LiveMirror, live_mirror, noise, reached, until
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import eventually
from tests.support.scripted import Stall

_AT = "/v2/library/app"
_ROUTE = [{"match": "docker.io/**", "prefetch": True}]


@pytest.fixture
async def eager(registry: FakeRegistry, tmp_path: Path) -> AsyncIterator[LiveMirror]:
    """A mirror of `registry` that fetches ahead, two blobs at once."""
    upstreams = {"docker.io": registry.url}
    async with live_mirror(
        tmp_path / "store", upstreams, route=_ROUTE, server={"max_concurrent_prefetches": 2}
    ) as running:
        yield running


async def _quiet(mirror: LiveMirror) -> None:
    """Returns once nothing is fetched ahead, nor will be for what was asked so far."""
    assert mirror.app.shared.ahead
    ahead = mirror.app.shared.ahead
    await until(lambda: not ahead._tasks)


def _asked(registry: FakeRegistry) -> list[str]:
    """Digests of the blobs that upstream was asked for, in order."""
    return [request.path.rpartition("/")[2] for request in registry.of_kind("blobs")]


def _blobs(layers: list[bytes], config: bytes = b"{}") -> list[str]:
    return [str(Digest.of(content)) for content in (config, *layers)]


async def test_a_client_finds_its_layers_under_way(registry: FakeRegistry, eager: LiveMirror) -> None:
    """The manifest is answered although its layers stand still; the client's own requests join, each blob is asked for
    once.
    """
    layers = [noise(300_000, 1), noise(300_000, 2)]
    registry.add_image("library/app", "v1", layers)
    gate = Stall()
    registry.fail("blobs", stall(gate), times=2)
    assert (await eager.ask(f"{_AT}/manifests/v1")).cache.startswith("fwd=")
    await reached(gate)
    clients = [asyncio.create_task(eager.ask(f"{_AT}/blobs/{digest}")) for digest in _blobs(layers)]
    await until(lambda: sum(flight.followers == 2 for flight in eager.app.shared.flights.active()) == 2)
    gate.release()
    answers = await asyncio.gather(*clients)
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert sum("collapsed" in answer.cache for answer in answers) >= 2
    assert Counter(_asked(registry)) == Counter(_blobs(layers))


async def test_in_order_and_bounded(registry: FakeRegistry, eager: LiveMirror) -> None:
    """Config first, then layers as the manifest names them, never more at once than was said."""
    layers = [noise(1000, number) for number in range(6)]
    registry.add_image("library/app", "v1", layers)
    gates = [Stall() for _ in range(7)]
    for gate in gates:
        registry.fail("blobs", stall(gate))
    await eager.ask(f"{_AT}/manifests/v1")
    for number, gate in enumerate(gates):
        await reached(gate)
        if number + 1 < len(gates):
            await reached(gates[number + 1])
        assert len(eager.app.shared.flights.active()) <= 2
        assert len(_asked(registry)) <= number + 2
        gate.release()
    await _quiet(eager)
    assert sorted(_asked(registry)[:2]) == sorted(_blobs(layers)[:2])
    assert _asked(registry)[2:] == _blobs(layers)[2:]


async def test_by_digest(registry: FakeRegistry, eager: LiveMirror) -> None:
    """A manifest that is asked for by digest is as good as one by tag."""
    root = registry.add_image("library/app", None, [b"layer"])
    await eager.ask(f"{_AT}/manifests/{root}")
    await _quiet(eager)
    assert sorted(_asked(registry)) == sorted(_blobs([b"layer"]))


async def test_what_fetches_nothing(registry: FakeRegistry, eager: LiveMirror) -> None:
    """A HEAD, an index, and a manifest that was here: nobody asked for blobs."""
    root = registry.add_image("library/app", "v1", [b"layer"])
    registry.add_index("library/app", "all", [root])
    await eager.ask(f"{_AT}/manifests/v1", method="HEAD")
    await eager.ask(f"{_AT}/manifests/{root}", method="HEAD")
    await eager.ask(f"{_AT}/manifests/all")
    await _quiet(eager)
    assert not _asked(registry)

    await eager.ask(f"{_AT}/manifests/v1")
    await _quiet(eager)
    for digest in _blobs([b"layer"]):
        eager.blob_file(Digest.parse(digest)).unlink()
    registry.forget()
    eager.clock.forward(1000)
    assert "fwd" not in (await eager.ask(f"{_AT}/manifests/{root}")).cache
    await _quiet(eager)
    assert not _asked(registry)


async def test_only_where_a_route_says_so(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """By default nothing is fetched that nobody asked for."""
    registry.add_image("library/app", "v1", [b"layer"])
    await mirror.ask(f"{_AT}/manifests/v1")
    await _quiet(mirror)
    assert not _asked(registry)


async def test_never_what_is_here(registry: FakeRegistry, eager: LiveMirror) -> None:
    """A layer that another image brought is not touched again."""
    registry.add_image("library/app", "v1", [b"shared", b"one"], config=b"1")
    registry.add_image("team/app", "v1", [b"shared", b"two"], config=b"2")
    await eager.ask(f"{_AT}/manifests/v1")
    await _quiet(eager)
    registry.forget()
    await eager.ask("/v2/team/app/manifests/v1")
    await _quiet(eager)
    assert sorted(_asked(registry)) == sorted(_blobs([b"two"], b"2"))


async def test_many_ask_for_one_manifest(registry: FakeRegistry, eager: LiveMirror) -> None:
    """Its blobs are still fetched once."""
    registry.add_image("library/app", "v1", [noise(1000, 1)])
    await asyncio.gather(*(eager.ask(f"{_AT}/manifests/v1") for _ in range(20)))
    await _quiet(eager)
    assert sorted(_asked(registry)) == sorted(_blobs([noise(1000, 1)]))


async def test_what_the_store_could_not_hold(registry: FakeRegistry, tmp_path: Path) -> None:
    """A layer larger than the store is not begun, nor are those that would push out the first ones of the same image.
    A layer of unknown size might be one of them.
    """
    fits, huge, more = noise(600_000, 1), noise(2_000_000, 2), noise(700_000, 3)
    registry.add_image("library/app", "v1", [huge, fits, more])
    schema_1 = {"schemaVersion": 1, "fsLayers": [{"blobSum": str(registry.add_blob("library/app", b"old"))}]}
    old = registry.add_manifest(
        "library/app", json.dumps(schema_1).encode(), "application/vnd.docker.distribution.manifest.v1+json"
    )
    upstreams = {"docker.io": registry.url}
    async with live_mirror(tmp_path / "store", upstreams, route=_ROUTE, store={"capacity": "1MB"}) as mirror:
        await mirror.ask(f"{_AT}/manifests/v1")
        await mirror.ask(f"{_AT}/manifests/{old}")
        await _quiet(mirror)
    assert sorted(_asked(registry)) == sorted(_blobs([fits]))


async def test_not_while_the_store_takes_nothing(
    registry: FakeRegistry, eager: LiveMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be kept would be fetched twice."""

    def full(*_: object) -> None:
        raise StoreFull("on purpose")

    monkeypatch.setattr(eager.app.storage.store, "put", full)
    registry.add_image("library/app", "v1", [b"layer"])
    assert (await eager.ask(f"{_AT}/manifests/v1")).status == 200
    await _quiet(eager)
    assert not _asked(registry)


async def test_never_what_may_not_be_pulled(registry: FakeRegistry, tmp_path: Path) -> None:
    """A manifest that a rule refuses leads to nothing; of one that is given, blobs that a list denies stay where they
    are.
    """
    registry.add_image("library/app", "large", [noise(100_000)])
    registry.add_image("library/app", "v1", [b"denied", b"fine"], config=b"1")
    route = [{**_ROUTE[0], "max_size": "50kB"}]
    deny = {"deny": [f"docker.io/library/app@{Digest.of(b'denied')}"]}
    upstreams = {"docker.io": registry.url}
    async with live_mirror(tmp_path / "store", upstreams, route=route, content=deny) as mirror:
        assert (await mirror.ask(f"{_AT}/manifests/large")).status == 403
        await _quiet(mirror)
        assert not _asked(registry)
        assert (await mirror.ask(f"{_AT}/manifests/v1")).status == 200
        await _quiet(mirror)
    assert sorted(_asked(registry)) == sorted(_blobs([b"fine"], b"1"))


async def test_a_failure_reaches_no_client(registry: FakeRegistry, eager: LiveMirror) -> None:
    """The manifest is answered, the other blobs come, the log has a line at debug level, and what the client then asks
    for itself is answered as ever.
    """
    registry.add_image("library/app", "v1", [b"first", b"second"])
    del registry.repository("library/app").blobs[Digest.of(b"first")]
    assert (await eager.ask(f"{_AT}/manifests/v1")).status == 200
    await _quiet(eager)
    assert [line["level"] for line in eager.events("read-ahead skipped")] == ["debug"]
    assert eager.blob_file(Digest.of(b"second")).exists()
    assert (await eager.ask(f"{_AT}/blobs/{Digest.of(b'first')}")).code == "BLOB_UNKNOWN"
    assert not [line for line in eager.log if line["level"] in ("warning", "error")]


async def test_upstream_fails_ahead_and_not_later(registry: FakeRegistry, eager: LiveMirror) -> None:
    """What failed before anybody asked is simply tried again by whoever asks."""
    registry.add_image("library/app", "v1", [b"layer"])
    registry.fail("blobs", status(403), times=2)
    await eager.ask(f"{_AT}/manifests/v1")
    await _quiet(eager)
    assert len(eager.events("read-ahead skipped")) == 2
    assert (await eager.ask(f"{_AT}/blobs/{Digest.of(b'layer')}")).body == b"layer"


async def test_the_mirror_stops_in_the_middle(registry: FakeRegistry, tmp_path: Path) -> None:
    """No task is left, what has come stays as a partial, and what waited for its turn is never begun."""
    layers = [noise(1 << 20, number) for number in range(5)]
    registry.add_image("library/app", "v1", layers, config=noise(1 << 20, 99))
    gates = [Stall(), Stall(), Stall()]
    for gate in gates:
        registry.fail("blobs", stall(gate, after=1 << 19))
    upstreams = {"docker.io": registry.url}
    before = asyncio.all_tasks()
    async with live_mirror(
        tmp_path / "store", upstreams, route=_ROUTE, server={"max_concurrent_prefetches": 2}
    ) as mirror:
        await mirror.ask(f"{_AT}/manifests/v1")
        await reached(gates[0])
        await reached(gates[1])
        gates[0].release()
        await reached(gates[2])
        await until(lambda: len(_partials(mirror)) == 2)
        await until(lambda: all(file.stat().st_size == 1 << 19 for file in _partials(mirror)))
        ahead = mirror.app.shared.ahead
    assert ahead
    assert not ahead._tasks
    # the test's client, for one, may still say goodbye to its connections
    await until(lambda: asyncio.all_tasks() <= before)
    assert len(_partials(mirror)) == 2
    assert len(_asked(registry)) == 3
    for gate in gates:
        gate.release()
    root = registry.add_image("library/app", "v2", [b"late"])
    async with live_mirror(tmp_path / "store", upstreams, route=_ROUTE) as again:
        assert again.app.shared.ahead
        await again.app.shared.ahead.aclose()
        assert (await again.ask(f"{_AT}/manifests/{root}")).status == 200
        assert not again.app.shared.ahead._tasks


def _partials(mirror: LiveMirror) -> list[Path]:
    return [file for file in mirror.app.storage.layout.ingests.iterdir() if file.suffix != ".state"]


async def test_a_prefetch_keeps_to_its_own_bound(registry: FakeRegistry, eager: LiveMirror) -> None:
    """Who brings an image in as a whole is not helped from the side."""
    registry.add_image("library/app", "v1", [noise(1000, number) for number in range(5)])
    most = 0

    def look(*_: object) -> None:
        nonlocal most
        most = max(most, len(eager.app.shared.flights.active()))

    image = Image(Repo("docker.io", "library/app"), tag="v1")
    assert (await prefetch(eager.app.router.guarded, [image], blobs_at_once=1, report=look)).ok
    assert most == 1


def test_over_several_workers(registry: FakeRegistry, tmp_path: Path) -> None:
    """Whichever worker had the manifest and whichever is asked for a layer: upstream is asked once for each blob."""
    layers = [noise(1 << 20, number) for number in range(6)]
    registry.add_image("library/app", "v1", layers)
    config = write_config(tmp_path, {"docker.io": registry.url}, workers=2)
    config.write_text(config.read_text().replace("tag_ttl", "prefetch = true\ntag_ttl"))
    with MirrorProcess(config) as mirror:
        mirror.wait_for_workers(2)
        assert mirror.get(f"{_AT}/manifests/v1")[0] == 200
        for digest in _blobs(layers):
            assert mirror.get(f"{_AT}/blobs/{digest}")[0] == 200
        eventually(lambda: not list((tmp_path / "store/ingest").glob("*-sha256-*")), "every fill is over")
    assert Counter(_asked(registry)) == Counter(_blobs(layers))

"""Small parts of cold layers in a cluster: each byte comes from upstream once, whichever replica is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.fills.span_blocks import BLOCK
from tests.flows.test_lazy_pulls import asked, each_byte_once, is_unverified
from tests.support.fake_registry import FakeRegistry, stall, status
from tests.support.live_cluster import LiveReplica, in_order, live_cluster
from tests.support.live_mirror import Got, noise, until
from tests.support.scripted import Stall

_LAYER = noise(8_000_000)
_DIGEST = Digest.of(_LAYER)
_AT = f"/v2/library/app/blobs/{_DIGEST}"
_REPO = Repo("docker.io", "library/app")
_ROUTE = [{"match": "docker.io/**", "ranges": "lazy", "lazy_share": 1.0, "lazy_pause": "0s"}]


@pytest.fixture(autouse=True)
def _content(registry: FakeRegistry) -> None:
    registry.add_image("library/app", "v1", [_LAYER])


async def _know(replicas: Sequence[LiveReplica]) -> list[LiveReplica]:
    """The manifest says the size of the layer. Returns the owner of the layer first."""
    for replica in replicas:
        assert (await replica.mirror.ask("/v2/library/app/manifests/v1")).status == 200
    return in_order(replicas, "docker.io", _DIGEST)


async def _part(replica: LiveReplica, first: int, last: int) -> Got:
    got = await replica.mirror.ask(_AT, headers={"Range": f"bytes={first}-{last}"})
    assert (got.status, got.body == _LAYER[first : last + 1]) == (206, True), got.body[:200]
    return got


async def test_overlapping_parts_of_three_replicas(tmp_path: Path, registry: FakeRegistry) -> None:
    async with live_cluster(tmp_path, {"docker.io": registry.url}, route=_ROUTE) as replicas:
        ordered = await _know(replicas)
        parts = [(replica, at * BLOCK + 5, (at + 12) * BLOCK) for at in (3, 9, 20, 30) for replica in ordered]
        answers = await asyncio.gather(*(_part(*part) for part in parts))
        assert all(map(is_unverified, answers))
        assert each_byte_once(asked(registry, _DIGEST, len(_LAYER)))
        assert not any(replica.mirror.app.shared.flights.active() for replica in replicas)


async def test_the_others_take_what_the_owner_has(tmp_path: Path, registry: FakeRegistry) -> None:
    async with live_cluster(tmp_path, {"docker.io": registry.url}, route=_ROUTE) as replicas:
        owner, second, third = await _know(replicas)
        for replica in (third, owner, second):
            assert is_unverified(await _part(replica, 5_000_000, 5_100_000))
        assert len(asked(registry, _DIGEST, len(_LAYER))) == 1


async def test_an_owner_that_waits_for_upstream_says_so(tmp_path: Path, registry: FakeRegistry) -> None:
    """Otherwise the replica that waits for it would take it for one that does not fetch the part, and ask upstream."""
    gate = Stall()
    registry.fail("blobs", stall(gate, 0))
    async with live_cluster(tmp_path, {"docker.io": registry.url}, route=_ROUTE) as replicas:
        owner, second, _ = await _know(replicas)
        waiting = asyncio.create_task(_part(second, 5_000_000, 5_100_000))
        await asyncio.to_thread(gate.reached.wait, 60)
        reads = second.mirror.app.shared.peers(_REPO)
        assert reads is not None
        # nothing of it could be sent, but it comes
        assert await reads.peers.offset(owner.address, _REPO, _DIGEST) == 0
        gate.release()
        assert is_unverified(await waiting)
        assert len(asked(registry, _DIGEST, len(_LAYER))) == 1
        assert await reads.peers.offset(owner.address, _REPO, _DIGEST) is None


async def test_without_the_owner_upstream_is_asked(tmp_path: Path, registry: FakeRegistry) -> None:
    async with live_cluster(tmp_path, {"docker.io": registry.url}, route=_ROUTE) as replicas:
        owner, second, _ = await _know(replicas)
        await owner.end()
        assert is_unverified(await _part(second, 5_000_000, 5_100_000))


async def test_an_owner_that_cannot_have_it_breaks_off(tmp_path: Path, registry: FakeRegistry) -> None:
    """The replica asks upstream itself, with what it may."""
    registry.fail("blobs", status(500), times=1)
    async with live_cluster(tmp_path, {"docker.io": registry.url}, route=_ROUTE) as replicas:
        _, second, _ = await _know(replicas)
        assert is_unverified(await _part(second, 5_000_000, 5_100_000))


async def test_the_whole_follows_everywhere_and_comes_once(tmp_path: Path, registry: FakeRegistry) -> None:
    route = [{**_ROUTE[0], "lazy_share": 0.0}]
    async with live_cluster(tmp_path, {"docker.io": registry.url}, route=route) as replicas:
        ordered = await _know(replicas)
        await asyncio.gather(*(_part(replica, 5_000_000, 5_100_000) for replica in ordered))
        for replica in ordered:
            await replica.mirror.landed(_DIGEST)
            assert replica.mirror.blob_file(_DIGEST).read_bytes() == _LAYER
        fetched = asked(registry, _DIGEST, len(_LAYER))
        assert each_byte_once(fetched)
        assert sum(stop - start for start, stop in fetched) == len(_LAYER)
        ingests = [tmp_path / f"replica-{number}" / "ingest" for number in range(3)]
        await until(lambda: not any([*folder.iterdir()] for folder in ingests))

"""Rows 59, 125 and 126, where a test has to know what each replica waits for: what its clients see is in
`test_replica_exchange.py`, of replicas as users run them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from tests.support.fake_registry import FakeRegistry, stall
from tests.support.live_cluster import LiveReplica, in_order, live_cluster
from tests.support.live_mirror import Got, noise, reached, until
from tests.support.scripted import Stall

_CONTENT = noise(1 << 20)
_DIGEST = Digest.of(_CONTENT)
_HALF = len(_CONTENT) // 2
_BLOB = f"/v2/library/app/blobs/{_DIGEST}"
_TAG = "/v2/library/app/manifests/v1"


@pytest.fixture
async def replicas(registry: FakeRegistry, tmp_path: Path) -> AsyncIterator[Sequence[LiveReplica]]:
    """Three, the owner of the blob first."""
    registry.add_image("library/app", "v1", [_CONTENT])
    async with live_cluster(tmp_path, {"docker.io": registry.url}) as made:
        yield in_order(made, "docker.io", _DIGEST)


async def _pull_tag(replicas: Sequence[LiveReplica]) -> None:
    for replica in replicas:
        assert (await replica.mirror.ask(_TAG)).status == 200


def _starts(registry: FakeRegistry) -> list[int]:
    """From which byte on upstream was asked for the blob, each time."""
    return [request.start for request in registry.of_kind("blobs", "GET") if str(_DIGEST) in request.target]


def _expect_whole(answers: Sequence[Got]) -> None:
    assert all(got.status == 200 and got.whole and got.body == _CONTENT for got in answers)


async def test_59_three_replicas_ask_once_for_an_unknown_blob(
    registry: FakeRegistry, replicas: Sequence[LiveReplica]
) -> None:
    """Row 59: 200 clients over three replicas want one cold blob: upstream sends 1.00x of it, although the replicas
    have seen no manifest that names it.
    """
    gate = Stall()
    registry.fail("blobs", stall(gate, after=_HALF))
    asking = [asyncio.create_task(replicas[number % 3].mirror.ask(_BLOB)) for number in range(200)]
    # the two others follow the owner
    await until(lambda: sum(replica.followers for replica in replicas) == 202)
    gate.release()
    _expect_whole(await asyncio.gather(*asking))
    assert _starts(registry) == [0]
    for replica in replicas:
        await replica.mirror.landed(_DIGEST)
        _expect_whole([await replica.mirror.ask(_BLOB)])
    assert len(registry.of_kind("blobs")) == 1


async def test_a_replica_that_has_the_blob_gives_it(registry: FakeRegistry, replicas: Sequence[LiveReplica]) -> None:
    """The answer says where it came from, and it is there afterwards."""
    owner, second, third = replicas
    await _pull_tag(replicas)
    assert (await owner.mirror.ask(_BLOB)).status == 200
    got = await third.mirror.ask(_BLOB)
    assert "detail=peer" in got.headers["Cache-Status"]
    await third.mirror.landed(_DIGEST)
    # one that comes after it in the order is not asked
    await owner.end()
    _expect_whole([await second.mirror.ask(_BLOB)])
    assert _starts(registry) == [0, 0]


async def test_a_repository_that_may_not_have_the_blob(registry: FakeRegistry, replicas: Sequence[LiveReplica]) -> None:
    """That the owner has it, or is fetching it, for another repository gives no right to it: it asks upstream."""
    owner, _, third = replicas
    registry.add_blob("library/other", b"another blob")
    gate = Stall()
    await _pull_tag([owner])
    registry.fail("blobs", stall(gate, after=_HALF))
    fetching = asyncio.create_task(owner.mirror.ask(_BLOB))
    await reached(gate)
    other = _BLOB.replace("library/app", "library/other")
    asking = asyncio.create_task(third.mirror.ask(other))
    await until(lambda: any("library/other" in request.target for request in registry.requests))
    gate.release()
    assert (await asking).status == 404
    _expect_whole([await fetching])
    assert (await third.mirror.ask(other)).status == 404


async def test_125_the_owner_is_frozen_in_the_middle(registry: FakeRegistry, replicas: Sequence[LiveReplica]) -> None:
    """Row 125: no pull fails, and no byte but those after the silence is fetched again. The last replica does not leave
    the second one, which waits as well.
    """
    owner, second, third = replicas
    await _pull_tag(replicas)
    gate = Stall()
    registry.fail("blobs", stall(gate, after=_HALF))
    asking = [asyncio.create_task(replica.mirror.ask(_BLOB)) for replica in (second, third) for _ in range(5)]
    await until(lambda: all(_received(replica) == _HALF for replica in (second, third)))
    owner.freeze()
    # the last one notices first, and follows the second
    await third.doubts(owner)
    await until(lambda: second.followers == 6)
    assert not any(task.done() for task in asking)
    await second.doubts(owner)
    _expect_whole(await asyncio.gather(*asking))
    assert _starts(registry) == [0, _HALF]
    gate.release()


def _received(replica: LiveReplica) -> int:
    return sum(flight.received for flight in replica.mirror.app.shared.flights.active())


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "down"])
async def test_125_the_owner_is_gone_before(
    registry: FakeRegistry, replicas: Sequence[LiveReplica], frozen: bool
) -> None:
    """Row 125: the next one in the order fetches the blob for both."""
    owner, second, third = replicas
    await _pull_tag(replicas)
    if frozen:
        owner.freeze()
    else:
        await owner.end()
    asking = [asyncio.create_task(replica.mirror.ask(_BLOB)) for replica in (second, third) for _ in range(5)]
    if frozen:
        await second.doubts(owner)
        await third.doubts(owner)
    _expect_whole(await asyncio.gather(*asking))
    assert _starts(registry) == [0]
    assert not third.cluster.members.is_up(owner.address)


async def test_125_a_secret_that_differs(registry: FakeRegistry, replicas: Sequence[LiveReplica]) -> None:
    """Row 125: a replica whose requests are refused works alone."""
    _, _, third = replicas
    await _pull_tag(replicas)
    third.cluster.secrets._secrets = (b"x" * 40,)
    _expect_whole([await third.mirror.ask(_BLOB)])
    assert _starts(registry) == [0]


async def test_126_replicas_see_different_members(registry: FakeRegistry, replicas: Sequence[LiveReplica]) -> None:
    """Row 126: one that does not know the owner yet takes the next for it; one that knows nobody fetches by itself.
    That is one more download, and never a wrong byte; nobody waits in a circle.
    """
    owner, second, third = replicas
    await _pull_tag(replicas)
    gate = Stall()
    registry.fail("blobs", stall(gate, after=_HALF))
    third.cluster.members.replace([third.address, second.address])
    asking = [asyncio.create_task(replica.mirror.ask(_BLOB)) for replica in replicas for _ in range(5)]
    await until(lambda: all(_received(replica) == _HALF for replica in replicas))
    assert _starts(registry) == [0]
    # a new member, and one that leaves, while the blob is under way
    owner.cluster.members.replace([owner.address, third.address])
    second.cluster.members.replace([second.address])
    asking += [asyncio.create_task(replica.mirror.ask(_BLOB)) for replica in replicas]
    gate.release()
    _expect_whole(await asyncio.gather(*asking))
    assert _starts(registry) == [0]


async def test_126_a_replica_that_knows_nobody(registry: FakeRegistry, replicas: Sequence[LiveReplica]) -> None:
    """Row 126: two owners, each by its own view: at most one more fetch."""
    _, _, third = replicas
    await _pull_tag(replicas)
    third.cluster.members.replace([third.address])
    _expect_whole(await asyncio.gather(*(replica.mirror.ask(_BLOB) for replica in replicas)))
    assert len(_starts(registry)) == 2


async def test_blobs_of_callers_are_not_exchanged(registry: FakeRegistry, tmp_path: Path) -> None:
    """Where upstream checks each caller's credentials, each replica asks it: they never leave the replica."""
    registry.add_image("library/app", "v1", [_CONTENT])
    upstream = {"url": registry.url, "access": "verify"}
    async with live_cluster(tmp_path, {"quay.io": registry.url, "docker.io": upstream}) as made:
        replicas = in_order(made, "docker.io", _DIGEST)
        path = _BLOB.replace("/v2/", "/v2/docker.io/")
        _expect_whole([await replicas[0].mirror.ask(path)])
        once = len(_starts(registry))
        for replica in replicas[1:]:
            got = await replica.mirror.ask(path)
            _expect_whole([got])
            assert "detail" not in got.headers["Cache-Status"]
        assert len(_starts(registry)) == 3 * once

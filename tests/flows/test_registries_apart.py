"""One blob that two registries have, of which one drips, lies or leaves rubbish (row 135). Nobody asked for it before.

Clients of the bad one are at one mirror, those of the good one at the same or at another on the same store, as workers
of one mirror are.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from tests.support.fake_registry import FakeRegistry, Fault, stall, status
from tests.support.live_mirror import Got, LiveMirror, live_mirror, noise, reached, until
from tests.support.scripted import Close, Script, Stall, head

_LAYER = noise(3 << 20)
_SIZE = len(_LAYER)
_DIGEST = Digest.of(_LAYER)
_BAD = "bad.example.com"
_AT = f"/v2/library/app/blobs/{_DIGEST}"
_AT_BAD = f"{_AT}?ns={_BAD}"


@pytest.fixture
def bad() -> Iterator[FakeRegistry]:
    """The registry whose bytes are of no use."""
    with FakeRegistry() as registry:
        registry.add_blob("library/app", _LAYER)
        yield registry


@pytest.fixture(params=[1, 2], ids=["one process", "two processes"])
async def mirrors(
    request: pytest.FixtureRequest, registry: FakeRegistry, bad: FakeRegistry, tmp_path: Path
) -> AsyncIterator[tuple[LiveMirror, LiveMirror]]:
    """Where clients of the bad registry are, and where those of the good one are."""
    registry.add_blob("library/app", _LAYER)
    upstreams = {"docker.io": registry.url, _BAD: bad.url}
    async with live_mirror(tmp_path / "store", upstreams) as one, live_mirror(tmp_path / "store", upstreams) as two:
        yield one, one if request.param == 1 else two


def _saying(script: Callable[[], Script]) -> Fault:
    return lambda request, answer: script()


def _is_whole(answer: Got) -> None:
    assert (answer.status, answer.whole, answer.headers["Content-Length"]) == (200, True, str(_SIZE))
    assert answer.body == _LAYER


async def test_135_one_drips(bad: FakeRegistry, mirrors: tuple[LiveMirror, LiveMirror]) -> None:
    """A pull from the good one takes as long as the good one takes, and the bad one's clients are done with it."""
    gate = Stall()
    bad.fail("blobs", stall(gate, after=1200))
    held_up = asyncio.create_task(mirrors[0].ask(_AT_BAD))
    await reached(gate)
    _is_whole(await mirrors[1].ask(_AT))
    _is_whole(await held_up)
    gate.release()


async def test_135_one_leaves_rubbish(
    registry: FakeRegistry, bad: FakeRegistry, mirrors: tuple[LiveMirror, LiveMirror]
) -> None:
    """1 MB of other bytes in its partial spoils none of three pulls from the good one."""
    bad.fail("blobs", _saying(lambda: [head(200, {"Content-Length": str(_SIZE)}), bytes(1 << 20), Close()]))
    bad.fail("blobs", status(404), times=1000)
    assert not (await mirrors[0].ask(_AT_BAD)).whole
    await mirrors[0].idle()
    left = mirrors[0].app.storage.layout.ingest(_DIGEST, _BAD)
    assert left.stat().st_size == 1 << 20
    for _ in range(3):
        _is_whole(await mirrors[1].ask(_AT))
    assert [request.start for request in registry.of_kind("blobs")] == [0]


async def test_135_one_tells_another_size(bad: FakeRegistry, mirrors: tuple[LiveMirror, LiveMirror]) -> None:
    """Answers to the good one's clients have the right Content-Length; the bad one's break, and the next is right."""
    gate = Stall()
    bad.fail("blobs", _saying(lambda: [head(200, {"Content-Length": str(_SIZE + 5)}), _LAYER[:5000], gate]))
    asking = asyncio.create_task(mirrors[0].ask(_AT_BAD))
    await reached(gate)
    _is_whole(await mirrors[1].ask(_AT))
    lied_to = await asking
    assert (lied_to.headers["Content-Length"], lied_to.whole) == (str(_SIZE + 5), False)
    gate.release()
    _is_whole(await mirrors[0].ask(_AT_BAD))


async def test_135_both_are_shown(
    bad: FakeRegistry, registry: FakeRegistry, mirrors: tuple[LiveMirror, LiveMirror]
) -> None:
    """Whoever looks at the downloads under way sees which registry is the slow one."""
    gates = Stall(), Stall()
    bad.fail("blobs", stall(gates[0], after=1200))
    registry.fail("blobs", stall(gates[1], after=1 << 20))
    asking = [asyncio.create_task(mirrors[0].ask(_AT_BAD)), asyncio.create_task(mirrors[1].ask(_AT))]
    for gate in gates:
        await reached(gate)
    under_way = [flight for mirror in {*mirrors} for flight in mirror.app.shared.flights.active()]
    await until(lambda: sorted(flight.received for flight in under_way) == [1200, 1 << 20])
    assert {(flight.upstream, flight.received) for flight in under_way} == {(_BAD, 1200), ("docker.io", 1 << 20)}
    gates[1].release()
    for one in asking:
        _is_whole(await one)
    gates[0].release()

"""An upstream that refuses connections for a while in the middle of a blob, as clients of a whole mirror see it
(row 136).
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from tests.support.fake_registry import FakeRegistry, stall
from tests.support.live_mirror import Got, LiveMirror, live_mirror, noise, reached, until
from tests.support.scripted import Stall

_LAYER = noise(3 << 20)
_NAME = "library/app"
_AT = f"/v2/{_NAME}/blobs/{Digest.of(_LAYER)}"


def _is_whole(answer: Got) -> None:
    assert (answer.status, answer.whole) == (200, True)


async def _refused(*mirrors: LiveMirror) -> None:
    """Once upstream has refused to go on with a blob."""
    await until(lambda: any(line["failures"] > 1 for one in mirrors for line in one.events("fill interrupted")))


@pytest.mark.parametrize("of", [0, 1], ids=["the same worker", "another worker"])
async def test_136_clients_wait_with_the_fill(registry: FakeRegistry, tmp_path: Path, of: int) -> None:
    """Who follows it, who asks for it while it waits, also at another worker, and who asks for the next blob."""
    registry.add_blob(_NAME, _LAYER)
    after = registry.add_blob(_NAME, b"another layer" * 10_000)
    gate = Stall()
    registry.fail("blobs", stall(gate, after=1 << 20))
    upstreams = {"docker.io": registry.url}
    async with live_mirror(tmp_path / "store", upstreams) as one, live_mirror(tmp_path / "store", upstreams) as two:
        asked_next = (one, two)[of]
        asking = [asyncio.create_task(one.ask(_AT))]
        await reached(gate)
        registry.away()
        await _refused(one, two)
        asking += [asyncio.create_task(mirror.ask(_AT)) for mirror in (one, two)]
        await until(lambda: sum(flight.followers for flight in one.app.shared.flights.active()) == 2)
        await until(lambda: sum(flight.followers for flight in two.app.shared.flights.active()) == 1)
        asking.append(asyncio.create_task(asked_next.ask(f"/v2/{_NAME}/blobs/{after}")))
        await until(lambda: len(asked_next.app.shared.flights.active()) == 2)
        if asked_next is two:
            # it waits because the other worker is receiving, which ends soon after upstream is back
            await until(lambda: any(line["digest"] == str(after) for line in two.events("fill interrupted")))
        registry.back()
        one.clock.forward(5.0)
        two.clock.forward(5.0)
        for answer in await asyncio.gather(*asking):
            _is_whole(answer)


async def test_136_no_wait_if_configured(registry: FakeRegistry, tmp_path: Path) -> None:
    """`wait_for_upstream = 0`: the answer breaks as soon as upstream has refused a few times."""
    registry.add_blob(_NAME, _LAYER)
    gate = Stall()
    registry.fail("blobs", stall(gate, after=1 << 20))
    upstreams, server = {"docker.io": registry.url}, {"wait_for_upstream": 0}
    async with live_mirror(tmp_path / "store", upstreams, server=server) as mirror:
        asking = asyncio.create_task(mirror.ask(_AT))
        await reached(gate)
        registry.away()
        assert not (await asking).whole
        await mirror.idle()
        assert (await mirror.ask(_AT)).status == 503

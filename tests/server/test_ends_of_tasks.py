"""Whoever ends tasks waits for all of them, whatever happens meanwhile: what they use is closed next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mirror.aio.background import BackgroundTasks
from mirror.aio.singleflight import SingleFlight
from mirror.errors import StoreError
from mirror.events.deliveries import EventDeliveries
from mirror.events.endpoint_queue import EndpointQueue
from mirror.fills.flights import Flights
from mirror.oci.digest import Digest
from mirror.peers.peer_notices import PeerNotices
from mirror.replication import target
from tests.support.bucket_mirror import bucket_mirror
from tests.support.cancelling import cancelled_again_and_again, ends_slowly
from tests.support.memory_bucket import MemoryBucket
from tests.support.push_client import hosting_mirror

_Task = asyncio.Task[None]

#: How each of them ends a task that runs.
_ENDS: dict[str, Callable[[_Task], Awaitable[None]]] = {
    "notices": lambda task: PeerNotices.aclose(_holder(_sending={"a": task})),
    "deliveries": lambda task: EndpointQueue.stop(_holder(_sending={"a": task})),
    "an endpoint's queue": lambda task: EventDeliveries._deliver_while(
        _holder(), _holder(lost=asyncio.Event()), _holder(run=lambda _: _waits_for(task)), asyncio.Event()
    ),
    "copies": lambda task: target._all([_waits_for(task)]),
    "flights": lambda task: Flights.aclose(_holder(_tasks={task: _holder(landed=False)})),
    "flights that have landed": lambda task: Flights.aclose(_holder(_tasks={task: _holder(landed=True)})),
}


def _holder(**held: object) -> Any:
    return SimpleNamespace(**held)


async def _waits_for(task: _Task) -> None:
    await task


@pytest.mark.parametrize("way", _ENDS)
async def test_it_is_cancelled_again_while_a_task_ends(way: str) -> None:
    may_end, has_ended = asyncio.Event(), asyncio.Event()
    is_landed = way == "flights that have landed"

    async def slow() -> None:
        try:
            await (may_end.wait() if is_landed else ends_slowly(may_end))
        finally:
            has_ended.set()

    async def end(task: _Task) -> None:
        try:
            await _ENDS[way](task)
        finally:
            assert has_ended.is_set()

    task = asyncio.create_task(slow())
    await asyncio.sleep(0)
    await cancelled_again_and_again(asyncio.create_task(end(task)), may_end)


async def test_a_flight_that_is_ended_before_it_begins_tells_its_joiners() -> None:
    """They would wait for ever for its headers."""
    flights = Flights(cast(Any, SimpleNamespace(store=None)))
    joining = asyncio.ensure_future(flights.join(Digest.of(b"a"), cast(Any, None), upstream="test"))
    await asyncio.sleep(0)
    await flights.aclose()
    with pytest.raises(StoreError, match="the mirror is stopping"):
        async with asyncio.timeout(30):
            await joining
    assert not flights.active()


async def test_work_after_answers_is_waited_for_though_some_of_it_fails() -> None:
    """What it uses is closed next."""
    background, is_done = BackgroundTasks(), asyncio.Event()

    async def fails() -> None:
        raise StoreError("the disk does not answer")

    async def goes_on() -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        is_done.set()

    background.start(fails())
    background.start(goes_on())
    with pytest.raises(StoreError):
        await background.finish()
    assert is_done.is_set()


@pytest.mark.parametrize("where", ["disk", "bucket"])
async def test_all_shared_work_of_a_mirror_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """It would go on with what is closed next: each `SingleFlight` that a mirror has is closed with the mirror."""
    made, closed = list[SingleFlight](), list[SingleFlight]()
    begin, end = SingleFlight.__init__, SingleFlight.aclose

    def note(once: SingleFlight) -> None:
        begin(once)
        made.append(once)

    async def aclose(once: SingleFlight) -> None:
        closed.append(once)
        await end(once)

    monkeypatch.setattr(SingleFlight, "__init__", note)
    monkeypatch.setattr(SingleFlight, "aclose", aclose)
    mirror = hosting_mirror(tmp_path) if where == "disk" else bucket_mirror(tmp_path, MemoryBucket())
    async with mirror:
        assert not closed
    assert len(made) > 5
    assert [once for once in made if once not in closed] == []

"""The delivery of events to one endpoint that takes them, refuses them, or is down. The test moves the clock."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from mirror.events.endpoint_queue import Delivery, EndpointQueue
from mirror.index.outbox import SqliteOutbox
from mirror.policy.events.attempts import LONGEST_PAUSE, MOST_REFUSALS
from mirror.policy.events.changes import LOST
from mirror.policy.events.signature import SIGNATURE, TIMESTAMP
from mirror.ports import Outgoing, Reply
from tests.support.clock import Clock
from tests.support.live_mirror import until

_DAY = 86400.0
_TAKEN, _DOWN = Reply(204), Reply(None, "ci did not answer in time")


class _Sender:
    """Answers as the test says: by event id, or else `reply`. `taken` are the ids that were taken, in order."""

    def __init__(self) -> None:
        self.reply = _TAKEN
        self.replies: dict[str, Reply] = {}
        self.hanging: dict[str, asyncio.Event] = {}
        self.sent: list[str] = []
        self.taken: list[str] = []
        self.bodies: dict[str, dict[str, Any]] = {}
        self.headers: list[Mapping[str, str]] = []

    async def send(self, endpoint: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        event = json.loads(body)
        id = event["id"]
        self.sent.append(id)
        self.headers.append(headers)
        self.bodies[id] = event
        if id in self.hanging:
            await self.hanging[id].wait()
        reply = self.replies.get(id, self.reply)
        if reply.status == 204:
            self.taken.append(id)
        return reply


class _World:
    """One endpoint, its queue, and changes that are confirmed."""

    def __init__(self, outbox: SqliteOutbox, clock: Clock) -> None:
        self.outbox = outbox
        self.clock = clock
        self.sender = _Sender()
        self.delivery = Delivery(outbox, self.sender, "here", 7 * _DAY, self.clock, lambda: 1.0, lambda _: [b"secret"])
        self.queue = EndpointQueue("ci", self.delivery)

    def push(self, key: str, *ids: str) -> None:
        """Confirmed changes of one repository."""
        for id in ids:
            prepared = self.outbox.prepare(key, "{}")
            with self.outbox.turn(key) as order:
                pass
            body = json.dumps({"id": id})
            self.outbox.confirm(
                prepared, order, [Outgoing(id, "mirror.image.pushed", key, body, self.clock(), ("ci",))]
            )

    async def rounds(self, count: int, seconds: float = 1.0) -> None:
        """So many looks, with so much time between them."""
        for _ in range(count):
            await self.queue.step()
            await self.queue.settled()
            self.clock.time += seconds

    async def until(self, question: Callable[[], bool]) -> None:
        """Looks, at the same moment, until it is so."""
        async with asyncio.timeout(60):
            while not question():
                await self.queue.step()
                await asyncio.sleep(0.001)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[_World]:
    """An empty outbox with room for a thousand events."""
    clock = Clock()
    with closing(SqliteOutbox(tmp_path, ["ci"], most_events=1000, most_bytes=1 << 20, now=clock)) as outbox:
        yield _World(outbox, clock)


async def test_111_an_endpoint_is_down_for_a_day(world: _World) -> None:
    """Row 111: changes go on; the endpoint is asked about once in five minutes; when it is back it gets everything, in
    the order of each repository.
    """
    world.sender.reply = _DOWN
    repos = ("corp/a", "corp/b", "corp/c")
    for hour in range(24):
        for repo in repos:
            world.push(repo, f"{repo}-{hour:02d}")
        await world.rounds(12, _DAY / 24 / 12)
    assert len(world.sender.sent) < _DAY / LONGEST_PAUSE * 2
    assert world.sender.taken == []
    [backlog] = world.outbox.backlog(["ci"])
    assert (backlog.waiting, backlog.dead, backlog.lost) == (72, 0, 0)
    [first, *_] = world.outbox.listed(endpoint="ci", dead=None, most=10)
    assert first.attempts > 0
    assert first.error == "ci did not answer in time"

    world.sender.reply = _TAKEN
    world.clock.time += LONGEST_PAUSE
    await world.rounds(60)
    for repo in repos:
        assert [id for id in world.sender.taken if id.startswith(repo)] == [f"{repo}-{hour:02d}" for hour in range(24)]
    assert len(world.sender.taken) == 72
    assert world.outbox.backlog(["ci"])[0].waiting == 0


async def test_111_an_endpoint_is_down_for_longer_than_events_are_kept(world: _World) -> None:
    """Row 111: they are dead then, are counted and shown, and are sent again on request; newer ones come by
    themselves.
    """
    world.sender.reply = _DOWN
    world.push("corp/a", "old1", "old2")
    with capture_logs() as logs:
        await world.rounds(8 * 24, 3600.0)
        world.push("corp/a", "new")
        await world.rounds(2)
    [backlog] = world.outbox.backlog(["ci"])
    assert (backlog.waiting, backlog.dead) == (1, 2)
    assert {line["event"] for line in logs} == {"endpoint takes no events", "events too old"}
    assert sum(line["event"] == "endpoint takes no events" for line in logs) == 1
    world.sender.reply = _TAKEN
    world.clock.time += LONGEST_PAUSE
    await world.rounds(2)
    assert world.sender.taken == ["new"]
    assert world.outbox.resend(id=None, endpoint=None) == 2
    await world.rounds(3, 61.0)
    assert world.sender.taken == ["new", "old1", "old2"]


async def test_an_event_that_is_refused_holds_up_nothing(world: _World) -> None:
    """After a few attempts it is dead, and the next of its repository follows; other repositories do not wait."""
    world.sender.replies["poison"] = Reply(400)
    world.push("corp/a", "poison", "after")
    world.push("corp/b", "other")
    with capture_logs() as logs:
        await world.rounds(10)
    assert world.sender.sent.count("poison") == MOST_REFUSALS
    assert world.sender.taken == ["other", "after"]
    [dead] = world.outbox.listed(endpoint="ci", dead=True, most=10)
    assert (dead.id, dead.error) == ("poison", "status 400")
    assert [line["event"] for line in logs] == ["event refused"]


async def test_an_event_at_which_the_endpoint_fails_holds_up_no_other_repository(world: _World) -> None:
    """It answers 500 to one event, and takes all others: these go on, and that one is tried ever less often."""
    world.sender.replies["poison"] = Reply(500)
    world.push("corp/a", "poison", "behind")
    await world.rounds(3)
    others = [f"e{number}" for number in range(20)]
    world.push("corp/b", *others)
    world.push("corp/c", "other")
    await world.rounds(60)
    assert [id for id in world.sender.taken if id != "other"] == others
    assert "other" in world.sender.taken
    sent = world.sender.sent.count("poison")
    await world.rounds(100, LONGEST_PAUSE / 10)
    assert world.sender.sent.count("poison") - sent < 20
    del world.sender.replies["poison"]
    await world.rounds(20, LONGEST_PAUSE / 10)
    assert world.sender.taken[-2:] == ["poison", "behind"]


async def test_a_slow_answer_delays_only_its_repository(world: _World) -> None:
    """Seven others are sent meanwhile; of the slow one's repository nothing is."""
    world.sender.hanging["slow"] = asyncio.Event()
    world.push("corp/slow", "slow", "behind")
    for number in range(20):
        world.push(f"corp/r{number:02d}", f"e{number:02d}")
    await world.until(lambda: len(world.sender.taken) == 20)
    assert "behind" not in world.sender.sent
    world.sender.hanging["slow"].set()
    await world.queue.settled()
    await world.rounds(2)
    assert world.sender.taken[-2:] == ["slow", "behind"]


async def test_what_an_endpoint_asks_for_is_heeded(world: _World) -> None:
    """429 with `Retry-After`, up to an hour."""
    world.sender.reply = Reply(429, retry_after=600.0)
    world.push("corp/a", "one")
    await world.rounds(59, 10.0)
    assert world.sender.sent == ["one"]
    await world.rounds(2, 10.0)
    assert world.sender.sent == ["one", "one"]


async def test_while_it_is_down_it_is_asked_about_one_event(world: _World) -> None:
    """However many repositories have events."""
    world.sender.reply = _DOWN
    for number in range(20):
        world.push(f"corp/r{number:02d}", f"e{number:02d}")
    await world.rounds(1)
    assert len(world.sender.sent) == 8
    world.clock.time += LONGEST_PAUSE
    await world.rounds(1)
    assert len(world.sender.sent) == 9


async def test_a_gap_is_told_first(world: _World, tmp_path: Path) -> None:
    """With how many events are missing, and of which time; then what is left follows."""
    world.sender.reply = _DOWN
    for number in range(1100):
        world.push("corp/a", f"e{number:04d}")
    await world.rounds(1)
    world.sender.reply = _TAKEN
    world.clock.time += LONGEST_PAUSE
    lost = world.outbox.backlog(["ci"])[0].lost
    assert lost >= 100
    await world.rounds(2)
    gap = world.sender.bodies[world.sender.taken[0]]
    assert (gap["type"], gap["data"]["count"], gap["data"]["endpoint"]) == (LOST, lost, "ci")
    assert world.outbox.backlog(["ci"])[0].lost == 0
    await world.rounds(2000)
    assert world.sender.taken[1:] == [f"e{number:04d}" for number in range(lost, 1100)]


async def test_an_endpoint_learns_that_the_file_of_the_events_was_lost(tmp_path: Path) -> None:
    """Nobody knows how many events were in it, nor since when."""
    clock = Clock()
    with closing(SqliteOutbox(tmp_path, ["ci"], most_events=9, most_bytes=1 << 20, now=clock)) as outbox:
        outbox.prepare("corp/a", "{}")
    (tmp_path / "outbox.sqlite").unlink()
    clock.time += 5
    with closing(SqliteOutbox(tmp_path, ["ci"], most_events=9, most_bytes=1 << 20, now=clock)) as outbox:
        world = _World(outbox, clock)
        await world.rounds(1)
    [gap] = world.sender.bodies.values()
    assert gap["type"] == LOST
    reason = "the file of the events was damaged or taken away"
    assert gap["data"] == {"endpoint": "ci", "last": gap["data"]["last"], "reason": reason}


async def test_what_was_taken_but_not_noted_comes_again(world: _World, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least once: with the same id."""
    world.push("corp/a", "one", "two")

    def fail(*_: object) -> None:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(world.outbox, "delivered", fail)
        await world.rounds(1)
    assert [line["event"] for line in logs] == ["delivery failed"]
    await world.rounds(4)
    assert world.sender.taken == ["one", "one", "two"]


async def test_what_is_sent_is_signed_when_it_is_sent(world: _World) -> None:
    """With the time of the attempt. Without its secret nothing is sent."""
    world.push("corp/a", "one")

    def gone(_: str) -> list[bytes]:
        raise OSError("no such file")

    unsigned = EndpointQueue(
        "ci", Delivery(*(world.outbox, world.sender, "here", _DAY, world.clock, lambda: 1.0, gone))
    )
    await unsigned.step()
    await unsigned.settled()
    assert world.sender.sent == []
    assert world.outbox.listed(endpoint="ci", dead=None, most=1)[0].error == "its secret_file cannot be read"
    await world.rounds(1)
    [headers] = world.sender.headers
    assert headers[TIMESTAMP] == str(int(world.clock() - 1))
    assert headers[SIGNATURE].startswith("sha256=")


async def test_a_clock_that_is_set_back_does_not_stop_deliveries(world: _World) -> None:
    """A rest that would last a year was begun by a wrong clock."""
    world.sender.reply = _DOWN
    world.push("corp/a", "one")
    await world.rounds(1)
    world.clock.time -= 365 * _DAY
    world.sender.reply = _TAKEN
    await world.rounds(1)
    assert world.sender.taken == ["one"]


async def test_it_runs_until_it_is_cancelled(world: _World) -> None:
    """It is woken by new events, and leaves what it was sending to the next one."""
    woken = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wake() -> None:
        loop.call_soon_threadsafe(woken.set)

    world.outbox.wake(wake)
    running = asyncio.create_task(world.queue.run(woken))
    await asyncio.to_thread(world.push, "corp/a", "one")
    await until(lambda: world.sender.taken or None)
    world.sender.hanging["two"] = asyncio.Event()
    await asyncio.to_thread(world.push, "corp/a", "two")
    await until(lambda: "two" in world.sender.sent or None)
    running.cancel()
    await asyncio.wait({running})
    world.sender.hanging.clear()
    successor = EndpointQueue("ci", world.delivery)
    await successor.step()
    await successor.settled()
    assert world.sender.taken == ["one", "two"]

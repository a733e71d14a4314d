"""Who delivers to which endpoint, and what goes on when something fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path

from mirror import telemetry
from mirror.events.announcing import OutboxAnnouncer
from mirror.events.deliveries import EventDeliveries
from mirror.events.endpoint_queue import Delivery
from mirror.index.outbox import SqliteOutbox
from mirror.policy.events.changes import SeenChange
from mirror.policy.events.subscriptions import Subscription, Subscriptions
from mirror.ports import Outgoing, Reply
from mirror.store.local.layout import Layout
from mirror.store.local.locks import FileLocks
from tests.support.clock import Clock
from tests.support.hooked import Hooked
from tests.support.live_mirror import until


class _Sender:
    """Takes everything."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    async def send(self, endpoint: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        self.taken.append(f"{endpoint} {json.loads(body)['id']}")
        return Reply(204)


def _confirm(outbox: SqliteOutbox, id: str, *endpoints: str) -> None:
    with outbox.turn("corp/app") as order:
        event = Outgoing(id, "mirror.image.pushed", "corp/app", json.dumps({"id": id}), 1e9, endpoints)
    outbox.confirm(None, order, [event])


@asynccontextmanager
async def _worker(folder: Path, outbox: Hooked, sender: _Sender, clock: Clock) -> AsyncIterator[EventDeliveries]:
    """A worker that delivers to `ci` and `chat`, and waits for nothing."""
    announcer = OutboxAnnouncer(outbox, Subscriptions((Subscription("ci"),)), lambda *_: SeenChange(False), "x", clock)
    delivery = Delivery(outbox, sender, "here", 1e9, clock, lambda: 1.0, lambda _: [])

    async def sleep(_seconds: float) -> None:
        await asyncio.sleep(0.001)

    deliveries = EventDeliveries(["ci", "chat"], announcer, delivery, FileLocks(Layout(folder)), sleep)
    outbox.wake(deliveries.wake)
    running = asyncio.create_task(deliveries.run())
    try:
        yield deliveries
    finally:
        running.cancel()
        await asyncio.wait({running})


async def test_one_worker_delivers_to_each_endpoint(tmp_path: Path) -> None:
    """The other one takes over when it ends; what it adds is delivered by the first."""
    mine, theirs, clock = _Sender(), _Sender(), Clock()
    with (
        closing(SqliteOutbox(tmp_path / "events", ["ci"], most_events=1000, most_bytes=1 << 20)) as one,
        closing(SqliteOutbox(tmp_path / "events", ["ci"], most_events=1000, most_bytes=1 << 20)) as two,
    ):
        async with _worker(tmp_path, Hooked(two), theirs, clock):
            async with _worker(tmp_path, Hooked(one), mine, clock):
                pass
            await asyncio.to_thread(_confirm, one, "a", "ci", "chat")
            await until(lambda: sorted(theirs.taken) == ["chat a", "ci a"] or None)
            # an event is noted as delivered after its endpoint has taken it, and is sent again if it is not noted
            await until(lambda: all(each.waiting == 0 for each in two.backlog(["ci", "chat"])) or None)
        async with _worker(tmp_path, Hooked(one), mine, clock):
            await asyncio.to_thread(_confirm, two, "b", "ci")
            await until(lambda: mine.taken == ["ci b"] or None)
            await until(lambda: one.backlog(["ci", "chat"])[0].waiting == 0 or None)


async def test_an_error_ends_no_delivery(tmp_path: Path) -> None:
    """Whatever fails, work goes on after a while, and the metrics are set."""
    sender, clock = _Sender(), Clock()
    with closing(SqliteOutbox(tmp_path / "events", ["ci"], most_events=1000, most_bytes=1 << 20)) as outbox:
        hooked = Hooked(outbox)
        for call in ("heads", "orphans", "backlog"):
            hooked.fail(call, ValueError("a mistake of ours"))
        async with _worker(tmp_path, hooked, sender, clock):
            await until(lambda: min(hooked.calls[call] for call in ("heads", "orphans", "backlog")) > 1 or None)
            for call in ("heads", "orphans", "backlog"):
                hooked.fail(call, None)
            await asyncio.to_thread(_confirm, outbox, "a", "ci", "gone")
            await until(lambda: sender.taken == ["ci a"] or None)
            await until(lambda: telemetry.EVENTS_WAITING.labels("ci")._value.get() == 0 or None)


async def test_nothing_was_lost_yet(tmp_path: Path) -> None:
    """The counter is there with 0, so that an alert on its increase sees the first loss."""
    telemetry.EVENTS_LOST.clear()
    with closing(SqliteOutbox(tmp_path / "events", ["ci"], most_events=1000, most_bytes=1 << 20)) as outbox:
        async with _worker(tmp_path, Hooked(outbox), _Sender(), Clock()):
            await until(lambda: ("chat",) in telemetry.EVENTS_LOST._metrics or None)

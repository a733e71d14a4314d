"""Deliveries to all endpoints. Of the processes of a store, one delivers to each endpoint: the one that has its lease.

try_hold("events-…") ──┬─ another process has it ──> tried again after a while
                       └─ held ── EndpointQueue ──> until the process ends, or the lease is lost
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from mirror import telemetry
from mirror.aio.singleflight import cancel_and_wait
from mirror.events.announcing import OutboxAnnouncer
from mirror.events.endpoint_queue import Delivery, EndpointQueue
from mirror.ports import Lease, Locks
from mirror.rounds import run_rounds

#: Seconds between two attempts to take over an endpoint, and before work goes on that has failed.
_TAKE_OVER_AFTER: Final = 15.0
_AGAIN_AFTER: Final = 5.0
#: Seconds between two looks for changes that dead processes have left, and between two updates of the metrics.
_SETTLE_EVERY: Final = 5.0
_SHOW_EVERY: Final = 15.0


class EventDeliveries:
    """What a server does about events, besides noting them."""

    def __init__(
        self,
        endpoints: Sequence[str],
        announcer: OutboxAnnouncer,
        delivery: Delivery,
        locks: Locks,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._endpoints = tuple(endpoints)
        self._announcer = announcer
        self._delivery = delivery
        self._locks = locks
        self._sleep = sleep
        self._woken = {name: asyncio.Event() for name in self._endpoints}
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"<EventDeliveries {', '.join(self._endpoints)}>"

    def wake(self) -> None:
        """To be called after events were added, from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        for event in self._woken.values():
            event.set()

    async def run(self) -> None:
        """Delivers, settles and counts until it is cancelled."""
        self._loop = asyncio.get_running_loop()
        for name in self._endpoints:
            # an alert on the increase of a counter misses the first one if the counter was not there before
            telemetry.EVENTS_LOST.labels(name)
        async with asyncio.TaskGroup() as tasks:
            for name in self._endpoints:
                tasks.create_task(self._guarded(lambda name=name: self._deliver(name)))  # type: ignore[misc]
            tasks.create_task(self._guarded(self._settle))
            tasks.create_task(self._guarded(self._show))

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        """Repeats work that fails: no error may end it, because events would no longer be delivered."""
        await run_rounds(
            work, _AGAIN_AFTER, failed="events not delivered", crashed="delivery of events crashed", sleep=self._sleep
        )

    async def _deliver(self, endpoint: str) -> None:
        # a name of letters and digits has a lock file of its own, which may be held for long
        lock = f"events-{hashlib.blake2b(endpoint.encode(), digest_size=8).hexdigest()}"
        while True:
            lease = await self._locks.try_hold(lock)
            if lease is None:
                await self._sleep(_TAKE_OVER_AFTER)
                continue
            with lease:
                await self._deliver_while(lease, EndpointQueue(endpoint, self._delivery), self._woken[endpoint])

    async def _deliver_while(self, lease: Lease, queue: EndpointQueue, woken: asyncio.Event) -> None:
        running = asyncio.ensure_future(queue.run(woken))
        lost = asyncio.ensure_future(lease.lost.wait())
        try:
            ended, _ = await asyncio.wait({running, lost}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # the lock is released after this: by then nothing may be sent any more
            await cancel_and_wait(lost, running)
        if running in ended or not running.cancelled():
            # also if something that it waited for was cancelled: whoever repeats this says so
            running.result()

    async def _settle(self) -> None:
        while True:
            await asyncio.to_thread(self._announcer.settle)
            await self._sleep(_SETTLE_EVERY)

    async def _show(self) -> None:
        outbox, now = self._delivery.outbox, self._delivery.now
        while True:
            await asyncio.to_thread(outbox.forget_endpoints, self._endpoints, now() - self._delivery.keep)
            for backlog in await asyncio.to_thread(outbox.backlog, self._endpoints):
                if backlog.endpoint in self._endpoints:
                    age = max(0.0, now() - backlog.oldest_at) if backlog.oldest_at is not None else 0.0
                    telemetry.EVENTS_WAITING.labels(backlog.endpoint).set(backlog.waiting)
                    telemetry.EVENTS_DEAD.labels(backlog.endpoint).set(backlog.dead)
                    telemetry.EVENTS_OLDEST.labels(backlog.endpoint).set(age)
            await self._sleep(_SHOW_EVERY)

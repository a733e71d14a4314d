"""The delivery of the events of one endpoint.

    one event at a time of each key, `_AT_ONCE` keys at a time ── taken ───────> gone, then the next of its key
                                                               ├── refused ────> its key rests; at last it is dead
                                                               └── not taken ──> the whole endpoint rests: one attempt
                                                                                 at a time until it takes something

What is sent is at least as often sent as it is taken: a process that dies between the answer and the note of it has its
events sent again by the next, with the same ids.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mirror import telemetry
from mirror.aio.singleflight import cancel_and_wait
from mirror.policy.events.attempts import MOST_REFUSALS, Reception, pause, reception
from mirror.policy.events.changes import LOST, Event
from mirror.policy.events.cloud_events import MEDIA_TYPE, cloud_event
from mirror.policy.events.signature import signed_headers
from mirror.ports import Deliveries, EventSender, Gap, Reply, WaitingEvent

#: Requests to one endpoint at the same time.
_AT_ONCE: Final = 8
#: Seconds between two looks whether another process has added an event.
_LOOK_EVERY: Final = 1.0
#: Seconds. A rest that would be longer was begun by a clock that has been set back since.
_LONGEST_REST: Final = 7200.0
#: Keys of which it is remembered how often they failed.
_MOST_AT_FAULT: Final = 10_000
#: Seconds between two looks for events that are too old.
_EXPIRE_EVERY: Final = 60.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """What deliveries have in common. `source` names this mirror in events; `secrets` returns what they are signed
    with, and may raise `OSError`; `keep` is in seconds, `now` in epoch seconds; `jitter` is from 0 to 1.
    """

    outbox: Deliveries
    sender: EventSender
    source: str
    keep: float
    now: Callable[[], float]
    jitter: Callable[[], float]
    secrets: Callable[[str], Sequence[bytes]]


class EndpointQueue:
    """Delivers to one endpoint, as long as this process has its lease."""

    def __init__(self, endpoint: str, delivery: Delivery) -> None:
        self._endpoint = endpoint
        self._delivery = delivery
        self._sending: dict[str, asyncio.Task[None]] = {}
        #: Until when a key, or all of them, rest (epoch seconds), and how often the endpoint failed in a row.
        self._resting: dict[str, float] = {}
        self._rests_until = 0.0
        self._failures = 0
        #: The event of each key that was refused, and how often.
        self._refused: dict[str, tuple[str, int]] = {}
        #: The keys that failed since the endpoint has last taken something: others are tried before them.
        self._tried: set[str] = set()
        #: How often a key failed although the endpoint took other keys meanwhile, and `_taken_count` when it last did.
        self._at_fault: dict[str, tuple[int, int]] = {}
        self._taken_count = 0
        self._expired_at = 0.0
        self._seen: int | None = None
        self._idle = False

    def __repr__(self) -> str:
        state = f"{self._failures} failures" if self._failures else "takes events"
        return f"<EndpointQueue {self._endpoint} {state}, {len(self._sending)} being sent>"

    async def run(self, woken: asyncio.Event) -> None:
        """Delivers until it is cancelled. `woken` is set when this process has added events."""
        try:
            while True:
                woken.clear()
                seconds = await self.step()
                waking = asyncio.ensure_future(woken.wait())
                try:
                    await asyncio.wait(
                        {waking, *self._sending.values()}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
                    )
                finally:
                    waking.cancel()
        finally:
            await self.stop()

    async def step(self) -> float:
        """Starts to send what is due; returns after how many seconds there may be more. Raises `StoreError`."""
        now = self._delivery.now()
        self._resting = {key: until for key, until in self._resting.items() if now < until <= now + _LONGEST_REST}
        if now - self._expired_at >= _EXPIRE_EVERY or now < self._expired_at:
            self._expired_at = now
            await asyncio.to_thread(self._expire, now)
        if now < self._rests_until <= now + _LONGEST_REST:
            return min(_LOOK_EVERY, self._rests_until - now)
        free = (1 if self._failures else _AT_ONCE) - len(self._sending)
        if free <= 0:
            return _LOOK_EVERY
        due, gap = await asyncio.to_thread(self._due, free)
        if gap is not None and "" not in self._sending and "" not in self._resting:
            self._start("", self._tell(gap))
            due = due[: free - 1]
        for event in due:
            self._start(event.key, self._send(event))
        return _LOOK_EVERY

    async def settled(self) -> None:
        """Returns once nothing is being sent."""
        while self._sending:
            await asyncio.wait(self._sending.values())

    async def stop(self) -> None:
        """Breaks off what is being sent: it is sent again later."""
        await cancel_and_wait(*self._sending.values())

    def _expire(self, now: float) -> None:
        dead = self._delivery.outbox.expire(self._endpoint, now - self._delivery.keep)
        if dead:
            telemetry.log.warning("events too old", endpoint=self._endpoint, count=dead)

    def _due(self, most: int) -> tuple[Sequence[WaitingEvent], Gap | None]:
        outbox = self._delivery.outbox
        # nothing is read while nobody has written anything
        seen = outbox.changed()
        if self._idle and self._seen == seen:
            return (), None
        self._seen = seen
        gap = outbox.gap(self._endpoint)
        busy = {*self._sending, *self._resting}
        due = outbox.heads(self._endpoint, busy | self._tried, most)
        if not due and self._tried:
            self._tried.clear()
            due = outbox.heads(self._endpoint, busy, most)
        self._idle = not due and gap is None and not self._resting and not self._sending
        return due, gap

    def _start(self, key: str, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._sending[key] = task
        task.add_done_callback(lambda _: self._ended(key))

    def _ended(self, key: str) -> None:
        task = self._sending.pop(key, None)
        self._idle = False
        if task and not task.cancelled() and (error := task.exception()) is not None:
            self._rest(key, 1)
            telemetry.log.warning("delivery failed", endpoint=self._endpoint, reason=str(error) or type(error).__name__)

    # --------------------------------------------------------------------------------------------------- one event

    async def _send(self, event: WaitingEvent) -> None:
        outbox = self._delivery.outbox
        reply = await self._post(event.body)
        took = reception(reply.status)
        if took is Reception.TAKEN:
            self._taken(event.key)
            self._at_fault.pop(event.key, None)
            await asyncio.to_thread(outbox.delivered, event)
            return
        problem = reply.problem or f"status {reply.status}"
        self._not_taken(event.key, took, reply, problem)
        if took is Reception.REFUSED and self._refusals(event) >= MOST_REFUSALS:
            self._refused.pop(event.key, None)
            self._resting.pop(event.key, None)
            telemetry.log.warning("event refused", endpoint=self._endpoint, type=event.type, reason=problem)
            await asyncio.to_thread(outbox.bury, event, problem)
        else:
            await asyncio.to_thread(outbox.failed, event, problem)

    def _refusals(self, event: WaitingEvent) -> int:
        """Counts a refusal of the event; returns how many there were."""
        id, count = self._refused.get(event.key, ("", 0))
        count = count + 1 if id == event.id else 1
        self._refused[event.key] = event.id, count
        return count

    async def _tell(self, gap: Gap) -> None:
        data: dict[str, Any] = {"endpoint": self._endpoint, "last": gap.last_at}
        if gap.count:
            data |= {"count": gap.count, "first": gap.first_at}
        else:
            # nobody knows since when these events were waiting
            data["reason"] = "the file of the events was damaged or taken away"
        event = Event(LOST, self._endpoint, "", data)
        reply = await self._post(cloud_event(event, id=gap.id, source=self._delivery.source, at=self._delivery.now()))
        took = reception(reply.status)
        # an endpoint that refuses to know it has been informed
        if took is not Reception.UNAVAILABLE:
            self._taken("")
            await asyncio.to_thread(self._delivery.outbox.told, self._endpoint, gap)
        else:
            self._not_taken("", took, reply, reply.problem or f"status {reply.status}")

    async def _post(self, text: str) -> Reply:
        body = text.encode()
        try:
            secrets = await asyncio.to_thread(self._delivery.secrets, self._endpoint)
        except OSError:
            return Reply(None, "its secret_file cannot be read")
        headers = signed_headers(secrets, int(self._delivery.now()), body)
        return await self._delivery.sender.send(self._endpoint, body, {"Content-Type": MEDIA_TYPE, **headers})

    def _taken(self, key: str) -> None:
        self._refused.pop(key, None)
        telemetry.EVENTS_DELIVERED.labels(self._endpoint).inc()
        if self._failures:
            telemetry.log.info("endpoint takes events again", endpoint=self._endpoint)
        self._failures, self._rests_until = 0, 0.0
        self._tried.clear()
        self._taken_count += 1

    def _not_taken(self, key: str, took: Reception, reply: Reply, problem: str) -> None:
        telemetry.EVENTS_FAILED.labels(self._endpoint).inc()
        if took is Reception.REFUSED:
            self._rest(key, 1)
            return
        self._tried.add(key)
        times, taken_count = self._at_fault.get(key, (0, self._taken_count))
        if taken_count != self._taken_count:
            times += 1
            self._rest(key, times)
        if len(self._at_fault) >= _MOST_AT_FAULT:
            self._at_fault.clear()
        self._at_fault[key] = times, self._taken_count
        self._failures += 1
        seconds = pause(self._failures, self._delivery.jitter(), reply.retry_after)
        self._rests_until = self._delivery.now() + seconds
        if self._failures == 1:
            telemetry.log.warning(
                "endpoint takes no events", endpoint=self._endpoint, reason=problem, retry_in=round(seconds, 1)
            )

    def _rest(self, key: str, failures: int) -> None:
        self._resting[key] = self._delivery.now() + pause(failures, self._delivery.jitter())

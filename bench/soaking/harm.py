"""Carries the schedule out. Only programs that this run started are touched, each by its own process id."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence

from bench.soaking.cluster import MirrorUnderTest
from bench.soaking.faulty import Faulty
from bench.soaking.schedule import UPSTREAM, Event
from tests.support.redis_server import RedisServer


class Harm:
    """`carried_out` counts events by kind; `disturbed` are the seconds, since the begin, at which workers went."""

    def __init__(
        self, mirror: MirrorUnderTest, faulty: Faulty, redis: RedisServer | None, seed: int, say: Callable[[str], None]
    ) -> None:
        self._mirror = mirror
        self._faulty = faulty
        self._redis = redis
        self._draw = random.Random(f"harm {seed}")
        self._say = say
        self._turn = asyncio.Lock()
        self._mirror_turn = asyncio.Lock()
        self.carried_out: Counter[str] = Counter()
        self.disturbed: list[float] = []

    async def run(self, events: Sequence[Event], began: float, spare_after: float) -> None:
        """All events, each at its time after `began`. The oldest worker is spared from `spare_after` seconds on."""
        async with asyncio.TaskGroup() as group:
            for event in events:
                await asyncio.sleep(max(0.0, began + event.at - time.monotonic()))
                self._say(str(event))
                group.create_task(self._do(event, began, spare=event.at >= spare_after))

    async def _do(self, event: Event, began: float, *, spare: bool) -> None:
        self.carried_out[event.kind] += 1
        if event.kind in UPSTREAM:
            self._faulty.begin(event.kind, event.seconds, event.share)
        elif event.kind == "worker-kill":
            async with self._mirror_turn:
                self._kill_worker(spare)
            self.disturbed.append(time.monotonic() - began)
        elif event.kind == "restart":
            async with self._mirror_turn:
                self.disturbed.append(time.monotonic() - began)
                await _to_its_end(self._mirror.restart)
            self.disturbed.append(time.monotonic() - began)
        elif self._redis is not None:
            # one after the other: a server that is stopped cannot be asked to forget
            async with self._turn:
                await self._harm_redis(self._redis, event)

    def _kill_worker(self, spare: bool) -> None:
        workers = self._mirror.workers()
        candidates = workers[1:] if spare else workers
        if candidates:
            os.kill(self._draw.choice(candidates), signal.SIGKILL)

    async def _harm_redis(self, redis: RedisServer, event: Event) -> None:
        if event.kind == "redis-flush":
            await _to_its_end(lambda: redis.command("FLUSHALL"))
            return
        harm, mend = _HARM[event.kind]
        try:
            await _to_its_end(lambda: harm(redis))
            await asyncio.sleep(event.seconds)
        finally:
            await _to_its_end(lambda: mend(redis))


async def _to_its_end(work: Callable[[], object]) -> None:
    """In a thread, and waited for even when cancelled: a program must not be started behind the back of who ends it."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


_HARM: dict[str, tuple[Callable[[RedisServer], None], Callable[[RedisServer], None]]] = {
    "redis-kill": (RedisServer.kill, RedisServer.start),
    "redis-stop": (RedisServer.pause, RedisServer.resume),
}

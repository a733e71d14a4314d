"""Traffic totals of all workers and their history: one point each minute, stored on disk, so that a restart keeps them.

    one worker holds the lock ── each minute ──> totals now, minus the totals at the last point ──> a new point

A worker that is asked for the history reads the points and adds the traffic since the last one.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, Final

from typing_extensions import TypedDict

from mirror import telemetry
from mirror.errors import StoreError
from mirror.policy.traffic import Traffic, add_point, read_points, since
from mirror.ports import Locks, Records
from mirror.rounds import KeptLock, run_rounds
from mirror.values.json_types import Bytes, Count, Seconds, Timestamp, about
from mirror.values.timestamps import format_moment

#: Seconds between two points, and seconds for which points are kept.
_EVERY: Final = 60.0
_KEEP: Final = 86400.0
_KEY: Final = "points"


class TrafficJson(TypedDict):
    """Answered requests, over all workers."""

    requests: Annotated[Count, about("Number of answered requests for manifests and blobs.")]
    hits: Annotated[Count, about("Those that needed no download of their own.")]
    hit_ratio: Annotated[float | None, about("From 0 to 1; null before the first request.")]
    sent: Annotated[Bytes, about("Bytes sent to clients.")]
    received: Annotated[Bytes, about("Bytes of blobs received from upstreams.")]
    saved: Annotated[Bytes, about("Bytes that upstreams did not have to send.")]


class PointJson(TrafficJson):
    """The traffic between the point before and `at`."""

    at: Timestamp


class HistoryJson(TypedDict):
    """The traffic of the last day."""

    interval: Annotated[Seconds, about("Seconds between two points.")]
    points: Annotated[list[PointJson], about("Oldest first; the last one covers the time since the one before.")]


def traffic_json(traffic: Traffic) -> TrafficJson:
    """The totals as JSON."""
    return {
        "requests": traffic.requests,
        "hits": traffic.hits,
        "hit_ratio": None if traffic.hit_ratio is None else round(traffic.hit_ratio, 4),
        "sent": traffic.sent,
        "received": traffic.received,
        "saved": traffic.saved,
    }


def total() -> Traffic:
    """Traffic of all workers since the mirror started."""
    return Traffic.of(
        telemetry.counted("mirror_requests"),
        telemetry.counted("mirror_sent_bytes"),
        telemetry.counted("mirror_upstream_bytes"),
    )


class TrafficLog:
    """The traffic history; each process has one. `locks` are shared by the processes of one store. `_run` distinguishes
    the counters of this start from those of an earlier one.
    """

    def __init__(
        self,
        notes: Records,
        *,
        locks: Locks,
        now: Callable[[], float] = time.time,
        every: float = _EVERY,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._notes = notes
        self._locks = locks
        self._now = now
        self._every = every
        self._sleep = sleep
        # several workers keep their counters in a folder made for this run; a single worker keeps them in memory
        self._run = os.environ.get("PROMETHEUS_MULTIPROC_DIR") or f"{os.getpid()}-{time.time_ns()}"

    def __repr__(self) -> str:
        return f"<TrafficLog of run {self._run}, a point each {self._every:.0f} s>"

    def history(self) -> HistoryJson:
        """Blocking. The traffic of the last day. Raises `StoreError`."""
        note = self._notes.get(_KEY) or {}
        points = read_points(note.get("points"))
        points.append((self._now(), since(total(), self._counted(note))))
        return {
            "interval": self._every,
            "points": [{**traffic_json(traffic), "at": format_moment(at)} for at, traffic in points],
        }

    def _counted(self, note: dict[str, Any]) -> Traffic:
        """The counters of this run at the last stored point; zero if another run stored it."""
        points = read_points([[0, *counted]]) if isinstance(counted := note.get("counted"), list) else []
        return points[0][1] if points and note.get("run") == self._run else Traffic()

    def record(self) -> None:
        """Blocking. Add one point. Raises `StoreError`."""
        note = self._notes.get(_KEY) or {}
        now = total()
        points = add_point(read_points(note.get("points")), self._now(), since(now, self._counted(note)), _KEEP)
        self._notes.put(
            _KEY,
            {
                "run": self._run,
                "counted": _written(now),
                "points": [[round(at, 1), *_written(traffic)] for at, traffic in points],
            },
        )

    async def run(self) -> None:
        """Record a point each minute if this process gets the lock; until cancelled. Releases the lock at the end."""
        with KeptLock(partial(self._locks.try_hold, "traffic")) as lock:

            async def record_if_ours() -> None:
                with suppress(StoreError):
                    if await lock.taken():
                        await asyncio.to_thread(self.record)

            await self._sleep(self._every)
            await run_rounds(
                record_if_ours, self._every, crashed="recording of traffic crashed", once=True, sleep=self._sleep
            )


def _written(traffic: Traffic) -> list[int]:
    return [traffic.requests, traffic.hits, traffic.sent, traffic.received]

"""Events that report no change of a hosted repository: noted in memory, and written down a little later.

note() ──> in memory ── flush(), every second ──┬──> in the outbox
               │                                └── an error other than the store's ──> lost, and counted
               └── more than `_MOST` wait, or the process dies ──> lost; those that are too many are counted
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from mirror import telemetry
from mirror.errors import StoreError
from mirror.policy.events.changes import Event
from mirror.policy.events.cloud_events import cloud_event
from mirror.policy.events.subscriptions import Subscriptions
from mirror.ports import Outbox, Outgoing
from mirror.rounds import run_rounds

_MOST: Final = 1000
#: Seconds between two flushes; and seconds within which the same event counts once, whichever process notes it.
_FLUSH_EVERY: Final = 1.0
_SAME_WITHIN: Final = 60.0


class EventLog:
    """What this process notes, such as damage. Best effort: a crash may lose it."""

    def __init__(
        self,
        outbox: Outbox,
        subscriptions: Subscriptions,
        source: str,
        now: Callable[[], float],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`source` names this mirror in events. `now` is in epoch seconds."""
        self._outbox = outbox
        self._subscriptions = subscriptions
        self._source = source
        self._now = now
        self._sleep = sleep
        self._noted: deque[tuple[Event, float]] = deque()
        #: Held by the thread that writes. One that was given up may still be at it when the last flush begins.
        self._writing = threading.Lock()

    def __repr__(self) -> str:
        return f"<EventLog {len(self._noted)} noted>"

    def note(self, event: Event) -> None:
        """Notes an event, from any thread. Never blocks, never raises."""
        if not self._subscriptions.anybody_wants((event.type,), event.repo):
            return
        if len(self._noted) >= _MOST:
            telemetry.EVENTS_DROPPED.inc()
            return
        self._noted.append((event, self._now()))

    def flush(self) -> None:
        """Blocking: writes down what was noted. Raises `StoreError`: what is left is tried again. After any other error
        the event is given up, so that those behind it are written.
        """
        with self._writing:
            while self._noted:
                try:
                    self._write(*self._noted[0])
                except StoreError:
                    raise
                except Exception:
                    self._noted.popleft()
                    telemetry.EVENTS_DROPPED.inc()
                    raise
                self._noted.popleft()

    def _write(self, event: Event, at: float) -> None:
        with self._outbox.turn(event.key) as order:
            # the same id for the same event within a while: several workers may see an upstream fail
            known = f"{event.type} {event.subject} {sorted(event.data.items())} {int(at / _SAME_WITHIN)}"
            id = hashlib.blake2b(known.encode(), digest_size=16).hexdigest()
            body = cloud_event(event, id=id, source=self._source, at=at, sequence=order)
            endpoints = tuple(self._subscriptions.endpoints(event))
            outgoing = Outgoing(id, event.type, event.key, body, at, endpoints)
        self._outbox.confirm(None, order, [outgoing])

    async def run(self) -> None:
        """Flushes regularly, until it is cancelled."""

        async def flush() -> None:
            if self._noted:
                await asyncio.to_thread(self.flush)

        await run_rounds(
            flush,
            _FLUSH_EVERY,
            failed="events not written",
            crashed="writing of events crashed",
            once=True,
            sleep=self._sleep,
        )

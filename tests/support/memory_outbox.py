"""An outbox in memory: the model of what an outbox does. Several on the same `OutboxData` are processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from mirror.ports import Backlog, Gap, Outgoing, PreparedChange, WaitingEvent


@dataclass(slots=True)
class _Prepared:
    change: PreparedChange
    number: int
    writer: MemoryOutbox | None


@dataclass(slots=True)
class _Entry:
    """An event for one endpoint, its turn, and the last change that was prepared before it was confirmed."""

    event: WaitingEvent
    order: str
    barrier: int
    since: float


@dataclass(slots=True)
class OutboxData:
    """What processes share."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    turn: threading.RLock = field(default_factory=threading.RLock)
    prepared: dict[str, _Prepared] = field(default_factory=dict)
    entries: list[_Entry] = field(default_factory=list)
    gaps: list[tuple[str, Gap, bool]] = field(default_factory=list)
    count: int = 0
    turns: int = 0
    numbers: int = 0
    changes: int = 0


class MemoryOutbox:
    """See `mirror.ports.EventStore`."""

    def __init__(
        self,
        data: OutboxData,
        *,
        most_events: int = 1000,
        most_bytes: int = 1 << 20,
        lost: Callable[[str, int], None] = lambda endpoint, count: None,
        now: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._data = data
        self._most_events, self._most_bytes = most_events, most_bytes
        self._lost, self._now = lost, now
        self._woken: Callable[[], None] = lambda: None
        self._closed = False

    def wake(self, woken: Callable[[], None]) -> None:
        self._woken = woken

    def prepare(self, key: str, claim: str) -> PreparedChange:
        data = self._data
        with data.lock:
            data.count += 1
            change = PreparedChange(str(data.count), key, claim)
            data.prepared[change.id] = _Prepared(change, data.count, self)
            return change

    @contextmanager
    def turn(self, key: str) -> Iterator[str]:
        with self._data.turn:
            self._data.turns += 1
            yield f"{self._data.turns:09d}"

    def confirm(self, prepared: PreparedChange | None, order: str, events: Sequence[Outgoing]) -> None:
        data = self._data
        with data.lock:
            data.changes += 1
            if prepared is not None:
                data.prepared.pop(prepared.id, None)
            for event in events:
                if event.id in {each.event.id for each in data.entries}:
                    continue
                data.numbers += 1
                for endpoint in event.endpoints:
                    waiting = WaitingEvent(
                        data.numbers, event.id, event.type, event.key, endpoint, event.body, event.made_at
                    )
                    data.entries.append(_Entry(waiting, order, data.count, event.made_at))
            self._keep_bound()
        self._woken()

    def _keep_bound(self) -> None:
        entries = self._data.entries
        while entries:
            bodies = {each.event.number: len(each.event.body) for each in entries}
            if len(bodies) <= self._most_events and sum(bodies.values()) <= self._most_bytes:
                return
            oldest = min(bodies)
            for each in [each for each in entries if each.event.number == oldest]:
                entries.remove(each)
                self._widen(each.event.endpoint, each.event.made_at)
                self._lost(each.event.endpoint, 1)

    def _widen(self, endpoint: str, at: float) -> None:
        gaps = self._data.gaps
        for place, (name, gap, sealed) in enumerate(gaps):
            if name == endpoint and not sealed:
                first, last = min(gap.first_at, at), max(gap.last_at, at)
                gaps[place] = name, replace(gap, count=gap.count + 1, first_at=first, last_at=last), False
                return
        self._data.numbers += 1
        gaps.append((endpoint, Gap(self._data.numbers, f"gap-{self._data.numbers}", 1, at, at), False))

    def orphans(self, key: str | None = None) -> Sequence[PreparedChange]:
        with self._data.lock:
            return [
                each.change
                for each in self._data.prepared.values()
                if key in (None, each.change.key) and (each.writer is None or each.writer._closed)
            ]

    def is_prepared(self, prepared: PreparedChange) -> bool:
        return prepared.id in self._data.prepared

    def abandon(self, prepared: PreparedChange) -> None:
        if found := self._data.prepared.get(prepared.id):
            found.writer = None

    def sweep(self) -> None:
        """Nothing is left over."""

    def close(self) -> None:
        self._closed = True

    def changed(self) -> int:
        return self._data.changes

    def heads(self, endpoint: str, skip: Collection[str], most: int) -> Sequence[WaitingEvent]:
        with self._data.lock:
            first: dict[str, _Entry] = {}
            for each in self._data.entries:
                event = each.event
                if event.endpoint == endpoint and not event.dead and event.key not in skip:
                    best = first.setdefault(event.key, each)
                    if (each.order, event.number) < (best.order, best.event.number):
                        first[event.key] = each
            return [first[key].event for key in sorted(first) if not self._may_come_before(first[key])][:most]

    def _may_come_before(self, entry: _Entry) -> bool:
        return any(
            each.change.key == entry.event.key and each.number <= entry.barrier for each in self._data.prepared.values()
        )

    def gap(self, endpoint: str) -> Gap | None:
        gaps = self._data.gaps
        for place, (name, gap, _) in enumerate(gaps):
            if name == endpoint:
                gaps[place] = name, gap, True
                return gap
        return None

    def told(self, endpoint: str, gap: Gap) -> None:
        self._data.gaps = [each for each in self._data.gaps if each[:2] != (endpoint, gap)]

    def _of(self, event: WaitingEvent) -> Iterator[_Entry]:
        for each in [*self._data.entries]:
            if (each.event.id, each.event.endpoint) == (event.id, event.endpoint):
                yield each

    def delivered(self, event: WaitingEvent) -> None:
        with self._data.lock:
            for each in self._of(event):
                self._data.entries.remove(each)

    def failed(self, event: WaitingEvent, error: str) -> None:
        for each in self._of(event):
            each.event = replace(each.event, attempts=each.event.attempts + 1, error=error)

    def bury(self, event: WaitingEvent, error: str) -> None:
        self.failed(event, error)
        for each in self._of(event):
            each.event = replace(each.event, dead=True)

    def expire(self, endpoint: str, before: float) -> int:
        old = [
            each
            for each in self._data.entries
            if each.event.endpoint == endpoint and not each.event.dead and each.since < before
        ]
        for each in old:
            each.event = replace(each.event, dead=True)
        return len(old)

    def forget_endpoints(self, known: Collection[str], before: float) -> int:
        old = [each for each in self._data.entries if each.event.endpoint not in known and each.event.made_at < before]
        for each in old:
            self._data.entries.remove(each)
        return len(old)

    def backlog(self, known: Collection[str]) -> Sequence[Backlog]:
        events = [each.event for each in self._data.entries]
        names = [*known, *sorted({event.endpoint for event in events} - set(known))]
        return [
            Backlog(
                name,
                sum(event.endpoint == name and not event.dead for event in events),
                sum(event.endpoint == name and event.dead for event in events),
                min((event.made_at for event in events if event.endpoint == name and not event.dead), default=None),
                sum(gap.count for endpoint, gap, _ in self._data.gaps if endpoint == name),
            )
            for name in names
        ]

    def listed(self, *, endpoint: str | None, dead: bool | None, most: int) -> Sequence[WaitingEvent]:
        found = [
            each.event
            for each in self._data.entries
            if endpoint in (None, each.event.endpoint) and dead in (None, each.event.dead)
        ]
        return sorted(found, key=lambda event: (event.number, event.endpoint))[:most]

    def resend(self, *, id: str | None, endpoint: str | None) -> int:
        again = [
            each
            for each in self._data.entries
            if each.event.dead and id in (None, each.event.id) and endpoint in (None, each.event.endpoint)
        ]
        for each in again:
            each.event, each.since = replace(each.event, dead=False, attempts=0), self._now()
        self._woken()
        return len(again)

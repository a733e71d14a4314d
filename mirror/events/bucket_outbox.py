"""Events that survive the disk: an outbox of this machine, whose changes are written down in the bucket as well.

    prepare ── here, then in the bucket ──> prepared ── confirm ── in the bucket, then here ──> waiting here
                                                │                                                 └─ delivered to all,
                                                │                                                    or dead ──> deleted
                                                └─ no events ──> forgotten here, then deleted
    its replica is gone ──> another one adopts it (`adoption.py`): adopted ──> deleted

    events/<run>/<change>[.<more>]     JSON: {"key", "claim"}, and {"order", "events"} once it is confirmed;
                                       {"adopted"}: another replica has taken it over

`<run>` names the outbox of a replica's disk. An object is changed by compare-and-set alone until it is confirmed or
adopted, and deleted only after that. So whoever confirms a change that was adopted meanwhile learns it, and writes the
events down under a key that nobody has used: they are sent twice rather than never, with the same ids.

What reports no change, such as a pull, is not in the bucket: it goes with the disk.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

from mirror.errors import RecordChanged, StoreError
from mirror.ports import (
    ABSENT,
    Backlog,
    Bucket,
    EventStore,
    Gap,
    NotChanged,
    Outgoing,
    PreparedChange,
    Version,
    WaitingEvent,
)
from mirror.telemetry import log

#: The folder of all runs.
EVENTS: Final = "events/"
#: Bytes. No object is larger.
_LIMIT: Final = 8 << 20
#: A sweep looks for objects that nobody needs each so many times.
_TIDY_EVERY: Final = 60


class LocalOutbox(EventStore, Protocol):
    """The outbox of a disk."""

    def epoch(self) -> str:
        """The name of its file: another one after it was lost."""

    def holds(self, change: str) -> bool:
        """Whether the change of this id is prepared, or an event of it waits."""


@dataclass(frozen=True, slots=True)
class StoredChange:
    """A change as the bucket has it. `events` is None until it is confirmed."""

    object: str
    version: Version
    change: PreparedChange
    events: Sequence[Outgoing] | None
    is_adopted: bool = False


class BucketOutbox:
    """See `mirror.ports.EventStore`. May be used from any thread."""

    def __init__(self, own: LocalOutbox, bucket: Bucket, place: str = "") -> None:
        """`place` says where the disk of the outbox is: a copy of the disk has a run of its own."""
        self._own = own
        self._place = place
        self._bucket = bucket
        self._lock = threading.Lock()
        #: The objects of changes that this process has written: their keys and versions.
        self._objects: dict[str, tuple[str, Version]] = {}
        #: Changes whose objects may not be needed any more.
        self._maybe_done: set[str] = set()
        self._sweeps = 0

    def __repr__(self) -> str:
        return f"<BucketOutbox of {self._own!r}>"

    # ----------------------------------------------------------------------------------------------------- changes

    def prepare(self, key: str, claim: str) -> PreparedChange:
        """See `Outbox.prepare`."""
        prepared = self._own.prepare(key, claim)
        object_key = self._key(prepared.id)
        try:
            version = self._bucket.write(object_key, _content(prepared), expect=ABSENT)
        except (StoreError, RecordChanged) as error:
            # the change is not made
            with suppress(StoreError):
                self._own.confirm(prepared, "", ())
            raise StoreError(f"the change cannot be written down for its events: {error}") from error
        self._note(prepared.id, object_key, version)
        return prepared

    def confirm(self, prepared: PreparedChange | None, order: str, events: Sequence[Outgoing]) -> None:
        """See `Outbox.confirm`."""
        if prepared is None or not events:
            self._own.confirm(prepared, order, events)
            if prepared is not None:
                self._maybe_done.add(prepared.id)
            return
        self._store(prepared, order, events)
        self._own.confirm(prepared, order, events)

    def _store(self, prepared: PreparedChange, order: str, events: Sequence[Outgoing]) -> None:
        """Write the events down in the bucket, also if another replica has adopted the change."""
        content = _content(prepared, order, events)
        with self._lock:
            known = self._objects.get(prepared.id)
        if known is None:
            # another process of this replica has prepared it
            found = self._read(self._key(prepared.id))
            known = (found.object, found.version) if found is not None and not found.is_adopted else None
        if known is not None:
            object_key, version = known
            with suppress(RecordChanged):
                self._note(prepared.id, object_key, self._bucket.write(object_key, content, expect=version))
                return
            found = self._read(object_key)
            if found is not None and found.events is not None and list(found.events) == list(events):
                # an earlier attempt, whose answer was lost
                self._note(prepared.id, object_key, found.version)
                return
        object_key = f"{self._key(prepared.id)}.{secrets.token_hex(8)}"
        self._note(prepared.id, object_key, self._bucket.write(object_key, content, expect=ABSENT))
        log.info("events written after adoption", repository=prepared.key, count=len(events))

    def take_in(self, prepared: PreparedChange, order: str, events: Sequence[Outgoing]) -> None:
        """Let the events of a change of another replica wait here. Repeatable. Raises `StoreError`."""
        if not events:
            return
        self._own.confirm(None, order, events)
        key = self._key(prepared.id)
        with suppress(RecordChanged):
            self._note(prepared.id, key, self._bucket.write(key, _content(prepared, order, events), expect=ABSENT))

    def turn(self, key: str) -> AbstractContextManager[str]:
        """See `Outbox.turn`."""
        return self._own.turn(key)

    def orphans(self, key: str | None = None) -> Sequence[PreparedChange]:
        """See `Outbox.orphans`. Those of replicas that are gone are not among them."""
        return self._own.orphans(key)

    def is_prepared(self, prepared: PreparedChange) -> bool:
        """See `Outbox.is_prepared`."""
        return self._own.is_prepared(prepared)

    def abandon(self, prepared: PreparedChange) -> None:
        """See `Outbox.abandon`."""
        self._own.abandon(prepared)

    def sweep(self) -> None:
        """See `Outbox.sweep`. Deletes objects that are not needed any more."""
        self._own.sweep()
        with self._lock:
            maybe, self._maybe_done = self._maybe_done, set()
        done = [change for change in maybe if not self._own.holds(change)]
        self._maybe_done |= maybe.difference(done)
        self._delete([self._forget(change) for change in done])
        if self._sweeps % _TIDY_EVERY == 0:
            self._tidy()
        self._sweeps += 1

    def _tidy(self) -> None:
        """Deletes the objects of this run that an earlier process has left."""
        run = f"{EVENTS}{self.run}/"
        # each object is written after the change is known here, so what is not known now is over
        self._delete([info.key for info in self._bucket.list(run) if not self._own.holds(change_of(info.key))])

    def _delete(self, keys: Sequence[str]) -> None:
        if keys:
            self._bucket.delete(keys)

    # ---------------------------------------------------------------------------------------------------- adoption

    @property
    def run(self) -> str:
        """The name of this replica's outbox. Raises `StoreError`."""
        return f"{self._own.epoch()}-{self._place}" if self._place else self._own.epoch()

    def stored(self, run: str) -> Iterator[StoredChange]:
        """Blocking: the changes of a run that are in the bucket. Raises `StoreError`."""
        for info in self._bucket.list(f"{EVENTS}{run}/"):
            if (found := self._read(info.key)) is not None:
                yield found

    def runs(self) -> Collection[str]:
        """Blocking: the runs that have changes in the bucket. Raises `StoreError`."""
        return {info.key.split("/")[1] for info in self._bucket.list(EVENTS)}

    def mark_adopted(self, stored: StoredChange) -> bool:
        """Blocking: from now on its replica can no longer confirm the change under that key. False if it has changed
        it meanwhile. Raises `StoreError`.
        """
        if stored.is_adopted:
            return True
        try:
            self._bucket.write(stored.object, json.dumps({"adopted": self.run}).encode(), expect=stored.version)
        except RecordChanged:
            return False
        return True

    def drop(self, stored: StoredChange) -> None:
        """Blocking: delete the object of a change that was adopted. Raises `StoreError`."""
        self._bucket.delete([stored.object])

    def look(self, key: str) -> StoredChange | None:
        """Blocking: what an object says; None if it is gone. Raises `StoreError`."""
        return self._read(key)

    def _read(self, key: str) -> StoredChange | None:
        found = self._bucket.read(key, _LIMIT)
        return None if found is None or isinstance(found, NotChanged) else _parse(key, found.content, found.version)

    def _key(self, change: str) -> str:
        return f"{EVENTS}{self.run}/{change}"

    def _note(self, change: str, key: str, version: Version) -> None:
        with self._lock:
            self._objects[change] = key, version

    def _forget(self, change: str) -> str:
        with self._lock:
            known = self._objects.pop(change, None)
        return self._key(change) if known is None else known[0]

    # -------------------------------------------------------------------------------------------------- deliveries

    def wake(self, woken: Callable[[], None]) -> None:
        """See `EventStore.wake`."""
        self._own.wake(woken)

    def changed(self) -> int:
        """See `Deliveries.changed`."""
        return self._own.changed()

    def heads(self, endpoint: str, skip: Collection[str], most: int) -> Sequence[WaitingEvent]:
        """See `Deliveries.heads`."""
        return self._own.heads(endpoint, skip, most)

    def gap(self, endpoint: str) -> Gap | None:
        """See `Deliveries.gap`."""
        return self._own.gap(endpoint)

    def told(self, endpoint: str, gap: Gap) -> None:
        """See `Deliveries.told`."""
        self._own.told(endpoint, gap)

    def delivered(self, event: WaitingEvent) -> None:
        """See `Deliveries.delivered`."""
        self._own.delivered(event)
        self._maybe_done.add(event.id.rpartition("-")[0])

    def failed(self, event: WaitingEvent, error: str) -> None:
        """See `Deliveries.failed`."""
        self._own.failed(event, error)

    def bury(self, event: WaitingEvent, error: str) -> None:
        """See `Deliveries.bury`."""
        self._own.bury(event, error)
        self._maybe_done.add(event.id.rpartition("-")[0])

    def expire(self, endpoint: str, before: float) -> int:
        """See `Deliveries.expire`."""
        return self._own.expire(endpoint, before)

    def forget_endpoints(self, known: Collection[str], before: float) -> int:
        """See `Deliveries.forget_endpoints`."""
        return self._own.forget_endpoints(known, before)

    def backlog(self, known: Collection[str]) -> Sequence[Backlog]:
        """See `Deliveries.backlog`."""
        return self._own.backlog(known)

    def listed(self, *, endpoint: str | None, dead: bool | None, most: int) -> Sequence[WaitingEvent]:
        """See `Deliveries.listed`."""
        return self._own.listed(endpoint=endpoint, dead=dead, most=most)

    def resend(self, *, id: str | None, endpoint: str | None) -> int:
        """See `Deliveries.resend`."""
        return self._own.resend(id=id, endpoint=endpoint)

    def close(self) -> None:
        """See `Outbox.close`."""
        self._own.close()


def change_of(key: str) -> str:
    """The id of the change that an object is about."""
    return key.rpartition("/")[2].partition(".")[0]


def _content(prepared: PreparedChange, order: str = "", events: Sequence[Outgoing] | None = None) -> bytes:
    said: dict[str, Any] = {"key": prepared.key, "claim": prepared.claim}
    if events is not None:
        said |= {"order": order, "events": [[*_fields(event)] for event in events]}
    return json.dumps(said).encode()


def _fields(event: Outgoing) -> tuple[Any, ...]:
    return event.id, event.type, event.key, event.body, event.made_at, list(event.endpoints)


def _parse(key: str, content: bytes, version: Version) -> StoredChange:
    """What an object says. One that is damaged is a change without a description, which is given up with an event."""
    try:
        said = json.loads(content)
        change = PreparedChange(change_of(key), str(said.get("key", "")), str(said.get("claim", "")))
        events = None
        if "events" in said:
            events = [
                Outgoing(str(id), str(kind), str(of), str(body), float(at), tuple(map(str, endpoints)))
                for id, kind, of, body, at, endpoints in said["events"]
            ]
        return StoredChange(key, version, change, events, is_adopted="adopted" in said)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return StoredChange(key, version, PreparedChange(change_of(key), "", ""), None)

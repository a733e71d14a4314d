"""Announces changes of hosted repositories through an outbox.

    begin ── orphans of the repository settled ── prepared ──> turn ──> done ── confirmed ──> the events wait
                                                       │                 └─ the outbox fails ──> kept here, tried again
                                                       └─ end without done ── look ──> what is there is confirmed
                                                                               └─ cannot be read ──> an orphan

Orphans are settled before the next change of their repository, and by `settle`, which the server calls regularly.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from mirror.errors import StoreError
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.events.changes import (
    LOST,
    TYPES_OF,
    ChangeKind,
    Event,
    HostedChange,
    SeenChange,
    all_of,
    events_of,
)
from mirror.policy.events.cloud_events import cloud_event
from mirror.policy.events.subscriptions import Subscriptions
from mirror.ports import SILENCE, Announcement, Outbox, Outgoing, PreparedChange
from mirror.telemetry import log

#: Seconds after which a change is given up whose records cannot be read.
_GIVEN_UP_AFTER: Final = 3600.0


class OutboxAnnouncer:
    """See `mirror.ports.Announcer`."""

    def __init__(
        self,
        outbox: Outbox,
        subscriptions: Subscriptions,
        look: Callable[[HostedChange, Collection[str] | None], SeenChange],
        source: str,
        now: Callable[[], float],
    ) -> None:
        """`look` says what the records show of a change, given the tags that it has written, or None if that is not
        known; it may raise `StoreError`. `source` names this mirror in
        events. `now` is in epoch seconds.
        """
        self.outbox = outbox
        self._subscriptions = subscriptions
        self._look = look
        self._source = source
        self._now = now
        #: What could not be confirmed: the change, the order of its turn, and its events.
        self._unconfirmed: list[tuple[PreparedChange, str, Sequence[Event]]] = []
        #: Those that could not be left to other processes.
        self._left: list[PreparedChange] = []
        self._unconfirmed_lock = threading.Lock()
        #: Since when a change cannot be looked at, by its id.
        self._unreadable: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<OutboxAnnouncer {len(self._unconfirmed)} unconfirmed>"

    def begin(self, kind: ChangeKind, repo: Repo, describe: Callable[[], HostedChange]) -> Announcement:
        """See `Announcer`."""
        if not self._subscriptions.anybody_wants(TYPES_OF[kind], repo):
            return SILENCE
        self._settle(str(repo))
        change = describe()
        return _Announced(self, change, self.outbox.prepare(str(repo), change.to_json()))

    # ------------------------------------------------------------------------------------------- confirming a change

    def confirm(self, prepared: PreparedChange, order: str, events: Sequence[Event]) -> None:
        """Lets the events of a change wait for delivery; if the outbox fails, they are kept and tried again."""
        try:
            self._confirm(prepared, order, events)
        except StoreError as error:
            log.warning("events not confirmed", repository=prepared.key, reason=str(error))
            with self._unconfirmed_lock:
                self._unconfirmed.append((prepared, order, events))

    def leave(self, prepared: PreparedChange) -> None:
        """Lets any process find out what became of a change."""
        try:
            self.outbox.abandon(prepared)
        except StoreError as error:
            log.warning("events not confirmed", repository=prepared.key, reason=str(error))
            with self._unconfirmed_lock:
                self._left.append(prepared)

    def resolve(self, prepared: PreparedChange, change: HostedChange, written: Collection[str] | None = None) -> None:
        """Confirms what the records show of a change. Raises `StoreError` if that cannot be told."""
        with self.outbox.turn(prepared.key) as order:
            if not self.outbox.is_prepared(prepared):
                return
            events = events_of(change, self._look(change, written))
        self._confirm(prepared, order, events)

    def look_at(self, prepared: PreparedChange, lost: str = "") -> tuple[str, Sequence[Outgoing]]:
        """What the records show of a change that another replica has prepared: the order of a turn, and its events.
        `lost` says why that cannot be told, and is reported then. Raises `StoreError` if it cannot be told now.
        """
        change = None if lost else HostedChange.from_json(prepared.claim)
        with self.outbox.turn(prepared.key) as order:
            if change is None:
                why = lost or "its description is damaged"
                events: Sequence[Event] = [Event(LOST, prepared.key, prepared.key, {"count": 1, "reason": why})]
            else:
                events = events_of(change, self._look(change, None))
        return order, self._outgoing(prepared, order, events)

    def _confirm(self, prepared: PreparedChange, order: str, events: Sequence[Event]) -> None:
        """Lets those events wait that anybody wants. Their ids are the same however often this is called."""
        self.outbox.confirm(prepared, order, self._outgoing(prepared, order, events))

    def _outgoing(self, prepared: PreparedChange, order: str, events: Sequence[Event]) -> Sequence[Outgoing]:
        at = self._now()
        outgoing = []
        for number, event in enumerate(events):
            if endpoints := tuple(self._subscriptions.endpoints(event)):
                own = f"{prepared.id}-{number}"
                body = cloud_event(event, id=own, source=self._source, at=at, sequence=f"{order}.{number:03d}")
                outgoing.append(Outgoing(own, event.type, event.key, body, at, endpoints))
        return outgoing

    # ------------------------------------------------------------------------------------------------------ orphans

    def settle(self) -> None:
        """Blocking: confirms what could not be confirmed, and what processes that died have left. Raises
        `StoreError`.
        """
        self._confirm_again()
        self._settle(None)
        self.outbox.sweep()

    def _confirm_again(self) -> None:
        with self._unconfirmed_lock:
            waiting, self._unconfirmed = self._unconfirmed, []
        while waiting:
            prepared, order, events = waiting[0]
            try:
                self._confirm(prepared, order, events)
            except StoreError:
                with self._unconfirmed_lock:
                    self._unconfirmed = waiting + self._unconfirmed
                raise
            waiting.pop(0)
        with self._unconfirmed_lock:
            left, self._left = self._left, []
        for prepared in left:
            self.leave(prepared)

    def _settle(self, key: str | None) -> None:
        for prepared in self.outbox.orphans(key):
            change = HostedChange.from_json(prepared.claim)
            if change is None:
                self._give_up(prepared, "its description is damaged")
                continue
            try:
                self.resolve(prepared, change)
                self._unreadable.pop(prepared.id, None)
            except StoreError as error:
                since = self._unreadable.setdefault(prepared.id, self._now())
                if self._now() - since > _GIVEN_UP_AFTER:
                    self._unreadable.pop(prepared.id, None)
                    self._give_up(prepared, str(error))

    def _give_up(self, prepared: PreparedChange, why: str) -> None:
        log.warning("interrupted change not reported", repository=prepared.key, reason=why)
        lost = Event(LOST, prepared.key, prepared.key, {"count": 1, "reason": why})
        with self.outbox.turn(prepared.key) as order:
            pass
        self._confirm(prepared, order, [lost])


class _Announced:
    """See `mirror.ports.Announcement`."""

    def __init__(self, announcer: OutboxAnnouncer, change: HostedChange, prepared: PreparedChange) -> None:
        self._announcer = announcer
        self._change = change
        self._prepared = prepared
        self._order: str | None = None
        self._over = False

    def __repr__(self) -> str:
        return f"<_Announced {self._change.kind.value} {self._prepared.key}{' over' if self._over else ''}>"

    @contextmanager
    def turn(self) -> Iterator[None]:
        with self._announcer.outbox.turn(self._prepared.key) as order:
            self._order = order
            yield

    def done(self, before: Mapping[str, Digest] | None = None, written: Mapping[str, int] | None = None) -> None:
        self._over = True
        change = self._change if before is None else replace(self._change, before=dict(before))
        order = self._order
        if order is None:
            try:
                with self._announcer.outbox.turn(self._prepared.key) as order:
                    pass
            except StoreError:
                self._announcer.leave(self._prepared)
                return
        self._announcer.confirm(self._prepared, order, events_of(change, all_of(change, written)))

    def cancel(self) -> None:
        self._over = True
        # nothing is reported, so the order does not matter
        self._announcer.confirm(self._prepared, "", ())

    def end(self, written: Collection[str] | None = None) -> None:
        if self._over:
            return
        self._over = True
        try:
            self._announcer.resolve(self._prepared, self._change, written)
        except StoreError:
            self._announcer.leave(self._prepared)
        except Exception:
            # a mistake of ours must neither hide the error of the change, nor hold up later events of the repository
            log.exception("announcement crashed", repository=self._prepared.key)
            self._announcer.leave(self._prepared)

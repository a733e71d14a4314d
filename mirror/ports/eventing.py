"""Events of changes: written down with the change, delivered later. All calls block for a short time unless said.

The life cycle of a change, as whoever makes it goes through it:

    begin() ── durable ──> prepared ── turn(): the change becomes visible ── flush ── done() ── durable ──> events wait
                              └── an error, or the process dies ──> the records say what is there, and that is reported

`begin` comes before the first write that anybody can see, and `done` before the client is answered. So no change that
was acknowledged lacks its events, and no event reports what is not there. Events of one repository are delivered in
the order of their turns.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final, Protocol

from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.events.changes import ChangeKind, HostedChange


class Announcement(Protocol):
    """The events of one change that is being made. Whoever has begun it calls `end`, whatever happens."""

    def turn(self) -> AbstractContextManager[None]:
        """Excludes the turns of other changes of the repository, in all processes: inside, what is changed becomes
        visible. For a few writes only.
        """

    def done(self, before: Mapping[str, Digest] | None = None, written: Mapping[str, int] | None = None) -> None:
        """To be called when all is durable: from now on the events are delivered. `before` has what the tags that moved
        pointed to; `written` are the tags that were written, with their generations (None: all, and they have
        none). Never raises: if the events cannot be confirmed now, they are confirmed later.
        """

    def cancel(self) -> None:
        """To be called when the change was certainly not made: nothing is reported. Never raises."""

    def end(self, written: Collection[str] | None = None) -> None:
        """Without `done` or `cancel`, reports what the records show of the change. `written` are the tags of the change
        that were written; None if the caller does not know. Repeatable, never raises.
        """


class Announcer(Protocol):
    """Reports changes of hosted repositories to those who have subscribed to them."""

    def begin(self, kind: ChangeKind, repo: Repo, describe: Callable[[], HostedChange]) -> Announcement:
        """Writes down that a change is about to be made. Durable on return. `describe` is called if anybody has
        subscribed to such changes; it may raise. Raises `StoreError`: then the change must not be made.
        """


class _Silence:
    """An announcement, and an announcer, of changes that nobody has subscribed to."""

    def begin(self, kind: ChangeKind, repo: Repo, describe: Callable[[], HostedChange]) -> Announcement:
        return self

    def turn(self) -> AbstractContextManager[None]:
        return nullcontext()

    def done(self, before: Mapping[str, Digest] | None = None, written: Mapping[str, int] | None = None) -> None:
        pass

    def cancel(self) -> None:
        pass

    def end(self, written: Collection[str] | None = None) -> None:
        pass

    def __repr__(self) -> str:
        return "<_Silence>"


#: Reports nothing, and costs nothing.
SILENCE: Final = _Silence()


# ------------------------------------------------------------------------------------------------------------ outbox


@dataclass(frozen=True, slots=True)
class PreparedChange:
    """A change that was prepared and of which it is not known whether it was made. `claim` is what `prepare` got."""

    id: str
    key: str
    claim: str


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An event for these endpoints. `body` is what is sent, `made_at` is in epoch seconds."""

    id: str
    type: str
    key: str
    body: str
    made_at: float
    endpoints: tuple[str, ...]


class Outbox(Protocol):
    """Where changes are prepared, and events wait. Every call raises `StoreError` if it fails, and has changed nothing
    then, unless it says otherwise.

    prepare() ──> prepared ── confirm() ──> waiting ── delivered() ──> gone
                     │  ^                     │  ^
      abandon(), or  │  │                     │  └─ resend() ─┐
      the death of   v  │                     └── bury() ──> dead
      its process  orphans() ── confirm()                     │
                                              └── beyond the bound: the oldest go, and are counted in a gap
    """

    def prepare(self, key: str, claim: str) -> PreparedChange:
        """Write down a change that is about to be made. Durable on return."""

    def turn(self, key: str) -> AbstractContextManager[str]:
        """Exclude other turns of the key, in all processes. Inside, the result is a text that is greater than that of
        each turn of the key before. Never waits for a disk to sync.
        """

    def confirm(self, prepared: PreparedChange | None, order: str, events: Sequence[Outgoing]) -> None:
        """Let events wait, in the order of a turn, and forget the prepared change; no events: only forget it.

        Every process sees it on return, also after the death of this one. After a power cut, the change may be prepared
        again. Repeatable: an event that waits is not written again.
        """

    def orphans(self, key: str | None = None) -> Sequence[PreparedChange]:
        """The changes, of this key or of all, that no living process is making."""

    def is_prepared(self, prepared: PreparedChange) -> bool:
        """Whether the change is still to be confirmed."""

    def abandon(self, prepared: PreparedChange) -> None:
        """Let any process find out what became of this change."""

    def sweep(self) -> None:
        """Delete what processes that no longer live have left and nobody needs."""

    def close(self) -> None:
        """Close the files. Repeatable."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Events that an endpoint will not get, because too many were waiting: how many (0: unknown), and when the first
    and the last of them were made.
    """

    number: int
    id: str
    count: int
    first_at: float
    last_at: float


@dataclass(frozen=True, slots=True)
class WaitingEvent:
    """An event that waits for an endpoint, or is `dead`: how often it was sent in vain, and how that ended last."""

    number: int
    id: str
    type: str
    key: str
    endpoint: str
    body: str
    made_at: float
    attempts: int = 0
    error: str = ""
    dead: bool = False


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits for an endpoint. `oldest_at` is when the oldest waiting event was made; None: none waits. `lost` are
    the events of gaps of which the endpoint was not informed yet.
    """

    endpoint: str
    waiting: int = 0
    dead: int = 0
    oldest_at: float | None = None
    lost: int = 0


class Deliveries(Protocol):
    """The outbox as whoever delivers sees it. Calls raise `StoreError`."""

    def changed(self) -> int:
        """Differs after each change that another process has made."""

    def heads(self, endpoint: str, skip: Collection[str], most: int) -> Sequence[WaitingEvent]:
        """The next event of up to `most` keys, without those in `skip`; of each key the one whose turn was first."""

    def gap(self, endpoint: str) -> Gap | None:
        """The oldest gap of which the endpoint was not informed; from now on it does not grow."""

    def told(self, endpoint: str, gap: Gap) -> None:
        """Forget a gap of which the endpoint was informed."""

    def delivered(self, event: WaitingEvent) -> None:
        """The endpoint has the event. Repeatable."""

    def failed(self, event: WaitingEvent, error: str) -> None:
        """Note an attempt that failed, and why."""

    def bury(self, event: WaitingEvent, error: str) -> None:
        """The event is not sent any more, unless by `resend`."""

    def expire(self, endpoint: str, before: float) -> int:
        """Bury the events that have waited since before `before`; returns how many."""

    def forget_endpoints(self, known: Collection[str], before: float) -> int:
        """Drop what was made before `before` for endpoints that are not among the `known` ones; returns how much."""

    def backlog(self, known: Collection[str]) -> Sequence[Backlog]:
        """What waits for each endpoint: the known ones, and others for which something waits."""

    def listed(self, *, endpoint: str | None, dead: bool | None, most: int) -> Sequence[WaitingEvent]:
        """Events that wait, or are dead, the oldest first; of one endpoint, or of all."""

    def resend(self, *, id: str | None, endpoint: str | None) -> int:
        """Let dead events wait again, from now on: one, those of an endpoint, or all; returns how many."""


@dataclass(frozen=True, slots=True)
class Reply:
    """How an attempt ended: the status, None without an answer, and the `problem` then, in words that name no address;
    and after how many seconds the endpoint wants to be asked again, if it says so.
    """

    status: int | None
    problem: str = ""
    retry_after: float | None = None


class EventSender(Protocol):
    """Sends events to endpoints, by their names."""

    async def send(self, endpoint: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        """One POST. Redirects are not followed, and what the endpoint answers is not kept. Raises nothing."""


class EventStore(Outbox, Deliveries, Protocol):
    """The whole outbox."""

    def wake(self, woken: Callable[[], None]) -> None:
        """Call this after events of this process were confirmed, in any thread."""

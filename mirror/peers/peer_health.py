"""Which of the other replicas answer, as this process has seen it.

    not asked ── an answer ──> up, or without one ──> down
    up ── no answer in time, no connection ──> down ──(1, 2, 4 … 30 s: one call is tried)──> up, or down for longer

Each process notices for itself: a replica that one worker cannot reach may answer another one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from mirror import telemetry
from mirror.aio.breaker import Breaker

#: How many of the last answers the times of first bytes are taken of.
_TIMES: Final = 100


@dataclass(frozen=True, slots=True)
class PeerState:
    """What is known of one member. `up` is True if it has answered, and is not left alone since; `since` is in epoch
    seconds, None if nothing is known of it yet; `first_byte` is the 90th
    percentile of the last answers in seconds, None if there were none; `version` is that of its program.
    """

    up: bool
    since: float | None
    reason: str
    version: str
    first_byte: float | None


@dataclass(eq=False, slots=True)
class _Peer:
    breaker: Breaker
    since: float | None = None
    reason: str = ""
    version: str = ""
    times: deque[float] = field(default_factory=lambda: deque(maxlen=_TIMES))


class PeerHealth:
    """May be used from any thread."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        """`now` is a monotonic clock, `wall` that of days and hours; both in seconds."""
        self._now = now
        self._wall = wall
        self._lock = threading.Lock()
        self._peers: dict[str, _Peer] = {}
        #: Whom the metric counts; None: all.
        self._counted: frozenset[str] | None = None

    def __repr__(self) -> str:
        down = sorted(member for member in list(self._peers) if not self.is_up(member))
        return f"<PeerHealth of {len(self._peers)}, down: {down}>"

    def admit(self, member: str) -> int | None:
        """A ticket for one call, to be handed back to `answered`, `failed` or `withdraw`; None: leave it alone."""
        with self._lock:
            return self._of(member).breaker.admit()

    def is_up(self, member: str) -> bool:
        """False while a member is left alone: one that was not asked yet may be. Quick."""
        with self._lock:
            peer = self._peers.get(member)
            return peer is None or not peer.breaker.is_open

    def answered(self, member: str, ticket: int | None, seconds: float | None = None, version: str = "") -> None:
        """A member has answered, whatever it said, `seconds` after it was asked (None: it had to wait for others
        before). A call without a ticket was made although the member was left alone.
        """
        with self._lock:
            peer = self._of(member)
            if ticket is None:
                back, peer.breaker = peer.breaker.is_open, Breaker(self._now)
            else:
                back = peer.breaker.succeed(ticket)
            if seconds is not None:
                peer.times.append(seconds)
            if version:
                peer.version = version
            if back or peer.since is None:
                peer.since, peer.reason = self._wall(), ""
        if back:
            self._count()
            telemetry.log.info("peer back", peer=member)

    def failed(self, member: str, ticket: int | None, reason: str) -> None:
        """A member has not answered in time, or could not be reached."""
        with self._lock:
            peer = self._of(member)
            begins = peer.breaker.fail(ticket) if ticket is not None else False
            if begins:
                peer.since = self._wall()
            if peer.breaker.is_open:
                peer.reason = reason
        if begins:
            self._count()
            telemetry.log.warning("peer down", peer=member, reason=reason)

    def withdraw(self, member: str, ticket: int | None) -> None:
        """The caller gave the call up, which says nothing about the member."""
        if ticket is not None:
            with self._lock:
                self._of(member).breaker.withdraw(ticket)

    def first_byte(self, member: str) -> float | None:
        """The 90th percentile of the last answers, in seconds; None if there were none."""
        with self._lock:
            peer = self._peers.get(member)
            times = sorted(peer.times) if peer else []
        return times[int(len(times) * 0.9)] if times else None

    def state(self, member: str) -> PeerState:
        """What is known of a member now."""
        first = self.first_byte(member)
        with self._lock:
            peer = self._of(member)
            up = peer.since is not None and not peer.breaker.is_open
            return PeerState(up, peer.since, peer.reason, peer.version, first)

    def keep(self, known: Collection[str], members: Collection[str]) -> None:
        """Drop what is known of others than `known`. Of these, the metric counts the `members`: one that has left is
        missed by nobody.
        """
        with self._lock:
            self._counted = frozenset(members)
            for member in self._peers.keys() - set(known):
                del self._peers[member]
        self._count()

    def _count(self) -> None:
        with self._lock:
            down = (
                peer.breaker.is_open
                for member, peer in self._peers.items()
                if self._counted is None or member in self._counted
            )
            telemetry.PEERS_DOWN.set(sum(down))

    def _of(self, member: str) -> _Peer:
        return self._peers.setdefault(member, _Peer(Breaker(self._now)))

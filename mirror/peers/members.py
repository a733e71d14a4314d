"""Who the replicas of the cluster are.

    configured, or the answer of a lookup ──> members ──(no longer in the answer)──> left ──(10 minutes)──> forgotten
                                                 ^                                     │
                                                 └──────────(in an answer again)───────┘

A replica that has left is asked for nothing new, but it may be draining: what it asks for is answered, and uploads that
began there are still taken to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from mirror import telemetry
from mirror.peers.peer_health import PeerHealth, PeerState

#: Seconds for which a replica that has left may still ask.
_LEAVING: Final = 600.0


class ClusterMembers:
    """The members as they were last known. May be asked from any thread. Implements `Members`."""

    def __init__(
        self, own: str, members: Iterable[str], health: PeerHealth, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        """`now` is a monotonic clock in seconds."""
        self._own = own
        self._health = health
        self._now = now
        self._left: dict[str, float] = {}
        self._all = tuple(sorted({own, *members}))
        telemetry.PEERS.set(len(self.peers()))

    def __repr__(self) -> str:
        return f"<ClusterMembers {self._own} of {len(self._all)}>"

    @property
    def own(self) -> str:
        """The address of this replica."""
        return self._own

    def all(self) -> Sequence[str]:
        """The addresses of all members, also of this replica, sorted."""
        return self._all

    def peers(self) -> Sequence[str]:
        """The addresses of the other members, sorted."""
        return [member for member in self._all if member != self._own]

    def known(self) -> frozenset[str]:
        """All members, and those that have left lately."""
        since = self._now() - _LEAVING
        return frozenset((*self._all, *(member for member, at in self._left.copy().items() if at > since)))

    def is_up(self, member: str) -> bool:
        """False while this process leaves a member alone because it did not answer."""
        return self._health.is_up(member)

    def state(self, member: str) -> PeerState:
        """What this process knows of a member."""
        return self._health.state(member)

    def replace(self, members: Iterable[str]) -> None:
        """What a lookup has found; this replica is a member in any case. Not from two threads at once."""
        now, all_now = self._now(), tuple(sorted({self._own, *members}))
        gone = dict.fromkeys(set(self._all) - set(all_now), now)
        left = {member: at for member, at in (self._left | gone).items() if at > now - _LEAVING}
        self._left = {member: at for member, at in left.items() if member not in all_now}
        self._all = all_now
        self._health.keep(self.known(), all_now)
        telemetry.PEERS.set(len(self.peers()))

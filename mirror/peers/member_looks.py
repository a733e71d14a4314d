"""Looks regularly whether the other replicas answer, also while nothing else asks them.

    one process of this replica ──> every other member, with a notice of nothing ──┬─ answers ──────────> up
    the other processes         ──> those that they leave alone themselves         └─ silent, refuses ──> down
                                          └──────────── pause ───────────┘

The first process finds out what is wrong. The others are only corrected: each leaves members alone by what it has seen
itself, and would otherwise go on to say that a member is down until a client's request needs it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from mirror.peers.members import ClusterMembers
from mirror.peers.notice_text import write_notice
from mirror.peers.peer_client import PeerClient, PeerSilent
from mirror.peers.peer_notices import TARGET
from mirror.policy.cluster.peer_signatures import PeerRefused
from mirror.ports.locking import Lease
from mirror.ports.peers import Notice
from mirror.rounds import KeptLock, run_rounds

#: Seconds between two looks, and the part of them by which a pause may be shorter or longer: replicas that started
#: together would ask each other at the same moments.
_PAUSE: Final = 10.0
_JITTER: Final = 0.2
#: Seconds for an answer: a replica that is merely slow is not down.
_PATIENCE: Final = 5.0


class MemberLooks:
    """Keeps what `PeerHealth` knows of the other members up to date."""

    def __init__(
        self,
        members: ClusterMembers,
        client: PeerClient,
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        patience: float = _PATIENCE,
    ) -> None:
        """`sleep` takes seconds; `patience` is the seconds for an answer."""
        self._members = members
        self._client = client
        self._sleep = sleep
        self._patience = patience

    def __repr__(self) -> str:
        return f"<MemberLooks at {len(self._members.peers())}>"

    async def run(self, try_hold: Callable[[], Awaitable[Lease | None]]) -> None:
        """Looks until it is cancelled. `try_hold` gets the lease of the one process of this replica that asks all."""

        async def look() -> float:
            await self.look(everyone=await lock.taken() is not None)
            # no secret depends on it
            return _PAUSE * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311

        with KeptLock(try_hold) as lock:
            await run_rounds(look, _PAUSE, crashed="looks at replicas crashed", sleep=self._sleep)

    async def look(self, *, everyone: bool) -> None:
        """Asks all other members at the same time, or those that this process leaves alone."""
        members = self._members
        await asyncio.gather(*(self._ask(peer) for peer in members.peers() if everyone or not members.is_up(peer)))

    async def _ask(self, member: str) -> None:
        # also a member that is left alone: its pause may have become longer than that between two looks
        with suppress(PeerSilent, PeerRefused):
            await self._client.call(
                member, "look", "POST", TARGET, body=write_notice(Notice()), patience=self._patience, insist=True
            )

"""Informs the other replicas of what has changed here.

send ──> every peer at the same time ──┬─ 204 ──────────────────────> it has taken effect there
                                       └─ silent, refused, too late ─> returned to the caller
hint ──> what waits for the peer is added up ──> sent behind, one at a time for each peer; what fails is forgotten
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from mirror import telemetry
from mirror.aio.singleflight import cancel_and_wait
from mirror.errors import MirrorError
from mirror.peers.members import ClusterMembers
from mirror.peers.notice_text import parts_of, write_notice
from mirror.peers.peer_client import PeerClient, PeerSilent
from mirror.policy.cluster.peer_signatures import PeerRefused
from mirror.ports.peers import Notice

TARGET: Final = "/peer/v1/notice"
#: Seconds for a hint, which nobody waits for.
_PATIENCE: Final = 2.0
#: Repositories of which a peer is informed behind; of more it is not, and looks for itself.
_MOST: Final = 2000


class PeerNotices:
    """Implements `Notices`. Made with the event loop running, on which everything is sent; to be closed."""

    def __init__(self, members: ClusterMembers, client: PeerClient) -> None:
        self._members = members
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, Notice] = {}
        self._sending: dict[str, asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"<PeerNotices to {len(self._members.peers())}, {len(self._sending)} under way>"

    async def send(self, notice: Notice, *, patience: float, to: Sequence[str] | None = None) -> Sequence[str]:
        """Returns the members in which the notice has not taken effect within `patience` seconds, of all others or of
        those in `to`. Raises nothing.
        """
        peers = list(self._members.peers() if to is None else to)
        done = await asyncio.gather(*(self._sent(peer, notice, patience, insist=True) for peer in peers))
        return [peer for peer, confirmed in zip(peers, done, strict=True) if not confirmed]

    def hint(self, notice: Notice) -> None:
        """Send it behind, and forget it if that fails. May be called from any thread. Raises nothing."""
        try:
            self._loop.call_soon_threadsafe(self._add, notice)
        except RuntimeError:
            # the process ends: others look for themselves
            return

    async def aclose(self) -> None:
        """Give up what is under way. Repeatable."""
        await cancel_and_wait(*self._sending.values())

    def _add(self, notice: Notice) -> None:
        for peer in self._members.peers():
            self._waiting[peer] = _added(self._waiting.get(peer, Notice()), notice)
            if peer not in self._sending:
                task = self._loop.create_task(self._send_waiting(peer))
                self._sending[peer] = task
                task.add_done_callback(lambda _, peer=peer: self._sending.pop(peer, None))  # type: ignore[misc]

    async def _send_waiting(self, peer: str) -> None:
        while (notice := self._waiting.pop(peer, None)) is not None:
            await self._sent(peer, notice, _PATIENCE, insist=False)

    async def _sent(self, peer: str, notice: Notice, patience: float, *, insist: bool) -> bool:
        """True if the notice has taken effect."""
        try:
            async with asyncio.timeout(patience):
                for part in parts_of(notice):
                    answer = await self._client.call(
                        peer, "notice", "POST", TARGET, body=write_notice(part), patience=patience, insist=insist
                    )
                    if answer.status != 204:
                        telemetry.log.warning(
                            "notice refused", peer=peer, status=answer.status, reason=answer.content[:200].decode()
                        )
                        return False
        except (PeerSilent, PeerRefused, TimeoutError, MirrorError, UnicodeError):
            return False
        return True


def _added(one: Notice, other: Notice) -> Notice:
    repositories = tuple(dict.fromkeys((*one.repositories, *other.repositories)))[:_MOST]
    return Notice(repositories, tuple(dict.fromkeys((*one.kinds, *other.kinds))), (*one.purges, *other.purges))

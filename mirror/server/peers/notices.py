"""The verb by which another replica says what has changed there.

POST notice ──> every effect, at the same time ──┬─ all done ──> 204: it has taken effect in all workers
   └── of nothing: the sender looks whether      └─ an error ──> 503: the sender says so, and sends it again
       this replica answers ──> 204
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

from mirror import telemetry
from mirror.errors import MirrorError
from mirror.peers.notice_text import LARGEST, read_notice
from mirror.ports.peers import Notice
from mirror.server.peers.peer_front import PeerRequest, PeerVerb, small_body

#: Makes a notice take effect in all workers of this replica, before it returns. It may come more than once, and passes
#: over what it does not know. Raises `MirrorError` if that cannot be done now.
Effect = Callable[[Notice], Awaitable[None]]


class NoticeEffects:
    """What happens when a notice comes."""

    def __init__(self) -> None:
        self._effects: list[Effect] = []

    def __repr__(self) -> str:
        return f"<NoticeEffects {len(self._effects)}>"

    def add(self, effect: Effect) -> None:
        """To be called before the internal listener opens."""
        self._effects.append(effect)

    def verb(self) -> PeerVerb:
        """The verb for the internal listener."""
        return PeerVerb("notice", frozenset({"POST"}), self.answer, LARGEST)

    async def answer(self, peer: PeerRequest) -> web.StreamResponse:
        """Answers one notice."""
        notice = read_notice(await small_body(peer))
        if notice == Notice():
            return web.Response(status=204)
        results = await asyncio.gather(*(effect(notice) for effect in self._effects), return_exceptions=True)
        failed = False
        for result in results:
            if isinstance(result, MirrorError):
                failed = True
                telemetry.log.warning("notice without effect", peer=peer.call.sender, reason=str(result))
            elif isinstance(result, BaseException):
                raise result
        if failed:
            return web.Response(status=503, text="the notice has not taken effect\n")
        return web.Response(status=204)

"""Whose turn it is to send bytes of a file, so that the event loop comes round soon, however many clients it sends to.

    first bytes of an answer ───────────────> sent at once
    all that follow ── take() ──> waiting ──> sent, with as many others as fit into one round of the loop

A request that has just come needs several rounds until its first byte leaves. If each client were sent as much as its
socket takes in every round, a hundred clients would make a round last 50 ms and more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

#: Bytes that may be sent in one round of the loop, in a millisecond or two.
_ROUND: Final = 4 << 20
#: Sends in a round at the most: each takes time, however few its bytes are.
_SENDS: Final = 64


class SendTurns:
    """The turns of all clients of a process, first come, first served."""

    def __init__(self, most: int = _ROUND) -> None:
        """`most` is the number of bytes after which a round is full."""
        self._most = most
        self._least = most // _SENDS
        self._left = most
        #: True while `_begin_round` is called in each round.
        self._counts = False
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    def __repr__(self) -> str:
        return f"<SendTurns {len(self._waiting)} waiting, {self._left} of {self._most} bytes left>"

    async def take(self, cost: int) -> None:
        """Returns when about `cost` bytes may be sent: at once if this round of the loop has room for them."""
        cost = max(cost, self._least)
        loop = asyncio.get_running_loop()
        if not self._counts:
            self._counts = True
            loop.call_soon(self._begin_round, loop)
        if self._left > 0 and not self._waiting:
            self._left -= cost
            return
        turn = loop.create_future()
        self._waiting.append((turn, cost))
        await turn

    def _begin_round(self, loop: asyncio.AbstractEventLoop) -> None:
        self._left = self._most
        while self._waiting and self._left > 0:
            turn, cost = self._waiting.popleft()
            # a client that has left waits no longer
            if not turn.done():
                turn.set_result(None)
                self._left -= cost
        if self._left < self._most:
            loop.call_soon(self._begin_round, loop)
        else:
            self._counts = False

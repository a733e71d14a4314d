"""The order in which passwords are checked. A check costs a tenth of a second of a core by design, so wrong passwords
are the cheapest way to keep a machine busy: they wait in queues of limited length, behind passwords that were right
before.

    asked ── a thread is idle ───────────────────────────────> checked
      ├── was right before ──────────────> goes before the others ──┐
      ├── room in its client's queue ────> clients take turns ────┴── a thread is idle ──> checked
      └── queue full, or too many clients wait ──> `TooManyLogins`
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from mirror.errors import TooManyLogins

#: Waiting checks of one client: nodes behind one address start together.
_EACH: Final = 32
#: Clients with waiting checks.
_CLIENTS: Final = 256


class PasswordQueue:
    """The queue of one process; only its event loop may use it. `at_once` checks run at the same time."""

    def __init__(self, at_once: int, *, each: int = _EACH, clients: int = _CLIENTS) -> None:
        self._idle = at_once
        self._each = each
        self._clients = clients
        #: Checks of passwords that were right before; there are no more distinct ones than accounts.
        self._first: deque[asyncio.Future[None]] = deque()
        self._lines: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    def __repr__(self) -> str:
        waiting = len(self._first) + sum(map(len, self._lines.values()))
        return f"<PasswordQueue idle={self._idle} waiting={waiting}>"

    @asynccontextmanager
    async def turn(self, client: str, *, first: bool) -> AsyncIterator[None]:
        """The check runs inside the `with`. `client` is the address that it comes from. Raises `TooManyLogins`."""
        if self._idle:
            self._idle -= 1
        else:
            await self._wait(client, first=first)
        try:
            yield
        finally:
            self._next()

    async def _wait(self, client: str, *, first: bool) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line(client, first=first).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # this caller had just been given its turn: pass it on
                self._next()
            raise

    def _line(self, client: str, *, first: bool) -> deque[asyncio.Future[None]]:
        if first:
            return self._first
        line = self._lines.get(client)
        if line is None and len(self._lines) < self._clients:
            line = self._lines[client] = deque()
        if line is None or len(line) >= self._each:
            raise TooManyLogins("too many passwords are waiting to be checked; try again later")
        return line

    def _next(self) -> None:
        while self._first:
            if _wake(self._first.popleft()):
                return
        while self._lines:
            client, line = self._lines.popitem(last=False)
            turn = line.popleft()
            if line:
                self._lines[client] = line
            if _wake(turn):
                return
        self._idle += 1


def _wake(turn: asyncio.Future[None]) -> bool:
    if turn.done():
        return False
    turn.set_result(None)
    return True

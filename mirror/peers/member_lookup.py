"""The members of the cluster by a DNS name whose addresses they are, as a headless service of Kubernetes has it.

look up ──┬─ addresses ──────────> these are the members
          └─ none, error, late ──> the last answer counts; each new reason is logged once
pause, or a request of a replica that is no member yet ──> look up
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from mirror import telemetry
from mirror.peers.members import ClusterMembers
from mirror.policy.cluster.member_addresses import MemberAddress, parse_member
from mirror.rounds import run_rounds

_PAUSE: Final = 5.0
#: Seconds until a lookup counts as failed.
_PATIENCE: Final = 3.0
#: Seconds between two lookups for the sake of replicas that are not known.
_LEAST: Final = 1.0


async def addresses_of(host: str) -> Sequence[str]:
    """The IP addresses of a name. Raises `OSError`."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class MemberLookup:
    """Keeps the members up to date with a name."""

    def __init__(
        self,
        name: MemberAddress,
        members: ClusterMembers,
        *,
        resolve: Callable[[str], Awaitable[Sequence[str]]] = addresses_of,
        pause: float = _PAUSE,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`resolve` gives the IP addresses of a name and raises `OSError`; `pause` is in seconds."""
        self._name = name
        self._members = members
        self._resolve = resolve
        self._pause = pause
        self._now = now
        self._sleep = sleep
        self._looked = -_LEAST
        self._reason = ""
        self._turn = asyncio.Lock()
        self._first = asyncio.Event()

    def __repr__(self) -> str:
        return f"<MemberLookup {self._name}>"

    async def run(self) -> None:
        """Look up until cancelled."""

        async def look_up() -> None:
            try:
                await self.look_up()
            finally:
                self._first.set()

        await run_rounds(look_up, self._pause, crashed="lookup of members crashed", once=True, sleep=self._sleep)

    async def first(self, patience: float) -> None:
        """Returns once the name was looked up, or failed, for the first time, or after so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._first.wait()

    async def doubt(self) -> None:
        """Look up now, unless that was done within the last second. A lookup that is under way is waited for: all who
        ask meanwhile have its result.
        """
        async with self._turn:
            if self._now() - self._looked >= _LEAST:
                await self._look_up()

    async def look_up(self) -> None:
        """Ask once. Raises nothing: if it fails, the last answer counts."""
        async with self._turn:
            await self._look_up()

    async def _look_up(self) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                found = await self._resolve(self._name.host)
        except (OSError, TimeoutError, UnicodeError) as error:
            self._failed(str(error) or "no answer")
            return
        finally:
            # its end counts: while it lasts, others wait for it, and must not repeat it one after the other
            self._looked = self._now()
        if not found:
            self._failed("no address")
            return
        self._reason = ""
        before = self._members.all()
        self._members.replace(self._name.at(found, parse_member(self._members.own)))
        if (members := self._members.all()) != before:
            telemetry.log.info("members changed", members=list(members))

    def _failed(self, reason: str) -> None:
        if reason != self._reason:
            self._reason = reason
            telemetry.log.warning(
                "members not looked up", name=str(self._name), reason=reason, members=list(self._members.all())
            )

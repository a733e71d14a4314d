"""All the ways in which callers say who they are, tried one after the other, and what was found remembered for a while.

    presented ── seen lately ──> the same identity, or refused again
        └── not seen ──> each way in turn ── one knows it ──> identity, remembered for a minute
                                └── none does ──> refused, remembered for some seconds

What is remembered is a keyed hash of what was presented, nothing of it. Refusals are remembered apart, so that however
many there are, they push out nobody who is known; and whoever comes with credentials for an upstream is not remembered:
anybody can make up any number of them. Checking a password takes a tenth of a second by design; without this each of a
pull's requests would pay for it.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from mirror.access.own_tokens import is_issued
from mirror.aio.latest import put_latest
from mirror.aio.singleflight import SingleFlight
from mirror.errors import Unauthorized
from mirror.oci.authorization import CallerCredentials, read_authorization
from mirror.policy.access import ANONYMOUS, AuthMethod, Identity
from mirror.ports import Authenticator

__all__ = ["Authentication"]

#: Seconds that an identity and a refusal stand.
_KNOWN_FOR: Final = 60.0
_REFUSED_FOR: Final = 10.0
_MOST: Final = 10_000


class Authentication:
    """`foreign` says that names and passwords which nobody here knows may be somebody's at an upstream, which will be
    asked. `now` is monotonic.
    """

    def __init__(
        self, ways: Sequence[Authenticator], *, foreign: bool = False, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._ways = tuple(ways)
        self._foreign = foreign
        self._now = now
        self._key = secrets.token_bytes(32)
        self._known: OrderedDict[bytes, tuple[Identity, float]] = OrderedDict()
        self._refused: OrderedDict[bytes, float] = OrderedDict()
        self._once = SingleFlight()

    async def identify(self, lines: Sequence[str], client: Callable[[], str] = str) -> Identity:
        """Who sends these `Authorization` lines; nobody in particular where there are none. `client` tells where they
        come from, if somebody has to wait for others from there.

        Raises `Unauthorized` where what is presented is wrong, malformed or nobody's, `AccessUnavailable`,
        `TooManyLogins`.
        """
        presented = read_authorization(lines)
        return ANONYMOUS if presented is None else await self.ask(presented, client)

    async def ask(self, presented: CallerCredentials, client: Callable[[], str] = str) -> Identity:
        """Who presents this. Raises `Unauthorized`, `AccessUnavailable`, `TooManyLogins`."""
        presented_as = "\0".join((presented.username, presented.password, presented.bearer))
        key = hashlib.blake2b(presented_as.encode(), key=self._key, digest_size=16).digest()
        now = self._now()
        known = self._known.get(key)
        if known is not None and now < known[1]:
            return known[0]
        found = None
        if now >= self._refused.get(key, now):
            found = await self._once.run(key, lambda: self._find(replace(presented, client=client())))
            if found is None or found.own is None:
                self._remember(key, found)
        found = found or self._guest(presented)
        if found is None:
            raise Unauthorized("these credentials are nobody's here")
        return found

    async def _find(self, presented: CallerCredentials) -> Identity | None:
        for way in self._ways:
            if identity := await way.identify(presented):
                return identity
        return None

    def _guest(self, presented: CallerCredentials) -> Identity | None:
        """Somebody that an upstream may know."""
        if self._foreign and presented.username and presented.password and not is_issued(presented):
            return Identity(presented.username, AuthMethod.UPSTREAM, own=presented)
        return None

    def _remember(self, key: bytes, found: Identity | None) -> None:
        self._known.pop(key, None)
        self._refused.pop(key, None)
        if found is not None:
            put_latest(self._known, key, (found, self._now() + _KNOWN_FOR), _MOST)
        else:
            put_latest(self._refused, key, self._now() + _REFUSED_FOR, _MOST)

    async def aclose(self) -> None:
        """Repeatable."""
        await self._once.aclose()

"""All ways to authenticate a caller, tried one after the other, with a short cache of the results.

    presented ── cached ──> the same identity, or refused again
        └── not cached ──> each way in turn ── one knows it ──> identity, cached for a minute
                                └── none does ──> refused, cached for some seconds

The cache key is a keyed hash of the credentials; the credentials themselves are not stored. Refusals are cached apart,
so that any number of them cannot push out known identities. Identities that carry credentials for an upstream are not
cached, because anybody can invent any number of those. Checking a password takes a tenth of a second by design; without
the cache each request of a pull would pay for it.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from mirror.access.own_tokens import is_issued
from mirror.aio.caches import TtlCache
from mirror.aio.singleflight import SingleFlight
from mirror.errors import Unauthorized
from mirror.oci.authorization import CallerCredentials, read_authorization
from mirror.policy.access_rules import ANONYMOUS, AuthMethod, Identity
from mirror.ports import Authenticator

#: Seconds for which an identity, and for which a refusal, is cached.
_KNOWN_FOR: Final = 60.0
_REFUSED_FOR: Final = 10.0
_MOST: Final = 10_000


class Authentication:
    """Authenticates callers. With `foreign`, names and passwords unknown here are accepted as credentials for an
    upstream, which will check them. `now` is monotonic.
    """

    def __init__(
        self, ways: Sequence[Authenticator], *, foreign: bool = False, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._ways = tuple(ways)
        self._foreign = foreign
        self._now = now
        self._key = secrets.token_bytes(32)
        self._known: TtlCache[bytes, Identity] = TtlCache(_MOST, _KNOWN_FOR, lambda: self._now(), name="identities")
        self._refused: TtlCache[bytes, bool] = TtlCache(
            _MOST, _REFUSED_FOR, lambda: self._now(), name="refused credentials"
        )
        self._once = SingleFlight()

    async def identify(self, lines: Sequence[str], client: Callable[[], str] = str) -> Identity:
        """The identity behind these `Authorization` lines; `ANONYMOUS` if there are none. `client` returns the client's
        address, for the queue of password checks.

        Raises `Unauthorized` if the credentials are wrong, malformed or unknown, `AccessUnavailable`, `TooManyLogins`.
        """
        presented = read_authorization(lines)
        return ANONYMOUS if presented is None else await self.ask(presented, client)

    async def ask(self, presented: CallerCredentials, client: Callable[[], str] = str) -> Identity:
        """The identity behind these credentials. Raises `Unauthorized`, `AccessUnavailable`, `TooManyLogins`."""
        presented_as = "\0".join((presented.username, presented.password, presented.bearer))
        key = hashlib.blake2b(presented_as.encode(), key=self._key, digest_size=16).digest()
        known = self._known.get(key)
        if known is not None:
            return known
        found = None
        if key not in self._refused:
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
        """An unverified identity that an upstream may know; None if these credentials cannot be for an upstream."""
        if self._foreign and presented.username and presented.password and not is_issued(presented):
            return Identity(presented.username, AuthMethod.UPSTREAM, own=presented)
        return None

    def _remember(self, key: bytes, found: Identity | None) -> None:
        self._known.pop(key, None)
        self._refused.pop(key, None)
        if found is not None:
            self._known[key] = found
        else:
            self._refused[key] = True

    async def aclose(self) -> None:
        """Cancel checks under way. Repeatable."""
        await self._once.aclose()

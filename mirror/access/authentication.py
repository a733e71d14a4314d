"""All methods of authentication, tried one after the other, with a short cache of the results.

    credentials ── cached ──> the same identity, or refused again
        └── not cached ──> each method in turn ── one accepts them ──> identity, cached for a minute
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
        self, methods: Sequence[Authenticator], *, foreign: bool = False, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._methods = tuple(methods)
        self._foreign = foreign
        self._now = now
        self._key = secrets.token_bytes(32)
        self._identities: TtlCache[bytes, Identity] = TtlCache(
            _MOST, _KNOWN_FOR, lambda: self._now(), name="identities"
        )
        self._refused: TtlCache[bytes, bool] = TtlCache(
            _MOST, _REFUSED_FOR, lambda: self._now(), name="refused credentials"
        )
        self._once = SingleFlight()

    def __repr__(self) -> str:
        return f"<Authentication methods={len(self._methods)} cached={len(self._identities)}>"

    async def identify(self, lines: Sequence[str], client: Callable[[], str] = str) -> Identity:
        """The identity behind these `Authorization` lines; `ANONYMOUS` if there are none. `client` returns the client's
        address, for the queue of password checks.

        Raises `Unauthorized` if the credentials are wrong, malformed or unknown, `AccessUnavailable`, `TooManyLogins`.
        """
        presented = read_authorization(lines)
        return ANONYMOUS if presented is None else await self.authenticate(presented, client)

    async def authenticate(self, presented: CallerCredentials, client: Callable[[], str] = str) -> Identity:
        """The identity behind these credentials. Raises `Unauthorized`, `AccessUnavailable`, `TooManyLogins`."""
        text = "\0".join((presented.username, presented.password, presented.bearer))
        key = hashlib.blake2b(text.encode(), key=self._key, digest_size=16).digest()
        identity = self._identities.get(key)
        if identity is not None:
            return identity
        if key not in self._refused:
            identity = await self._once.run(key, lambda: self._check(replace(presented, client=client())))
            if identity is None or identity.own is None:
                self._remember(key, identity)
        identity = identity or self._unverified(presented)
        if identity is None:
            raise Unauthorized("unknown or wrong credentials")
        return identity

    async def _check(self, presented: CallerCredentials) -> Identity | None:
        for method in self._methods:
            if identity := await method.identify(presented):
                return identity
        return None

    def _unverified(self, presented: CallerCredentials) -> Identity | None:
        """An identity that only an upstream can verify; None if these credentials cannot be for an upstream."""
        if self._foreign and presented.username and presented.password and not is_issued(presented):
            return Identity(presented.username, AuthMethod.UPSTREAM, own=presented)
        return None

    def _remember(self, key: bytes, identity: Identity | None) -> None:
        self._identities.pop(key, None)
        self._refused.pop(key, None)
        if identity is not None:
            self._identities[key] = identity
        else:
            self._refused[key] = True

    async def aclose(self) -> None:
        """Cancel checks under way. Repeatable."""
        await self._once.aclose()

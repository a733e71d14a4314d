"""All methods of authentication, tried one after the other, with a short cache of the results.

    credentials ── cached ──> does the identity still hold? ── yes ──> the identity, with its present groups and rights
        │                           └── no: not cached any more ──┐
        └── not cached ───────────────────────────────────────────┴──> each method in turn
                                                                         ├── accepted ──> identity, cached for a minute,
                                                                         │                but not beyond its own end
                                                                         └── refused, until something changes, or for
                                                                             some seconds

The cache key is a keyed hash of the credentials; the credentials themselves are not stored. Refusals are cached apart,
so that any number of them cannot push out known identities. Identities that carry credentials for an upstream are not
cached, because anybody can invent any number of those. Checking a password takes a tenth of a second by design; without
the cache each request of a pull would pay for it.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from mirror.access.own_tokens import is_issued
from mirror.access.robots import is_robot_secret
from mirror.aio.caches import TtlCache
from mirror.aio.singleflight import SingleFlight
from mirror.errors import Unauthorized
from mirror.oci.authorization import CallerCredentials, read_authorization
from mirror.policy.access_rules import ANONYMOUS, AuthMethod, Identity
from mirror.ports import Authenticator, Membership

#: Seconds for which an identity, and for which a refusal, is cached.
_KNOWN_FOR: Final = 60.0
_REFUSED_FOR: Final = 10.0
_MOST: Final = 10_000


class Authentication:
    """Authenticates callers. With `foreign`, names and passwords unknown here are accepted as credentials for an
    upstream, which will check them. `now` is monotonic.
    """

    def __init__(
        self,
        methods: Sequence[Authenticator],
        members: Mapping[AuthMethod, Membership] | None = None,
        *,
        foreign: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`members` say which identities still hold. Those of other methods hold as long as they are remembered."""
        self._methods = tuple(methods)
        self._members = dict(members or {})
        self._foreign = foreign
        self._now = now
        self._key = secrets.token_bytes(32)
        #: Identities, and until when what was presented is valid.
        self._identities: TtlCache[bytes, tuple[Identity, float]] = TtlCache(
            _MOST, _KNOWN_FOR, lambda: self._now(), name="identities"
        )
        #: Refused credentials, and what the members' stamps were when they were checked.
        self._refused: TtlCache[bytes, object] = TtlCache(
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
        cached = self._identities.get(key)
        known = None if cached is None or self._now() >= cached[1] else cached[0]
        identity = None if known is None else await self._current(known)
        if identity is not None:
            return identity
        stamps = tuple(member.stamp() for member in self._members.values())
        if cached is not None or self._refused.get(key) != stamps:
            known, ends = await self._once.run(key, lambda: self._check(replace(presented, client=client())))
            # asked again, because the check may have begun before this request came
            identity = None if known is None else await self._current(known)
            if identity is None or identity.own is None:
                self._remember(key, identity, ends, stamps)
        identity = identity or self._unverified(presented)
        if identity is None:
            raise Unauthorized("unknown or wrong credentials")
        return identity

    async def _current(self, identity: Identity) -> Identity | None:
        """The identity as it is now; None if it holds no more. Raises `AccessUnavailable`."""
        member = self._members.get(identity.method)
        if member is None:
            return identity
        present = await member.current(identity)
        if present is None or identity.scope is None:
            return present
        return replace(present, scope=identity.scope)

    async def _check(self, presented: CallerCredentials) -> tuple[Identity | None, float]:
        """The identity, and until when what was presented is valid."""
        for method in self._methods:
            # before it is read: what comes after may take seconds
            began = self._now()
            if identity := await method.identify(presented):
                return identity, math.inf if identity.holds_for is None else began + identity.holds_for
        return None, math.inf

    def _unverified(self, presented: CallerCredentials) -> Identity | None:
        """An identity that only an upstream can verify; None if these credentials cannot be for an upstream."""
        ours = is_issued(presented) or is_robot_secret(presented)
        if self._foreign and presented.username and presented.password and not ours:
            return Identity(presented.username, AuthMethod.UPSTREAM, own=presented)
        return None

    def _remember(self, key: bytes, identity: Identity | None, ends: float, stamps: object) -> None:
        self._identities.pop(key, None)
        self._refused.pop(key, None)
        if identity is not None:
            self._identities[key] = identity, ends
        else:
            self._refused[key] = stamps

    async def aclose(self) -> None:
        """Cancel checks under way. Repeatable."""
        await self._once.aclose()


class Nobody:
    """The `Membership` of a method that is not configured: identities of it that tokens still carry hold no more."""

    async def current(self, _: Identity) -> Identity | None:
        """See `Membership.current`."""
        return None

    def stamp(self) -> object:
        """See `Membership.stamp`."""
        return None

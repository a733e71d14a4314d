"""Who calls, and whether that still holds."""

from __future__ import annotations

from typing import Protocol

from mirror.oci.authorization import CallerCredentials
from mirror.policy.access_rules import Identity


class Authenticator(Protocol):
    """One method of authenticating callers."""

    async def identify(self, presented: CallerCredentials) -> Identity | None:
        """The identity that these credentials prove; None if this method does not accept them.

        Must take as long for a wrong secret as for a right one. Raises `AccessUnavailable` if the credentials cannot be
        checked now, and `TooManyLogins` if too many checks are waiting.
        """


class Membership(Protocol):
    """Says which identities of one method of authentication still hold. Identities are remembered for a while, and
    tokens carry them: both must end when an account does.
    """

    async def current(self, identity: Identity) -> Identity | None:
        """The identity with its present groups and rights; None if it holds no more. Raises `AccessUnavailable`.

        Asked at each request, so this must be fast as long as nothing has changed.
        """

    def stamp(self) -> object:
        """A value that differs after each change of who is accepted: refusals are remembered only until then."""

"""Who calls."""

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

"""What the credentials for an upstream are, and the port of what gives them.

GivenCredentials   always the same               here
DockerConfig       docker's config.json          docker_config.py, with its helper programs in helpers.py
Renewed            issued for a while            renewal.py, over a helper or one of the clouds
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from typing import Final, Protocol

from mirror.errors import UpstreamUnavailable

__all__ = ["NO_USER", "CredentialSource", "Credentials", "CredentialsUnavailable", "GivenCredentials"]

#: User name that docker and its helpers put beside an identity token.
NO_USER: Final = "<token>"


class CredentialsUnavailable(UpstreamUnavailable):
    """Whoever issues our credentials gave none: no fault of the upstream itself. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name with a password, or an identity token (an OAuth2 refresh token). Never shown by `repr` or `str`."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an `Authorization` header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()

    @property
    def fingerprint(self) -> str:
        """Tells credentials apart without giving them away: 16 hex digits."""
        parts = "\0".join((self.username, self.password, self.identity_token))
        return hashlib.sha256(parts.encode()).hexdigest()[:16]


class CredentialSource(Protocol):
    """Asked anew before each token exchange, so that changed credentials take effect without a restart.

    Every method may be called by many at once; having new credentials is done once for all of them.
    """

    async def credentials(self) -> Credentials | None:
        """Good for now; None: anonymous. Raises `UpstreamDenied`, `UpstreamUnavailable` where their issuer fails."""

    async def reject(self, credentials: Credentials) -> None:
        """Upstream refused these: give others the next time, if there are any. Repeatable."""

    async def aclose(self) -> None:
        """Repeatable."""


@dataclass(frozen=True, slots=True)
class GivenCredentials:
    """Always the same ones."""

    given: Credentials | None = None

    async def credentials(self) -> Credentials | None:
        """What was given."""
        return self.given

    async def reject(self, credentials: Credentials) -> None:
        """There are no others."""

    async def aclose(self) -> None:
        """Nothing to let go of."""

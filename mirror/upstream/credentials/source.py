"""What the credentials for an upstream are, and the port of what gives them.

GivenCredentials   always the same               here
PasswordFile       the password in a file        secret_files.py
DockerConfig       docker's config.json          docker_config.py, with its helper programs in helpers.py
Renewed            issued for a while            renewal.py, over a helper or one of the clouds
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from mirror.errors import UpstreamUnavailable

__all__ = ["NO_USER", "CredentialSource", "Credentials", "CredentialsUnavailable", "GivenCredentials", "LoginState"]

#: User name that docker and its helpers put beside an identity token.
NO_USER: Final = "<token>"
_LONGEST_REASON: Final = 500


class CredentialsUnavailable(UpstreamUnavailable):
    """Whoever issues our credentials gave none: no fault of the upstream itself. The message says what to do."""

    @property
    def public(self) -> str:
        """All of it: it names no address, and whoever pulls must not look for the fault at the registry."""
        return str(self)


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name with a password, or an identity token (an OAuth2 refresh token). Never shown by `repr` or `str`.

    `ours` is False for those of a caller whom we act for: how they fare says nothing about the mirror's own.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    ours: bool = field(default=True, repr=False, compare=False)

    @property
    def basic(self) -> str:
        """The value of an `Authorization` header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()

    @property
    def fingerprint(self) -> str:
        """Tells credentials apart without giving them away: 16 hex digits."""
        parts = "\0".join((self.username, self.password, self.identity_token))
        return hashlib.sha256(parts.encode()).hexdigest()[:16]


class LoginState:
    """How trying something went lately, for whoever looks: the last failure until it works again.

        fine ── failed() ──> failing since then ── failed() ──> failing, with the latest reason
          ^                         └── worked() ──┐
          └────────────────────────────────────────┘

    `provider` is what gives the credentials, in the words of the configuration. Times are epoch seconds. A reason is
    for people and holds no secret.
    """

    def __init__(self, provider: str, now: Callable[[], float] = time.time) -> None:
        self.provider = provider
        self.reason: str | None = None
        self.since = self.failed_at = self.worked_at = 0.0
        self._now = now

    def failed(self, reason: str) -> None:
        """It did not work."""
        self.failed_at = self._now()
        if self.reason is None:
            self.since = self.failed_at
        self.reason = reason[:_LONGEST_REASON]

    def worked(self) -> None:
        """It did."""
        self.reason, self.worked_at = None, self._now()


class CredentialSource(Protocol):
    """Asked anew before each token exchange, so that changed credentials take effect without a restart.

    Every method may be called by many at once; having new credentials is done once for all of them.
    """

    @property
    def issuing(self) -> LoginState:
        """How having them went."""

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
    issuing: LoginState = field(default_factory=lambda: LoginState("password"), repr=False, compare=False)

    async def credentials(self) -> Credentials | None:
        """What was given."""
        return self.given

    async def reject(self, credentials: Credentials) -> None:
        """There are no others."""

    async def aclose(self) -> None:
        """Nothing to let go of."""

"""The credentials for an upstream, and the protocol of their sources.

GivenCredentials     always the same               here
PasswordFile         the password in a file        secret_files.py
DockerConfig         docker's config.json          docker_config.py, with its helper programs in credential_helpers.py
Renewed              issued for a limited time     renewal.py, over a helper or one of the clouds
CallersCredentials   those of the caller           of_caller.py
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from mirror.errors import UpstreamUnavailable
from mirror.oci.authorization import basic_authorization

#: The user name that docker and its helpers give with an identity token.
NO_USER: Final = "<token>"
_LONGEST_REASON: Final = 500


class CredentialsUnavailable(UpstreamUnavailable):
    """The issuer of our credentials gave none: the upstream itself is not at fault. The message says what to do."""

    @property
    def public(self) -> str:
        """The whole message: it names no address, and it shows the client that the fault is not the registry's."""
        return str(self)


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name with a password, or an identity token (an OAuth2 refresh token). Never shown by `repr` or `str`.

    `ours` is False for the credentials of a caller: whether upstream accepts them says nothing about the mirror's own.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    ours: bool = field(default=True, repr=False, compare=False)

    @property
    def basic(self) -> str:
        """The value of an `Authorization` header (RFC 7617)."""
        return basic_authorization(self.username, self.password)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that tell credentials apart without disclosing them."""
        parts = "\0".join((self.username, self.password, self.identity_token))
        return hashlib.sha256(parts.encode()).hexdigest()[:16]


class LoginState:
    """Whether logging in, or obtaining credentials, works: the last failure is kept until the next success.

        fine ── failed() ──> failing since then ── failed() ──> failing, with the latest reason
          ^                         └── worked() ──┐
          └────────────────────────────────────────┘

    `provider` names the source of the credentials as the configuration does. Times are epoch seconds. A reason is
    a text for people and contains no secret.
    """

    def __init__(self, provider: str, now: Callable[[], float] = time.time) -> None:
        self.provider = provider
        self.reason: str | None = None
        self.since = self.failed_at = self.worked_at = 0.0
        self._now = now

    def failed(self, reason: str) -> None:
        """Record a failure. `since` is the time of the first failure in a row."""
        self.failed_at = self._now()
        if self.reason is None:
            self.since = self.failed_at
        self.reason = reason[:_LONGEST_REASON]

    def worked(self) -> None:
        """Record a success, which clears the reason."""
        self.reason, self.worked_at = None, self._now()


class CredentialSource(Protocol):
    """A source of credentials. It is asked before each token exchange, so changed credentials need no restart.

    Every method may be called by many tasks at once; new credentials are obtained once for all of them.
    """

    @property
    def issuing(self) -> LoginState:
        """Whether obtaining the credentials works."""

    async def credentials(self) -> Credentials | None:
        """The credentials to use now; None: anonymous.

        Raises `UpstreamDenied`, `UpstreamUnavailable` if their issuer fails.
        """

    async def reject(self, credentials: Credentials) -> None:
        """Note that upstream refused these, so that the next call gives others if there are any. Repeatable."""

    async def aclose(self) -> None:
        """Release what the source holds. Repeatable."""


@dataclass(frozen=True, slots=True)
class GivenCredentials:
    """A `CredentialSource` that always gives the same credentials."""

    given: Credentials | None = None
    issuing: LoginState = field(default_factory=lambda: LoginState("password"), repr=False, compare=False)

    async def credentials(self) -> Credentials | None:
        """The given credentials."""
        return self.given

    async def reject(self, credentials: Credentials) -> None:
        """Do nothing: there are no others."""

    async def aclose(self) -> None:
        """Do nothing: nothing is held."""

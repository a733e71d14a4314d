"""Uses the credentials of the caller for whom the mirror acts (`mirror/caller.py`) instead of the mirror's own.

Tokens from upstream are remembered under a fingerprint of the credentials they were issued for, so no caller can use a
token that was issued for the credentials of another.
"""

from __future__ import annotations

from mirror.caller import current_caller
from mirror.oci.authorization import CallerCredentials
from mirror.upstream.credentials.source import NO_USER, Credentials, CredentialSource, LoginState


class CallersCredentials:
    """A `CredentialSource`. `own` gives the credentials to use if the mirror acts for no caller."""

    def __init__(self, own: CredentialSource) -> None:
        self._own = own

    @property
    def issuing(self) -> LoginState:
        """The state of the mirror's own credentials."""
        return self._own.issuing

    async def credentials(self) -> Credentials | None:
        """The caller's credentials, None if it sent none; the mirror's own if there is no caller."""
        caller = current_caller()
        if caller is None:
            return await self._own.credentials()
        return None if caller.credentials is None else _credentials(caller.credentials)

    async def reject(self, credentials: Credentials) -> None:
        """Reject the mirror's own credentials. Does nothing for a caller, who has no others."""
        if current_caller() is None:
            await self._own.reject(credentials)

    async def aclose(self) -> None:
        """Close the source of the mirror's own credentials. Repeatable."""
        await self._own.aclose()


def _credentials(presented: CallerCredentials) -> Credentials:
    if presented.username == NO_USER:
        return Credentials(identity_token=presented.password, ours=False)
    return Credentials(presented.username, presented.password, ours=False)

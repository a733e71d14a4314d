"""Credentials of whoever we act for (`mirror/caller.py`), instead of our own.

The tokens that upstream gives for them are remembered under a fingerprint of the credentials, so no caller is ever
given what another one's credentials have opened.
"""

from __future__ import annotations

from mirror.caller import acting
from mirror.oci.authorization import CallerCredentials
from mirror.upstream.credentials.source import NO_USER, Credentials, CredentialSource, LoginState

__all__ = ["CallersCredentials"]


class CallersCredentials:
    """See `CredentialSource`. `own` are those used where nobody is acted for."""

    def __init__(self, own: CredentialSource) -> None:
        self._own = own

    @property
    def issuing(self) -> LoginState:
        """Of our own."""
        return self._own.issuing

    async def credentials(self) -> Credentials | None:
        """The caller's, if there is one."""
        caller = acting()
        if caller is None:
            return await self._own.credentials()
        return None if caller.credentials is None else _credentials(caller.credentials)

    async def reject(self, credentials: Credentials) -> None:
        """A caller has no others."""
        if acting() is None:
            await self._own.reject(credentials)

    async def aclose(self) -> None:
        """Repeatable."""
        await self._own.aclose()


def _credentials(presented: CallerCredentials) -> Credentials:
    if presented.username == NO_USER:
        return Credentials(identity_token=presented.password, ours=False)
    return Credentials(presented.username, presented.password, ours=False)

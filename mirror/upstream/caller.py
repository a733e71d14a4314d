"""Credentials of whoever we act for, instead of our own.

    a request ── acting_for(theirs) ──> what is asked of upstream inside it, also by tasks begun there, goes with theirs
    nobody    ── (a sync, the command line) ──> our own

The tokens that upstream gives for them are remembered under a fingerprint of the credentials, so no caller is ever
given what another one's credentials have opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from mirror.oci.authorization import Presented
from mirror.upstream.credentials import NO_USER, Attempts, Credentials, CredentialSource

__all__ = ["CallersCredentials", "acting_for"]


class _OurOwn:
    """Nobody in particular is acted for."""


_OUR_OWN: Final = _OurOwn()
_ACTING: Final[ContextVar[Credentials | _OurOwn | None]] = ContextVar("acting", default=_OUR_OWN)


@contextmanager
def acting_for(presented: Presented | None) -> Iterator[None]:
    """Inside, upstreams that look at callers are asked with these credentials; None: with none at all."""
    token = _ACTING.set(None if presented is None else _credentials(presented))
    try:
        yield
    finally:
        _ACTING.reset(token)


def _credentials(presented: Presented) -> Credentials:
    if presented.username == NO_USER:
        return Credentials(identity_token=presented.password, ours=False)
    return Credentials(presented.username, presented.password, ours=False)


class CallersCredentials:
    """See `CredentialSource`. `own` are those used where nobody is acted for."""

    def __init__(self, own: CredentialSource) -> None:
        self._own = own

    @property
    def issuing(self) -> Attempts:
        """Of our own."""
        return self._own.issuing

    async def credentials(self) -> Credentials | None:
        """The caller's, if there is one."""
        acting = _ACTING.get()
        return await self._own.credentials() if isinstance(acting, _OurOwn) else acting

    async def reject(self, credentials: Credentials) -> None:
        """A caller has no others."""
        if isinstance(_ACTING.get(), _OurOwn):
            await self._own.reject(credentials)

    async def aclose(self) -> None:
        """Repeatable."""
        await self._own.aclose()

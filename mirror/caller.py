"""The caller on whose behalf the current task asks upstream, and so the credentials that it uses.

    a request to a registry that checks each caller's credentials ── on_behalf_of() ──> the caller's, in its tasks too
    everything else (other requests, a sync, the command line) ───────────────────────> the mirror's own

If one caller is refused, or a download for that caller fails, this says nothing about other callers. So work in
progress and remembered refusals are kept apart by `caller_mark`, and upstream tokens by the credentials themselves.
Content that was fetched is shared, but each caller gets it only after upstream has confirmed that this caller may have
it (`trust/upstream_access.py`).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from mirror.oci.authorization import CallerCredentials

#: Key of the hash in `mark`. Marks may reach Redis, and must not allow anyone to guess a password from them.
_KEY: Final = secrets.token_bytes(32)


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a request. `credentials` is None if the caller presented none."""

    credentials: CallerCredentials | None
    #: Identifies the caller. Valid in this process only.
    mark: str


_CALLER: Final[ContextVar[Caller | None]] = ContextVar("caller", default=None)


@contextmanager
def on_behalf_of(credentials: CallerCredentials | None) -> Iterator[None]:
    """In this context, upstream is asked on behalf of the holder of these credentials (None: an anonymous caller)."""
    fingerprint = credentials.fingerprint if credentials else ""
    mark = hashlib.blake2b(fingerprint.encode(), key=_KEY, digest_size=16).hexdigest()
    token = _CALLER.set(Caller(credentials, mark))
    try:
        yield
    finally:
        _CALLER.reset(token)


def current_caller() -> Caller | None:
    """The caller that the current task acts for; None if it acts for the mirror, with the mirror's own credentials."""
    return _CALLER.get()


def caller_mark() -> str:
    """The mark of the caller that the current task acts for; empty if it acts for the mirror."""
    current = _CALLER.get()
    return current.mark if current else ""


def caller_key(key: str) -> str:
    """`key` extended by the caller's mark, for values that hold for the current caller only."""
    return f"{key} {caller_mark()}".rstrip()

"""On whose behalf something is done now: with whose credentials upstream is asked, and whose answer it is.

    a request for a registry that is asked about each caller ── acting_for() ──> inside it, and in its tasks: theirs
    everything else (other requests, a sync, the command line) ────────────────> the mirror's own

What one caller is refused, or does not get, says nothing about another: work under way and refusals that are remembered
are kept apart by `caller`, tokens that upstream gives by the credentials themselves. What was fetched is everybody's,
once upstream has said that they may have it (`trust/upstream_access.py`).
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

__all__ = ["Caller", "acting", "acting_for", "caller", "for_caller"]

#: What is remembered may be shared through Redis, where nothing may stand that a password could be guessed from.
_KEY: Final = secrets.token_bytes(32)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who has asked; `credentials` None: without any."""

    credentials: CallerCredentials | None
    #: Tells callers apart, in this process alone.
    mark: str


_CALLER: Final[ContextVar[Caller | None]] = ContextVar("caller", default=None)


@contextmanager
def acting_for(own: CallerCredentials | None) -> Iterator[None]:
    """Inside, what is done is done for the holder of these credentials (None: for the anonymous)."""
    fingerprint = own.fingerprint if own else ""
    mark = hashlib.blake2b(fingerprint.encode(), key=_KEY, digest_size=16).hexdigest()
    token = _CALLER.set(Caller(own, mark))
    try:
        yield
    finally:
        _CALLER.reset(token)


def acting() -> Caller | None:
    """Whom we act for; None: for nobody in particular, with our own credentials."""
    return _CALLER.get()


def caller() -> str:
    """The mark of whom we act for; empty where that is nobody in particular."""
    found = _CALLER.get()
    return found.mark if found else ""


def for_caller(key: str) -> str:
    """A key under which something is remembered of whom we act for alone."""
    return f"{key} {caller()}".rstrip()

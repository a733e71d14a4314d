"""On whose behalf something is done now: what one caller is refused, or does not get, says nothing about another.

    a request for a registry that is asked about each caller ── acting() ──> inside it, and in tasks begun there, theirs
    everything else ────────────────────────────────────────────────────────> the mirror's own: ""

Work under way and refusals that are remembered are kept apart by it; what was fetched is everybody's, once upstream has
said that they may have it (`verified.py`).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from mirror.oci.authorization import Presented

__all__ = ["acting", "caller"]

#: What is remembered may be shared through Redis, where nothing may stand that a password could be guessed from.
_KEY: Final = secrets.token_bytes(32)
_BEHALF: Final[ContextVar[str]] = ContextVar("behalf", default="")


def caller() -> str:
    """Tells callers apart, in this process alone."""
    return _BEHALF.get()


@contextmanager
def acting(own: Presented | None) -> Iterator[None]:
    """Inside, what is done is done for the holder of these credentials (None: for the anonymous)."""
    fingerprint = own.fingerprint if own else ""
    token = _BEHALF.set(hashlib.blake2b(fingerprint.encode(), key=_KEY, digest_size=16).hexdigest())
    try:
        yield
    finally:
        _BEHALF.reset(token)

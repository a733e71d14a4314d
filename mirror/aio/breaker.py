"""A circuit breaker: decides when a failing service is left alone, and when it is tried again.

    closed ── failure ──> open ── pause over, one call is let through ──> probing ── success ──> closed
                           ^                                                 │
                           └──────────────── failure: twice the pause ───────┘

The result of a call that began before the last change of state is ignored: fifty calls that fail together open the
breaker once, and the pause is doubled only after a failed probe.
"""

from __future__ import annotations

from collections.abc import Callable


class Breaker:
    """A breaker whose pause is `first` seconds, doubled after each failed probe, up to `longest` seconds."""

    def __init__(self, now: Callable[[], float], *, first: float = 1.0, longest: float = 30.0) -> None:
        """`now` is a monotonic clock in seconds."""
        self._now = now
        self._first = first
        self._longest = longest
        self._pause = first
        self._retry_at: float | None = None
        self._probing = False
        self._era = 0

    def __repr__(self) -> str:
        return f"<Breaker {'probing' if self._probing else 'open' if self.is_open else 'closed'}>"

    @property
    def is_open(self) -> bool:
        """True if the service counts as failing."""
        return self._retry_at is not None

    def admit(self) -> int | None:
        """A ticket for one call, which the caller hands back to `succeed`, `fail` or `withdraw`; None: do not call."""
        if self._retry_at is not None:
            if self._probing or self._now() < self._retry_at:
                return None
            self._probing = True
        return self._era

    def succeed(self, ticket: int) -> bool:
        """Note that the service answered; True if this ends an outage."""
        if ticket != self._era or self._retry_at is None:
            return False
        self._retry_at, self._probing, self._pause = None, False, self._first
        self._era += 1
        return True

    def fail(self, ticket: int) -> bool:
        """Note that the call failed; True if this begins an outage."""
        if ticket != self._era:
            return False
        begins = self._retry_at is None
        if not begins:
            self._pause = min(self._pause * 2, self._longest)
        self._retry_at, self._probing = self._now() + self._pause, False
        self._era += 1
        return begins

    def withdraw(self, ticket: int) -> None:
        """Note that the caller gave up the call, which proves nothing about the service."""
        if ticket == self._era:
            self._probing = False

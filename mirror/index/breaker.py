"""When a service that fails is left alone, and when it is tried again.

    closed ── failure ──> open ── pause over, one call is let through ──> probing ── success ──> closed
                           ^                                                 │
                           └──────────────── failure: twice the pause ───────┘

Calls that began before a change of state do not count any more when they end: fifty calls that fail together open the
breaker once, and the pause doubles once.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Breaker"]


class Breaker:
    """Pauses of `first` seconds, doubled by every probe that fails, up to `longest`."""

    def __init__(self, now: Callable[[], float], *, first: float = 1.0, longest: float = 30.0) -> None:
        """`now` in seconds, steadily growing."""
        self._now = now
        self._first = first
        self._longest = longest
        self._pause = first
        self._retry_at: float | None = None
        self._probing = False
        self._era = 0

    @property
    def is_open(self) -> bool:
        """Whether the service counts as failing."""
        return self._retry_at is not None

    def admit(self) -> int | None:
        """A ticket for one call, to be handed back by `succeed`, `fail` or `withdraw`; None: leave it alone."""
        if self._retry_at is not None:
            if self._probing or self._now() < self._retry_at:
                return None
            self._probing = True
        return self._era

    def succeed(self, ticket: int) -> bool:
        """The service answered. Whether this ends an outage."""
        if ticket != self._era or self._retry_at is None:
            return False
        self._retry_at, self._probing, self._pause = None, False, self._first
        self._era += 1
        return True

    def fail(self, ticket: int) -> bool:
        """It did not. Whether this begins an outage."""
        if ticket != self._era:
            return False
        begins = self._retry_at is None
        if not begins:
            self._pause = min(self._pause * 2, self._longest)
        self._retry_at, self._probing = self._now() + self._pause, False
        self._era += 1
        return begins

    def withdraw(self, ticket: int) -> None:
        """The call was given up by its caller and proves nothing."""
        if ticket == self._era:
            self._probing = False

"""How fast work may go: a token bucket, asked with the time at hand."""

from __future__ import annotations

__all__ = ["TokenBucket"]


class TokenBucket:
    """`rate` in bytes per second, None: without a limit. What was not used within a second is not saved up."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._free = 0.0
        self._at: float | None = None

    def take(self, size: int, now: float) -> float:
        """Seconds to wait after `size` bytes were taken at `now` (seconds, of any clock that never goes back)."""
        if self._rate is None:
            return 0.0
        since = 0.0 if self._at is None else now - self._at
        self._at = now
        self._free = min(self._free + since * self._rate, self._rate) - size
        return max(0.0, -self._free / self._rate)

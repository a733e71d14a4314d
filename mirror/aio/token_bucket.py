"""A token bucket that limits the rate of work. The caller passes the time."""

from __future__ import annotations


class TokenBucket:
    """Limits work to `rate` bytes per second; None means no limit. At most one second's worth of bytes is saved up."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._free = 0.0
        self._last: float | None = None

    def __repr__(self) -> str:
        return f"<TokenBucket {self._rate} bytes/s, {self._free:.0f} free>"

    def take(self, size: int, now: float) -> float:
        """Take `size` bytes at `now` and return the seconds to wait. `now` is in seconds of any monotonic clock."""
        if self._rate is None:
            return 0.0
        since = 0.0 if self._last is None else now - self._last
        self._last = now
        self._free = min(self._free + since * self._rate, self._rate) - size
        return max(0.0, -self._free / self._rate)

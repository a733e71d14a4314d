"""A limit of bytes per second that several threads share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from mirror.aio.token_bucket import TokenBucket


class RateLimit:
    """Says how long threads must wait before they send. `rate` is in bytes per second; None: no limit."""

    def __init__(self, rate: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._bucket = TokenBucket(rate)
        self._clock = clock
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<RateLimit {self._bucket!r}>"

    def take(self, count: int) -> float:
        """Take so many bytes, and return the seconds to wait before they are sent."""
        with self._lock:
            return self._bucket.take(count, self._clock())

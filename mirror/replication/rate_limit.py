"""A limit of bytes per second that several threads share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from mirror.aio.token_bucket import TokenBucket


class RateLimit:
    """Lets threads wait before they send. `rate` is in bytes per second; None: no limit."""

    def __init__(
        self,
        rate: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bucket = TokenBucket(rate)
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<RateLimit {self._bucket!r}>"

    def take(self, count: int) -> None:
        """Blocking: returns once so many bytes may be sent."""
        with self._lock:
            wait = self._bucket.take(count, self._clock())
        if wait > 0:
            self._sleep(wait)

"""Hosts that asked to be left alone, to which a registry redirects: storage and others.

The states of a host:

    free ── 429, or 503 with Retry-After ──> throttled: nothing is sent to it ── the time is over ──> free
     ^                                                                                                 │
     └── a successful answer: its strikes are forgotten ───────────────────────────────────────────────┘

Back-off is per host: calls to the registry itself, and those that it answers without that host, go on. The registry's
own host is not among these (see `rate_limits.py`: registries count by account).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mirror.aio.caches import LruCache
from mirror.errors import UpstreamThrottled
from mirror.policy.upstream.retrying import throttle_seconds
from mirror.policy.upstream.url_bounds import Origin, Url

#: The most hosts that are remembered, because upstream chooses them; the least recently used ones are dropped.
_MOST: Final = 256


class HostThrottled(UpstreamThrottled):
    """A host to which the registry redirects asked to be left alone; the registry itself did not."""


@dataclass(slots=True)
class _Throttled:
    until: float = 0.0
    strikes: int = 0


class ThrottledHosts:
    """The hosts of one upstream. `clock` counts seconds. Callable from any thread."""

    def __init__(self, upstream: str, clock: Callable[[], float]) -> None:
        self._upstream = upstream
        self._clock = clock
        self._lock = threading.Lock()
        self._throttled: LruCache[Origin, _Throttled] = LruCache(_MOST, name="throttled hosts")

    def throttle(self, url: Url, retry_after: float | None) -> float:
        """Leave this host alone; return for how many seconds: `retry_after` if given, else longer at each strike."""
        with self._lock:
            host = self._throttled.setdefault(url.origin, _Throttled())
            host.strikes += 1
            wait = throttle_seconds(retry_after, host.strikes)
            host.until = max(host.until, self._clock() + wait)
        return wait

    def check(self, url: Url) -> None:
        """Raises `HostThrottled` if this host is to be left alone now."""
        with self._lock:
            host = self._throttled.get(url.origin)
            seconds = host.until - self._clock() if host else 0.0
        if seconds > 0:
            message = f"{url.authority} wants no requests for another {seconds:.0f} s"
            raise HostThrottled(message, upstream=self._upstream, retry_after=seconds)

    def forgive(self, url: Url) -> None:
        """Forget the strikes of this host, because it answered. Repeatable."""
        if self._throttled:
            with self._lock:
                self._throttled.pop(url.origin, None)

    def __repr__(self) -> str:
        return f"<ThrottledHosts of {self._upstream}, {len(self._throttled)} hosts>"

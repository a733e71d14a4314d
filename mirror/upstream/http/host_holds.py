"""Hosts that asked to be left alone, to which a registry redirects: storage and others.

The states of a host:

    free ── 429, or 503 with Retry-After ──> held: nothing is sent to it ── the time is over ──> free
     ^                                                                                            │
     └── a successful answer: its strikes are forgotten ──────────────────────────────────────────┘

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
from mirror.policy.upstream.retrying import hold_for
from mirror.policy.upstream.url_bounds import Origin, Url

#: The most hosts that are remembered, because upstream chooses them; the least recently held ones are dropped.
_MOST: Final = 256


class HostThrottled(UpstreamThrottled):
    """A host to which the registry redirects asked to be left alone; the registry itself did not."""


@dataclass(slots=True)
class _Held:
    until: float = 0.0
    strikes: int = 0


class HostHolds:
    """The hosts of one upstream. `clock` counts seconds. Callable from any thread."""

    def __init__(self, upstream: str, clock: Callable[[], float]) -> None:
        self._upstream = upstream
        self._clock = clock
        self._lock = threading.Lock()
        self._held: LruCache[Origin, _Held] = LruCache(_MOST)

    def hold(self, url: Url, retry_after: float | None) -> float:
        """Hold this host and return for how many seconds: `retry_after` if it is given, else longer at each strike."""
        with self._lock:
            held = self._held.setdefault(url.origin, _Held())
            held.strikes += 1
            wait = hold_for(retry_after, held.strikes)
            held.until = max(held.until, self._clock() + wait)
        return wait

    def check(self, url: Url) -> None:
        """Raises `HostThrottled` if this host is held now."""
        with self._lock:
            held = self._held.get(url.origin)
            left = held.until - self._clock() if held else 0.0
        if left > 0:
            what = f"{url.authority} asked to be left alone for {left:.0f} s more"
            raise HostThrottled(what, upstream=self._upstream, retry_after=left)

    def forgive(self, url: Url) -> None:
        """Forget the strikes of this host, because it answered. Repeatable."""
        if self._held:
            with self._lock:
                self._held.pop(url.origin, None)

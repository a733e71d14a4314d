"""Whether to retry a request, how long to wait before that, and when an upstream counts as down.

Pure functions: the time and the jitter are arguments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

#: 5xx that are permanent (RFC 9110, 15.6).
_LASTING: Final = frozenset({501, 505})

#: Bounds for the value of `Retry-After`, in seconds. A shorter pause would flood the upstream with requests. A longer
#: one would let a single odd header block the upstream for good.
SHORTEST_THROTTLE: Final = 1.0
LONGEST_THROTTLE: Final = 300.0


def is_worth_retrying(status: int | None) -> bool:
    """Whether the same request may succeed soon. None: the connection failed before there was a status.

    False for 429, with which upstream asks the client not to repeat the request.
    """
    return status is None or status == 408 or (status >= 500 and status not in _LASTING)


def is_throttling(status: int, retry_after: str | None) -> bool:
    """Whether an answer asks clients to slow down: 429, or 503 with `Retry-After` (RFC 6585, 4; RFC 9110, 15.6.4)."""
    return status == 429 or (status == 503 and retry_after is not None)


def parse_retry_after(text: str | None, now: float) -> float | None:
    """`Retry-After` (RFC 9110, 10.2.3) in seconds from `now` (epoch seconds), at least 0; None if it is invalid."""
    text = (text or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:12])
    moment = parse_http_date(text)
    return None if moment is None else max(0.0, moment - now)


def parse_http_date(text: str | None) -> float | None:
    """A date (RFC 9110, 5.6.7) in epoch seconds; None if it is invalid."""
    try:
        return parsedate_to_datetime(text or "").timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def throttle_seconds(retry_after: float | None, strikes: int) -> float:
    """Seconds during which an upstream that answered 429 or 503 is not asked again.

    This is `retry_after` within bounds. If upstream gave none: 2 seconds, doubled for each further such answer in a row
    (`strikes` counts from 1), at most a minute.
    """
    if retry_after is None:
        return min(60.0, 2.0 * 2.0 ** min(strikes - 1, 10))
    return min(LONGEST_THROTTLE, max(SHORTEST_THROTTLE, retry_after))


def back_off(attempt: int, jitter: float, *, first: float = 0.25, longest: float = 5.0) -> float:
    """Seconds to wait before a retry; `attempt` is 1 for the first retry.

    The wait doubles each time. `jitter`, from 0 to 1, spreads it over its upper half, so that clients that failed
    together do not return together.
    """
    whole = min(longest, first * 2.0 ** min(max(attempt, 1) - 1, 30))
    return whole * (0.5 + 0.5 * jitter)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a call may be made. `wait` is the seconds until then, 0 for now. Only one `probe` may be in progress."""

    wait: float = 0.0
    probe: bool = False


@dataclass(frozen=True, slots=True)
class Circuit:
    """A circuit breaker: whether an upstream counts as down. The value is replaced after each success and failure.

    closed ── `_THRESHOLD` failures in a row ──> open ── delay over ──> one probe
       ^                                          ^                       │
       └────────────── any success ───────────────┼── failed: twice the delay, at most 5 s
    """

    failures: int = 0
    open_until: float = -math.inf
    delay: float = 0.0

    def verdict(self, now: float) -> Verdict:
        """Whether a call may be made at `now` (in seconds; always of the same clock)."""
        if not self.delay:
            return Verdict()
        return Verdict(wait=self.open_until - now) if now < self.open_until else Verdict(probe=True)

    def failed(self, now: float) -> Circuit:
        """The circuit after a call without an answer. Calls that fail while the circuit is open are not counted."""
        if self.delay and now < self.open_until:
            return self
        failures = self.failures + 1
        if failures < _THRESHOLD:
            return Circuit(failures)
        delay = min(_LONGEST_DELAY, self.delay * 2 or _FIRST_DELAY)
        return Circuit(failures, now + delay, delay)


_THRESHOLD: Final = 3
_FIRST_DELAY: Final = 1.0
#: Short, because downloads in progress wait for the next probe, and a probe costs only one connection attempt.
_LONGEST_DELAY: Final = 5.0

#: The circuit of an upstream that answers. Any success leads to it.
CLOSED: Final = Circuit()

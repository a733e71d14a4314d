"""Is it worth another try, how long to wait before it, and when does an upstream count as down?

Plain values in, verdict out: the time and the jitter are arguments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

__all__ = [
    "CLOSED",
    "LONGEST_HOLD",
    "SHORTEST_HOLD",
    "Circuit",
    "Verdict",
    "back_off",
    "hold_for",
    "is_throttling",
    "is_worth_retrying",
    "parse_http_date",
    "parse_retry_after",
]

#: 5xx that say "never" rather than "not now" (RFC 9110, 15.6).
_LASTING: Final = frozenset({501, 505})

#: Bounds of what a `Retry-After` is believed to be, in seconds: below, we would hammer; above, one odd header would
#: take an upstream away for good.
SHORTEST_HOLD: Final = 1.0
LONGEST_HOLD: Final = 300.0


def is_worth_retrying(status: int | None) -> bool:
    """Whether the same request may fare better soon. None: the connection failed before there was a status.

    429 is not among them: asking again is what upstream asked us not to do.
    """
    return status is None or status == 408 or (status >= 500 and status not in _LASTING)


def is_throttling(status: int, retry_after: str | None) -> bool:
    """Whether an answer asks everybody to slow down: 429, or 503 with a time (RFC 6585, 4; RFC 9110, 15.6.4)."""
    return status == 429 or (status == 503 and retry_after is not None)


def parse_retry_after(text: str | None, now: float) -> float | None:
    """`Retry-After` (RFC 9110, 10.2.3) in seconds from `now` (epoch seconds), at least 0; None where it is not one."""
    text = (text or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:12])
    moment = parse_http_date(text)
    return None if moment is None else max(0.0, moment - now)


def parse_http_date(text: str | None) -> float | None:
    """A date (RFC 9110, 5.6.7) in epoch seconds; None where it is not one."""
    try:
        return parsedate_to_datetime(text or "").timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def hold_for(retry_after: float | None, strikes: int) -> float:
    """Seconds during which nobody asks an upstream that said 429 or 503.

    What upstream said, within bounds; if it said nothing, 2 seconds, twice that for each further strike in a row
    (`strikes` counts from 1), at most a minute.
    """
    if retry_after is None:
        return min(60.0, 2.0 * 2.0 ** min(strikes - 1, 10))
    return min(LONGEST_HOLD, max(SHORTEST_HOLD, retry_after))


def back_off(attempt: int, jitter: float, *, first: float = 0.25, longest: float = 5.0) -> float:
    """Seconds before try number `attempt` + 1 (the first retry has `attempt` 1).

    Doubles each time; `jitter` within 0 to 1 spreads the wait over its upper half, so that many who failed together
    do not come back together.
    """
    whole = min(longest, first * 2.0 ** min(max(attempt, 1) - 1, 30))
    return whole * (0.5 + 0.5 * jitter)


@dataclass(frozen=True, slots=True)
class Verdict:
    """May a call go out? `wait` is the seconds until one may, 0 if now; a `probe` must be the only one under way."""

    wait: float = 0.0
    probe: bool = False


@dataclass(frozen=True, slots=True)
class Circuit:
    """Whether an upstream counts as down: a value that is replaced after each success and failure.

    closed ── `_THRESHOLD` failures in a row ──> open ── delay over ──> one probe
       ^                                          ^                       │
       └────────────── any success ───────────────┼── failed: twice the delay, at most 5 s
    """

    failures: int = 0
    open_until: float = -math.inf
    delay: float = 0.0

    def verdict(self, now: float) -> Verdict:
        """Whether a call may go out at `now` (any clock in seconds, the same throughout)."""
        if not self.delay:
            return Verdict()
        return Verdict(wait=self.open_until - now) if now < self.open_until else Verdict(probe=True)

    def failed(self, now: float) -> Circuit:
        """After a call that got no answer. Failures of calls that were under way when it opened do not add up."""
        if self.delay and now < self.open_until:
            return self
        failures = self.failures + 1
        if failures < _THRESHOLD:
            return Circuit(failures)
        delay = min(_LONGEST_DELAY, self.delay * 2 or _FIRST_DELAY)
        return Circuit(failures, now + delay, delay)


_THRESHOLD: Final = 3
_FIRST_DELAY: Final = 1.0
#: Short: downloads under way wait for the next probe, and a probe is one dial.
_LONGEST_DELAY: Final = 5.0

#: An upstream that answers; what any success leads to.
CLOSED: Final = Circuit()

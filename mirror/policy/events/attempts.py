"""What an answer of an endpoint means, and when a delivery is tried again.

    waiting ── 2xx ──────────────────────────────────> delivered
       ├────── refused, `MOST_REFUSALS` times ───────> dead: it can be sent again by hand
       ├────── older than `keep` ────────────────────> dead
       └────── anything else ── a growing pause ─────> waiting

Pure functions: the time and the jitter are arguments.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

#: Seconds before the second attempt, and the longest pause between two attempts.
_FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 300.0
#: `Retry-After` is heeded up to this many seconds.
_LONGEST_ASKED: Final = 3600.0
#: An endpoint that refuses an event so often will not take it: what comes after it goes on.
MOST_REFUSALS: Final = 3
#: Statuses that say that this event, and not the endpoint, is at fault (RFC 9110, 15.5; RFC 4918 for 422).
_REFUSALS: Final = frozenset({400, 413, 415, 422})


class Reception(Enum):
    """How an endpoint has taken an event."""

    TAKEN = "taken"
    #: It does not want this event; others may go on.
    REFUSED = "refused"
    #: It takes nothing at the moment.
    UNAVAILABLE = "unavailable"


def reception(status: int | None) -> Reception:
    """What the status of an answer means; None: there was no answer."""
    if status is not None and 200 <= status < 300:
        return Reception.TAKEN
    return Reception.REFUSED if status in _REFUSALS else Reception.UNAVAILABLE


def pause(failures: int, jitter: float, asked: float | None = None) -> float:
    """Seconds until the next attempt after so many failures in a row (from 1 on).

    The pause doubles each time, up to `LONGEST_PAUSE`; `jitter`, from 0 to 1, spreads it over its upper half. It is at
    least as long as the endpoint has `asked` for in `Retry-After` (RFC 9110, 10.2.3), up to an hour.
    """
    whole = min(LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(max(failures, 1) - 1, 30))
    return max(whole * (0.5 + 0.5 * jitter), min(asked or 0.0, _LONGEST_ASKED))

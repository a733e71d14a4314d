"""How many requests per second go to a bucket, if that is limited.

Single requests take what they need when they come. Work of many requests, as the upload of a large blob is one, is paid
for later: while it is owed, half of the rate pays for it, and what single requests do not use. More such work begins
only when nothing is owed. So half of the rate is always there for reads and records, whatever is uploaded.
"""

from __future__ import annotations


class RequestRate:
    """Limits requests to `rate` per second; None means no limit. The caller passes the time."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        #: Requests that may be sent at once; below 0: that others wait for.
        self._free = 0.0
        #: Requests of large work that are sent already, or will be soon.
        self._owed = 0.0
        self._last: float | None = None

    def __repr__(self) -> str:
        return f"<RequestRate {self._rate}/s, {self._free:.0f} free, {self._owed:.0f} owed>"

    def take(self, now: float, longest: float) -> float | None:
        """Take one request at `now`, in seconds of any monotonic clock; returns the seconds to wait before it. None if
        these are more than `longest`: then nothing is taken.
        """
        if self._rate is None:
            return 0.0
        self._advance(now, self._rate)
        pause = max(0.0, 1 - self._free) / (self._rate / 2 if self._owed else self._rate)
        if pause > max(longest, 1 / self._rate):
            return None
        self._free -= 1
        return pause

    def take_many(self, count: int, now: float) -> float:
        """Take `count` requests at `now` if nothing is owed, and return 0; otherwise the seconds to wait before asking
        again.
        """
        if self._rate is None:
            return 0.0
        self._advance(now, self._rate)
        if self._owed:
            return max(self._owed / self._rate, 0.001)
        self._owed = float(count)
        return 0.0

    def _advance(self, now: float, rate: float) -> None:
        gained = 0.0 if self._last is None else (now - self._last) * rate
        self._last = now
        paid = min(self._owed, gained / 2)
        free = self._free + gained - paid
        # at most one second's worth is saved up
        unused = min(max(0.0, free - rate), self._owed - paid)
        self._free = min(free, rate)
        self._owed = max(0.0, self._owed - paid - unused)
        if self._owed < 1e-6:
            self._owed = 0.0

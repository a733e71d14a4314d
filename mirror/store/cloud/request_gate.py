"""Whether, and when, a request to the bucket may be sent: one decision for all threads of a process.

    up ── 3 failures in a row ──> down ── pause over: one request is let through ──> trying ── success ──> up
                                   ^                                                   │
                                   └──────────── failure: twice the pause ─────────────┘

While the bucket is down, callers are refused at once. A store that answers without having the bucket is down after one
such answer. While it throttles (429, or 503 SlowDown), no thread sends a request before a common pause is over; each
further answer of that kind doubles the pause, each success halves it. In addition, requests may be limited to a rate
(`request_rate.py`).

The result of a request that began before the last change between up and down is ignored: fifty threads that fail
together begin one outage, and only a failed trial doubles the pause.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Final

from mirror import telemetry
from mirror.errors import BucketAbsent, BucketThrottled, BucketUnavailable
from mirror.ports import BucketHealth
from mirror.store.cloud.request_rate import RequestRate

#: So many requests in a row without an answer, whoever sent them, begin an outage.
_FAILURES: Final = 3
#: Seconds between two trials while the bucket is down.
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0
#: Seconds without requests after the bucket has throttled.
_FIRST_REST: Final = 0.25
_LONGEST_REST: Final = 8.0


class RequestGate:
    """Lets requests to one bucket through; see the drawing above. May be used from any thread."""

    def __init__(
        self,
        name: str,
        rate: float | None = None,
        *,
        quiet: bool = False,
        now: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        """`name` is that of the bucket, for the log; `rate` is a number of requests per second. `quiet`: the log has
        nothing about it, because whoever sends the requests says how they end.
        """
        self._name = name
        self._quiet = quiet
        self._now = now
        self._wait = wait
        self._lock = threading.Lock()
        self._requests = RequestRate(rate)
        self._era = 0
        self._failures = 0
        self._reason = ""
        self._down_since: float | None = None
        #: The same in epoch seconds.
        self._down_at = 0.0
        #: The store answers, and does not have the bucket.
        self._misses = False
        self._try_at = 0.0
        self._trying = False
        self._pause = _FIRST_PAUSE
        self._throttled = False
        self._rest = _FIRST_REST
        self._rest_until = 0.0
        telemetry.BUCKET_UP.set(1)

    def __repr__(self) -> str:
        state = "up" if self._down_since is None else "trying" if self._trying else "down"
        return f"<RequestGate {self._name} {state}{' throttled' if self._throttled else ''}>"

    @property
    def is_down(self) -> bool:
        """True during an outage."""
        return self._down_since is not None

    @property
    def misses_bucket(self) -> bool:
        """True during an outage in which the store answers, and does not have the bucket."""
        return self._misses

    def health(self) -> BucketHealth:
        """See `Bucket.health`."""
        with self._lock:
            if self._down_since is not None:
                return BucketHealth(self._down_at, reason=self._reason)
            return BucketHealth(throttles=self._throttled)

    def enter(self, deadline: float, cost: int = 1) -> int:
        """Wait until a request may be sent; returns a ticket, which the caller hands back with the result.

        `deadline` is by the monotonic clock of this gate. `cost`: how many requests it is; work of more than one waits
        for the rate however long that takes. Raises `BucketUnavailable` if the bucket is down, throttles until after
        the deadline, or if so many requests wait for the rate.
        """
        while True:
            with self._lock:
                now = self._now()
                if self._down_since is not None:
                    return self._trial(now)
                rest = self._rest_until - now
                if rest <= 0:
                    pause = self._requests.take(now, deadline - now) if cost == 1 else 0.0
                    if pause is None:
                        raise BucketUnavailable(f"more requests to {self._name} than bucket.requests_per_second allows")
                    again = self._requests.take_many(cost, now) if cost > 1 else 0.0
                    ticket = self._era
                    if not again:
                        break
                else:
                    if self._rest_until > deadline:
                        raise BucketThrottled(f"{self._name} throttles the mirror", retry_after=max(1.0, rest))
                    # not all threads at the same moment
                    again = rest * random.uniform(1.0, 1.5)  # noqa: S311 - no secret
            self._wait(again)
        if pause:
            self._wait(pause)
        return ticket

    def _trial(self, now: float) -> int:
        if self._trying or now < self._try_at:
            retry_after = max(1.0, self._try_at - now)
            if self._misses:
                raise BucketAbsent(f"{self._name}: {self._reason}", retry_after=retry_after)
            raise BucketUnavailable(f"{self._name} does not answer: {self._reason}", retry_after=retry_after)
        self._trying = True
        return self._era

    def succeeded(self, ticket: int) -> None:
        """Note that the store has answered, if only with a refusal."""
        with self._lock:
            if ticket != self._era:
                return
            self._failures = 0
            self._rest = max(_FIRST_REST, self._rest / 2)
            relieved = self._throttled and self._rest == _FIRST_REST and self._now() >= self._rest_until
            self._throttled = self._throttled and not relieved
            since, self._down_since, self._misses = self._down_since, None, False
            if since is not None:
                self._trying, self._pause = False, _FIRST_PAUSE
                self._era += 1
                lasted = self._now() - since
        if since is not None:
            telemetry.BUCKET_UP.set(1)
        if since is not None and not self._quiet:
            telemetry.log.info("bucket answers again", bucket=self._name, after=round(lasted, 1))
        if relieved and not self._quiet:
            telemetry.log.info("bucket no longer throttles", bucket=self._name)

    def failed(self, ticket: int, reason: str, *, misses: bool = False) -> None:
        """Note that the store gave no usable answer; `misses`: one that says that it does not have the bucket."""
        with self._lock:
            if ticket != self._era:
                return
            now = self._now()
            self._reason, self._misses = reason, misses
            self._failures += 1
            begins = self._down_since is None
            if begins and self._failures < _FAILURES and not misses:
                return
            if begins:
                self._down_since, self._down_at = now, time.time()
            else:
                self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            self._try_at, self._trying = now + self._pause, False
            self._failures = 0
            self._era += 1
        if begins:
            telemetry.BUCKET_UP.set(0)
        if begins and not self._quiet:
            telemetry.log.error("bucket does not answer", bucket=self._name, reason=reason, retry_in=self._pause)

    def throttled(self, ticket: int) -> None:
        """Note that the store asks for fewer requests."""
        telemetry.BUCKET_THROTTLED.inc()
        if self.is_down:
            self.failed(ticket, "it throttles the mirror")
            return
        with self._lock:
            now = self._now()
            if ticket != self._era or now < self._rest_until:
                return
            begins, self._throttled = not self._throttled, True
            self._rest_until = now + self._rest
            self._rest = min(self._rest * 2, _LONGEST_REST)
        if begins and not self._quiet:
            telemetry.log.warning("bucket throttles", bucket=self._name)

    def withdraw(self, ticket: int) -> None:
        """Note that the caller gave up the request, which proves nothing."""
        with self._lock:
            if ticket == self._era:
                self._trying = False

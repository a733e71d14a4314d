"""Decisions of a fill: what may be sent before the digest is known, and whether upstream is worth another try."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from mirror.errors import UpstreamCircuitOpen, UpstreamError, UpstreamThrottled, UpstreamUnavailable

__all__ = ["HELD_BACK", "Tries", "may_send", "may_send_of_part", "next_try"]

#: Bytes at the end of a blob that wait for its digest. Enough that no client could mistake the rest for the whole.
HELD_BACK: Final = 64 * 1024

_TRIES_WITHOUT_PROGRESS: Final = 3
_LONGEST_THROTTLE: Final = 30.0
#: Between two tries, in seconds; the jitter adds up to a half.
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 3.2


def may_send(received: int, size: int | None, *, verified: bool) -> int:
    """How many bytes from the start may leave, of `received` that are here and `size` (None: unknown) in all."""
    if verified:
        return received
    end = received if size is None else size
    return max(0, min(received, end - HELD_BACK))


def may_send_of_part(limit: int, stop: int, size: int) -> int:
    """How many bytes from the start may leave for a part that ends before `stop`, of the `limit` that may for the whole
    of `size`: its own last bytes wait as well, until all of the whole may be sent.
    """
    return limit if limit >= size else min(limit, stop - HELD_BACK)


@dataclass(frozen=True, slots=True)
class Tries:
    """What a fill has met since its last byte, which came at `since` (any clock in seconds).

    `breaks` are answers that broke off without a byte, the one that broke after the last byte included. `refusals` are
    tries that upstream gave no answer to. Tries that our own circuit refused are not counted.
    """

    since: float
    breaks: int = 0
    refusals: int = 0

    def broken(self, now: float, *, progress: bool) -> Tries:
        """After an answer that broke off; `progress` says whether it had brought a byte."""
        return Tries(now, breaks=1) if progress else replace(self, breaks=self.breaks + 1)

    def refused(self, error: UpstreamError) -> Tries:
        """After a try without an answer."""
        return self if isinstance(error, UpstreamCircuitOpen) else replace(self, refusals=self.refusals + 1)


def next_try(error: UpstreamError, tries: Tries, waited: float, patience: float, jitter: float) -> float | None:
    """Seconds to wait before upstream is asked again after `error`, or None: give up.

    `tries` counts that error in. An upstream that does not answer is waited for until `patience` is over, of which
    `waited` has passed (seconds); one that answers, and breaks off again and again, is not. `jitter`: between 0 and 1.
    """
    left = patience - waited
    if tries.breaks > _TRIES_WITHOUT_PROGRESS:
        return None
    if isinstance(error, UpstreamCircuitOpen):
        return min(error.retry_after + 0.1 * jitter, left) if left > 0 else None
    if tries.refusals > _TRIES_WITHOUT_PROGRESS and (left <= 0 or not isinstance(error, UpstreamUnavailable)):
        return None
    if isinstance(error, UpstreamThrottled):
        return error.retry_after + jitter if error.retry_after <= _LONGEST_THROTTLE else None
    if isinstance(error, UpstreamUnavailable):
        pause = _FIRST_PAUSE * 2.0 ** min(tries.breaks + tries.refusals - 1, 10)
        return min(_LONGEST_PAUSE, pause) * (0.5 + jitter)
    return None

"""Decisions of a fill: how much may be sent before the digest is verified, and whether to ask upstream again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from mirror.errors import UpstreamCircuitOpen, UpstreamError, UpstreamThrottled, UpstreamUnavailable

#: Bytes at the end of a blob that are held back until its digest is verified: a client cannot take the rest for the
#: whole blob.
WITHHELD: Final = 64 * 1024

_TRIES_WITHOUT_PROGRESS: Final = 3
_LONGEST_THROTTLE: Final = 30.0
#: Pauses between two tries, in seconds. Each is multiplied by 0.5 to 1.5, depending on the jitter.
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 3.2


def may_send(received: int, size: int | None, *, verified: bool) -> int:
    """How many bytes from the start may be sent. `received` have arrived, of `size` in total (None if unknown)."""
    if verified:
        return received
    end = received if size is None else size
    return max(0, min(received, end - WITHHELD))


def may_send_of_part(limit: int, stop: int, size: int) -> int:
    """How many bytes from the start of the blob may be sent to a client that asked for a part ending before `stop`.

    `limit` is the number that `may_send` allows for the whole blob of `size` bytes. The last bytes of the part are held
    back, too, until the whole blob may be sent.
    """
    return limit if limit >= size else min(limit, stop - WITHHELD)


@dataclass(frozen=True, slots=True)
class Tries:
    """The failures of a fill since its last byte, which arrived at `since` (seconds of any clock).

    `breaks` counts answers that broke off without a byte, and the one that broke off after the last byte. `refusals`
    counts tries that upstream did not answer. Tries that the mirror's own circuit breaker refused are not counted.
    """

    since: float
    breaks: int = 0
    refusals: int = 0

    def broken(self, now: float, *, progress: bool) -> Tries:
        """The counts after an answer that broke off; `progress` says whether it had brought a byte."""
        return Tries(now, breaks=1) if progress else replace(self, breaks=self.breaks + 1)

    def refused(self, error: UpstreamError) -> Tries:
        """The counts after a try without an answer."""
        return self if isinstance(error, UpstreamCircuitOpen) else replace(self, refusals=self.refusals + 1)


def next_try(error: UpstreamError, tries: Tries, waited: float, patience: float, jitter: float) -> float | None:
    """Seconds to wait after `error` before upstream is asked again; None to give up.

    `tries` includes this error. If upstream does not answer, the fill waits for up to `patience` seconds in total, of
    which `waited` have passed. It does not wait that long for an upstream whose answers break off again and again.
    `jitter` is between 0 and 1.
    """
    remaining = patience - waited
    if tries.breaks > _TRIES_WITHOUT_PROGRESS:
        return None
    if isinstance(error, UpstreamCircuitOpen):
        return min(error.retry_after + 0.1 * jitter, remaining) if remaining > 0 else None
    if tries.refusals > _TRIES_WITHOUT_PROGRESS and (remaining <= 0 or not isinstance(error, UpstreamUnavailable)):
        return None
    if isinstance(error, UpstreamThrottled):
        return error.retry_after + jitter if error.retry_after <= _LONGEST_THROTTLE else None
    if isinstance(error, UpstreamUnavailable):
        pause = _FIRST_PAUSE * 2.0 ** min(tries.breaks + tries.refusals - 1, 10)
        return min(_LONGEST_PAUSE, pause) * (0.5 + jitter)
    return None

"""Decisions of a fill: what may be sent before the digest is known, and whether a broken body is worth another try."""

from __future__ import annotations

from typing import Final

from mirror.errors import UpstreamError, UpstreamThrottled, UpstreamUnavailable

__all__ = ["HELD_BACK", "may_send", "may_send_of_part", "next_try"]

#: Bytes at the end of a blob that wait for its digest. Enough that no client could mistake the rest for the whole.
HELD_BACK: Final = 64 * 1024

_TRIES_WITHOUT_PROGRESS: Final = 3
_LONGEST_THROTTLE: Final = 30.0


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


def next_try(error: UpstreamError, failures: int, jitter: float) -> float | None:
    """Seconds to wait before resuming a body that broke, or None: give up.

    `failures` counts the breaks since the last byte came, this one included; `jitter` is between 0 and 1.
    """
    if failures > _TRIES_WITHOUT_PROGRESS:
        return None
    if isinstance(error, UpstreamThrottled):
        return error.retry_after + jitter if error.retry_after <= _LONGEST_THROTTLE else None
    if isinstance(error, UpstreamUnavailable):
        return float(2 ** (failures - 1)) * 0.2 * (0.5 + jitter)
    return None

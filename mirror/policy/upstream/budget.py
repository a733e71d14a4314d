"""The pull quota of a registry: how many pulls are left, and what follows from that.

Docker Hub states the quota with every answer about a manifest, also by HEAD, which does not count as a pull:

    ratelimit-limit: 100;w=21600          pulls allowed within a window of so many seconds
    ratelimit-remaining: 76;w=21600       pulls left

Source: Docker's documentation, "Docker Hub pull usage and limits". Registries that state no window limit the rate of
requests, not the number of pulls. For those, 429 and `Retry-After` are enough.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

_FIELD: Final = re.compile(r"\s*([0-9]{1,9})\s*;\s*w\s*=\s*([0-9]{1,8})\s*")
#: Seconds. While the quota is spent, one call per period checks whether pulls are left again, because windows slide.
LOOK_AGAIN: Final = 60.0
#: If less than this part of the limit is left, tags are trusted longer; at most by this factor.
_PLENTY: Final = 0.5
_MOST_PATIENT: Final = 10.0


@dataclass(frozen=True, slots=True)
class Budget:
    """A quota: `remaining` of `limit` pulls in `window` seconds, as of `seen_at` (epoch seconds)."""

    limit: int
    remaining: int
    window: float
    seen_at: float

    def to_json(self) -> list[float]:
        """The form in which processes share the quota."""
        return [self.limit, self.remaining, self.window, self.seen_at]

    @classmethod
    def from_json(cls, value: Any) -> Budget | None:
        """Read it back; None if it cannot be parsed."""
        try:
            limit, remaining, window, seen_at = value
            return cls(int(limit), int(remaining), float(window), float(seen_at))
        except (ValueError, TypeError):
            return None


def parse_budget(limit: str | None, remaining: str | None, now: float) -> Budget | None:
    """Parse the two header fields of one answer; None if one is missing or states no window."""
    allowed, unused = _FIELD.fullmatch(limit or ""), _FIELD.fullmatch(remaining or "")
    if not allowed or not unused or not int(allowed[1]) or not int(allowed[2]):
        return None
    return Budget(int(allowed[1]), min(int(unused[1]), int(allowed[1])), float(allowed[2]), now)


def newer(first: Budget | None, second: Budget | None) -> Budget | None:
    """The quota that was seen later."""
    if first is None or second is None:
        return first or second
    return second if second.seen_at > first.seen_at else first


def is_spent(budget: Budget | None, now: float) -> bool:
    """Whether no pulls are left. A quota that was seen more than a whole window ago no longer counts."""
    return budget is not None and budget.remaining == 0 and resets_in(budget, now) > 0


def resets_in(budget: Budget, now: float) -> float:
    """Seconds until the window is certainly over; between 0 and the length of the window."""
    return min(budget.window, max(0.0, budget.seen_at + budget.window - now))


def patience(budget: Budget | None, now: float) -> float:
    """The factor, at least 1, by which a tag is trusted longer: 2 at a quarter of the limit, 10 at a twentieth."""
    if budget is None or not resets_in(budget, now):
        return 1.0
    part = budget.remaining / budget.limit
    return max(1.0, _PLENTY / max(part, _PLENTY / _MOST_PATIENT))

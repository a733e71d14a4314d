"""How many pulls a registry still allows, and what follows from it.

Docker Hub says it with every answer about a manifest, by HEAD too, which costs nothing:

    ratelimit-limit: 100;w=21600          so many in so many seconds
    ratelimit-remaining: 76;w=21600       so many are left

Source: Docker's documentation, "Docker Hub pull usage and limits". Registries that name no window limit the rate of
requests, not what may be pulled: they are left to 429 and `Retry-After`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["LOOK_AGAIN", "Budget", "is_spent", "newer", "parse_budget", "patience", "resets_in"]

_FIELD: Final = re.compile(r"\s*([0-9]{1,9})\s*;\s*w\s*=\s*([0-9]{1,8})\s*")
#: Seconds after which one call may find out whether there is something left again: windows slide.
LOOK_AGAIN: Final = 60.0
#: Below this part of the limit, tags are believed longer; at most by this factor.
_PLENTY: Final = 0.5
_MOST_PATIENT: Final = 10.0


@dataclass(frozen=True, slots=True)
class Budget:
    """`remaining` pulls of `limit` in `window` seconds, as of `seen_at` (epoch seconds)."""

    limit: int
    remaining: int
    window: float
    seen_at: float

    def to_json(self) -> list[float]:
        """As it is shared between processes."""
        return [self.limit, self.remaining, self.window, self.seen_at]

    @classmethod
    def from_json(cls, value: Any) -> Budget | None:
        """Read it back; None if it is not whole."""
        try:
            limit, remaining, window, seen_at = value
            return cls(int(limit), int(remaining), float(window), float(seen_at))
        except (ValueError, TypeError):
            return None


def parse_budget(limit: str | None, remaining: str | None, now: float) -> Budget | None:
    """The two header fields of one answer; None where they are not there, or say no window."""
    allowed, left = _FIELD.fullmatch(limit or ""), _FIELD.fullmatch(remaining or "")
    if not allowed or not left or not int(allowed[1]) or not int(allowed[2]):
        return None
    return Budget(int(allowed[1]), min(int(left[1]), int(allowed[1])), float(allowed[2]), now)


def newer(one: Budget | None, other: Budget | None) -> Budget | None:
    """What was seen later."""
    if one is None or other is None:
        return one or other
    return other if other.seen_at > one.seen_at else one


def is_spent(budget: Budget | None, now: float) -> bool:
    """Whether nothing is left. After a whole window nothing of what was seen holds any more."""
    return budget is not None and budget.remaining == 0 and resets_in(budget, now) > 0


def resets_in(budget: Budget, now: float) -> float:
    """Seconds until the window that was seen is over, at the latest; within 0 and the window."""
    return min(budget.window, max(0.0, budget.seen_at + budget.window - now))


def patience(budget: Budget | None, now: float) -> float:
    """By which factor, at least 1, a tag may be believed longer: 2 at a quarter of the limit, 10 at a twentieth."""
    if budget is None or not resets_in(budget, now):
        return 1.0
    part = budget.remaining / budget.limit
    return max(1.0, _PLENTY / max(part, _PLENTY / _MOST_PATIENT))

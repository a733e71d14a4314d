"""How long a cached answer for a tag may be used. Answers for a digest never change, so they need no such rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Seconds. A record dated further in the future was written under a wrong clock, so its age is meaningless.
_CLOCK_SLACK: Final = 60.0


@dataclass(frozen=True, slots=True)
class FreshnessRule:
    """The times of one route, in seconds: `tag_ttl` for a tag's answer, `stale_while_down` while upstream is down."""

    tag_ttl: float
    stale_while_down: float

    def stretched(self, factor: float) -> FreshnessRule:
        """This rule with `tag_ttl` multiplied by `factor`."""
        return self if factor == 1 else FreshnessRule(self.tag_ttl * factor, self.stale_while_down)


def is_fresh(fetched_at: float, now: float, rule: FreshnessRule) -> bool:
    """Whether an answer fetched at `fetched_at` may be given at `now` without asking upstream (epoch seconds)."""
    age = now - fetched_at
    return -_CLOCK_SLACK <= age < rule.tag_ttl


def may_serve_stale(fetched_at: float, now: float, rule: FreshnessRule) -> bool:
    """Whether an answer fetched at `fetched_at` may be given at `now` because upstream does not answer."""
    return now - fetched_at < max(rule.tag_ttl, rule.stale_while_down)

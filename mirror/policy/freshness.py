"""How long a tag's answer may be believed. A digest's answer never changes, so only tags come here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["FreshnessRule", "is_fresh", "may_serve_stale"]

#: A record from the future by more than this was written under another clock, and its age means nothing. Seconds.
_CLOCK_SLACK: Final = 60.0


@dataclass(frozen=True, slots=True)
class FreshnessRule:
    """Of one route, in seconds: believe a tag for `tag_ttl`; while upstream is down, for `stale_while_down`."""

    tag_ttl: float
    stale_while_down: float

    def stretched(self, factor: float) -> FreshnessRule:
        """With a longer `tag_ttl`."""
        return self if factor == 1 else FreshnessRule(self.tag_ttl * factor, self.stale_while_down)


def is_fresh(fetched_at: float, now: float, rule: FreshnessRule) -> bool:
    """Whether an answer of `fetched_at` may be given at `now` without asking upstream."""
    age = now - fetched_at
    return -_CLOCK_SLACK <= age < rule.tag_ttl


def may_serve_stale(fetched_at: float, now: float, rule: FreshnessRule) -> bool:
    """Whether an old answer is better than none, now that upstream gives none."""
    return now - fetched_at < max(rule.tag_ttl, rule.stale_while_down)

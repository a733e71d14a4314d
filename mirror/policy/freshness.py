"""How long a cached answer for a tag may be used. Answers for a digest never change, so they need no such rule. And
when the records of tags and manifests are forgotten, of which nothing else is left.

    asked for ── the content is evicted ──> only records ── nobody asks for long enough ──> forgotten, as if never asked
        ^                                        │                                             │
        └──────────── a client asks ─────────────┴─────────────────────────────────────────────┘

No pull writes anything for this. The record of a tag says when upstream was last asked, and upstream is asked whenever
a client asks and the last answer is not trusted any more. The record of a manifest says when it was last fetched, which
is done again when a client asks for it after its bytes were evicted; without them the record is of no use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Seconds. A record dated further in the future was written under a wrong clock, so its age is meaningless.
_CLOCK_SLACK: Final = 60.0
#: While the upstream's budget is short, an answer for a tag is trusted up to so many times as long as `tag_ttl`
#: (`policy/upstream/budget.py`): a client may have asked for the tag so long after its record was written.
_LONGEST_TRUST: Final = 10.0


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


def forgotten_after(
    forget_after: float, freshness: FreshnessRule, *, minimum_age: float = 0.0, sealed: bool = False
) -> float | None:
    """Seconds since a record was last written after which it may be forgotten, given that nobody asks for
    `forget_after` seconds (0: never). None: never.

    Never if the repository is `sealed`, because its records are all that it has. Never if it has a `minimum_age`,
    because a tag would be new again: refused, or served although it was moved a moment ago. And not while an answer
    may still be given from the record because upstream is down.
    """
    if not forget_after or sealed or minimum_age:
        return None
    return max(forget_after, freshness.stale_while_down) + _LONGEST_TRUST * freshness.tag_ttl


def is_forgotten(written_at: float, after: float, now: float) -> bool:
    """Whether a record that was written at `written_at` (epoch seconds, as `now`) may be forgotten, `after` as above,
    given that its content is not here, and that it is neither pinned nor frozen.

    A record of a later time than `now` was written under a wrong clock, and stays.
    """
    return now - written_at >= after

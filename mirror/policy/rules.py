"""How the repositories of one route are treated: all that `[[route]]` says, as one value."""

from __future__ import annotations

from dataclasses import dataclass, field

from mirror.policy.content import ContentRule
from mirror.policy.freshness import FreshnessRule
from mirror.policy.history import AgeRule

__all__ = ["RouteRule"]


@dataclass(frozen=True, slots=True)
class RouteRule:
    """The defaults are those of a repository that no route fits."""

    freshness: FreshnessRule = field(default_factory=lambda: FreshnessRule(tag_ttl=300.0, stale_while_down=604800.0))
    #: Whether the blobs of an image manifest that was fetched are fetched before clients ask for them.
    prefetch: bool = False
    age: AgeRule = field(default_factory=AgeRule)
    content: ContentRule = field(default_factory=ContentRule)
    #: Sealed: upstream is never contacted.
    offline: bool = False

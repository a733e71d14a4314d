"""The settings of one `[[route]]` as one value."""

from __future__ import annotations

from dataclasses import dataclass, field

from mirror.policy.content_rules import ContentRule
from mirror.policy.freshness import FreshnessRule
from mirror.policy.history import AgeRule
from mirror.policy.lazy_ranges import LazyRule


@dataclass(frozen=True, slots=True)
class RouteRule:
    """How the repositories of a route are treated. The defaults apply to repositories that match no route."""

    freshness: FreshnessRule = field(default_factory=lambda: FreshnessRule(tag_ttl=300.0, stale_while_down=604800.0))
    #: Whether the blobs of a fetched image manifest are fetched before clients ask for them.
    prefetch: bool = False
    age: AgeRule = field(default_factory=AgeRule)
    content: ContentRule = field(default_factory=ContentRule)
    #: Sealed: upstream is never contacted.
    offline: bool = False
    #: How small parts of blobs are sent before the whole is verified; None: they are not.
    lazy: LazyRule | None = None

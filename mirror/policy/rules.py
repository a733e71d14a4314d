"""The settings of one `[[route]]` as one value."""

from __future__ import annotations

from dataclasses import dataclass, field

from mirror.policy.content_rules import ContentRule
from mirror.policy.freshness import FreshnessRule
from mirror.policy.history import AgeRule


@dataclass(frozen=True, slots=True)
class LazyRule:
    """When the whole of a blob is fetched of which parts were sent: once the `share` of it (0 to 1) is here, and no
    part was asked for during `pause` seconds.
    """

    share: float = 0.5
    pause: float = 10.0

    def has_enough(self, here: int, size: int) -> bool:
        """True if the whole is to be fetched after the pause. `here` of its `size` bytes are here."""
        return here >= self.share * size


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

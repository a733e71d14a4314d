"""Which endpoint is informed of which events."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mirror.oci.reference import Repo
from mirror.policy.events.changes import LOST, TYPES, Event
from mirror.policy.routing import compile_pattern


@dataclass(frozen=True, slots=True)
class Subscription:
    """What the endpoint `name` is informed of: events whose type matches one of the patterns, if they are about no
    repository or about one that matches.

    `*` matches anything in a type; the patterns of repositories are those of routes (`registry/name`).
    """

    name: str
    types: tuple[str, ...] = ("*",)
    repositories: tuple[str, ...] = ("**",)
    _types: frozenset[str] = field(init=False, repr=False, compare=False)
    _repositories: tuple[re.Pattern[str], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        matching = frozenset(each for pattern in self.types for each in matching_types(pattern))
        object.__setattr__(self, "_types", matching | {LOST})
        object.__setattr__(self, "_repositories", tuple(compile_pattern(each) for each in self.repositories))

    def wants(self, kind: str, repo: Repo | None) -> bool:
        """Whether events of this type about this repository are for the endpoint."""
        return kind in self._types and (
            repo is None or any(pattern.fullmatch(str(repo)) for pattern in self._repositories)
        )


def matching_types(pattern: str) -> tuple[str, ...]:
    """The types that a pattern names: `mirror.image.*`, `*`, or one type."""
    whole = re.compile("".join(".*" if part == "*" else re.escape(part) for part in re.split(r"(\*)", pattern)))
    return tuple(each for each in TYPES if whole.fullmatch(each))


@dataclass(frozen=True, slots=True)
class Subscriptions:
    """The subscriptions of all endpoints."""

    all: tuple[Subscription, ...] = ()

    def anybody_wants(self, types: Iterable[str], repo: Repo | None) -> bool:
        """Whether an event of one of these types about this repository would be sent to anybody."""
        return any(each.wants(kind, repo) for kind in types for each in self.all)

    def endpoints(self, event: Event) -> Sequence[str]:
        """The names of the endpoints that are informed of the event."""
        return [each.name for each in self.all if each.wants(event.type, event.repo)]

"""Quotas of hosted registries: which limits apply to a repository, and whether more content fits.

A *scope* is what a quota limits. It is named like this:

    corp              all repositories of the registry `corp`
    corp/team-a/**    those whose names match the pattern `team-a/**`

Content counts once in a scope, however many of its repositories have it. So a blob of 1 GB in two teams counts 1 GB for
each team, and 1 GB for the registry.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Final

from mirror.oci.reference import Repo
from mirror.policy.routing import compile_pattern
from mirror.values.sizes import format_size


@dataclass(frozen=True, slots=True)
class RegistryQuota:
    """The quotas of one hosted registry, in bytes: of the whole (None: no limit), and of patterns of its names."""

    whole: int | None = None
    patterns: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Overrun:
    """More content than a scope has room for. Sizes are in bytes."""

    scope: str
    used: int
    limit: int
    wanted: int

    def __str__(self) -> str:
        return (
            f"the quota of {self.scope} is {format_size(self.limit)}; {format_size(self.used)} are used,"
            f" and this needs {format_size(self.wanted)} more"
        )


@dataclass(frozen=True, slots=True)
class ScopePatterns:
    """Which scopes there are: the hosted registries, with the patterns that have a quota."""

    patterns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def all(self) -> list[str]:
        """Every scope, sorted."""
        return sorted(
            {*self.patterns, *(f"{registry}/{one}" for registry, listed in self.patterns.items() for one in listed)}
        )

    def of(self, repo: Repo) -> tuple[str, ...]:
        """The scopes in which the content of a repository counts, its registry first."""
        listed = self.patterns.get(repo.registry, ())
        matching = (one for one in listed if _compiled(one).fullmatch(repo.name))
        return (repo.registry, *(f"{repo.registry}/{one}" for one in matching))


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return compile_pattern(pattern)


class QuotaRules:
    """The quotas of all hosted registries. Immutable."""

    def __init__(self, registries: Mapping[str, RegistryQuota]) -> None:
        self.scopes: Final = ScopePatterns({name: tuple(sorted(quota.patterns)) for name, quota in registries.items()})
        self._limits: dict[str, int] = {}
        for registry, quota in registries.items():
            if quota.whole is not None:
                self._limits[registry] = quota.whole
            self._limits |= {f"{registry}/{pattern}": limit for pattern, limit in quota.patterns.items()}

    def __repr__(self) -> str:
        return f"<QuotaRules {self._limits}>"

    def limit(self, scope: str) -> int | None:
        """The limit of a scope in bytes; None if it has none."""
        return self._limits.get(scope)

    def limits(self, repo: Repo) -> dict[str, int]:
        """The limits that apply to a repository: bytes by scope."""
        return {scope: self._limits[scope] for scope in self.scopes.of(repo) if scope in self._limits}


def overrun(limits: Mapping[str, int], used: Mapping[str, int], wanted: int) -> Overrun | None:
    """The scope in which `wanted` more bytes do not fit, the fullest first; None if they fit everywhere.

    `used` are bytes by scope. Nothing more is no overrun, even if more is used than the limit allows, which was lowered
    then.
    """
    if wanted <= 0:
        return None
    excess = {scope: used.get(scope, 0) + wanted - limit for scope, limit in limits.items()}
    scope = max(excess, key=lambda one: (excess[one], one), default="")
    if not scope or excess[scope] <= 0:
        return None
    return Overrun(scope, used.get(scope, 0), limits[scope], wanted)

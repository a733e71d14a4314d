"""What the settings say about retention: which tags a rule names. Times are in seconds.

A rule has conditions, and names the tags that fulfil all of them. Its patterns choose the tags among which it counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from mirror.oci.reference import Repo
from mirror.policy.routing import compile_pattern
from mirror.values.durations import format_duration
from mirror.values.linear_patterns import LinearPattern

_WILD: Final = {"*": ".*", "?": "."}
_TOKEN: Final = re.compile(r"([*?])")


class Happening(Enum):
    """What can have happened to a tag lately."""

    PUSHED = "pushed"
    #: The tag began to point to what it points to now.
    TAGGED = "tagged"
    PULLED = "pulled"


@dataclass(frozen=True, slots=True)
class TagChoice:
    """Tags chosen by patterns (`*` stands for anything, `?` for one character) or by a regular expression, which must
    match the whole tag; all tags if neither is given. Raises `ValueError`.
    """

    patterns: tuple[str, ...] = ()
    regex: str | None = None
    #: Most patterns are names, or end with their only wildcard: these need no regular expression.
    _names: frozenset[str] = field(init=False, repr=False, compare=False)
    _beginnings: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _compiled: tuple[LinearPattern, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.patterns and self.regex is not None:
            raise ValueError("tags and tags_regex exclude each other")
        if "" in self.patterns:
            raise ValueError("tags: an empty pattern matches nothing; write * for all tags")
        written = [] if self.regex is None else [self.regex]
        names, beginnings = set(), [] if self.patterns or self.regex is not None else [""]
        for pattern in self.patterns:
            if not _TOKEN.search(pattern):
                names.add(pattern)
            elif _TOKEN.search(pattern[:-1]) or pattern.endswith("?"):
                written.append(_expression(pattern))
            else:
                beginnings.append(pattern[:-1])
        object.__setattr__(self, "_names", frozenset(names))
        object.__setattr__(self, "_beginnings", tuple(beginnings))
        object.__setattr__(self, "_compiled", tuple(map(LinearPattern, written)))

    def has(self, tag: str) -> bool:
        """Whether the tag is chosen."""
        if tag in self._names or tag.startswith(self._beginnings):
            return True
        return any(pattern.matches(tag) for pattern in self._compiled)

    def __str__(self) -> str:
        return f"tags matching {self.regex}" if self.regex is not None else f"tags {', '.join(self.patterns) or '*'}"


def _expression(pattern: str) -> str:
    return "".join(_WILD.get(token) or re.escape(token) for token in _TOKEN.split(pattern))


@dataclass(frozen=True, slots=True)
class KeepRule:
    """Tags that stay. Raises `ValueError` if there is no condition.

    `newest` are those to which `by` happened last. `newest_of_each_minor` counts versions: `1.4.2` and `v1.4.2` are
    one; a tag of a whole series, such as `1.4`, is always among them. `within` gives for what happened lately how long
    ago that may be.
    """

    tags: TagChoice = TagChoice()
    newest: int | None = None
    by: Happening = Happening.PUSHED
    newest_of_each_minor: int | None = None
    prereleases: bool = False
    within: Mapping[Happening, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.tags == TagChoice() and self.newest is None and self.newest_of_each_minor is None and not self.within:
            raise ValueError('a keep rule needs a condition; write tags = ["*"] for all tags')

    def __str__(self) -> str:
        return ", ".join(self._words())

    def _words(self) -> Iterator[str]:
        yield str(self.tags)
        if self.newest is not None:
            yield f"the newest {self.newest}" + (f" by {self.by.value}" if self.by is not Happening.PUSHED else "")
        if self.newest_of_each_minor is not None:
            prereleases = ", prereleases too" if self.prereleases else ""
            yield f"the newest {self.newest_of_each_minor} of each minor version{prereleases}"
        for happening, seconds in self.within.items():
            yield f"{happening.value} within {format_duration(seconds)}"


@dataclass(frozen=True, slots=True)
class DeleteRule:
    """Tags that go unless a keep rule names them too. `not_within` gives for what must not have happened lately for how
    long it must not.
    """

    tags: TagChoice
    not_within: Mapping[Happening, float] = field(default_factory=dict)

    def __str__(self) -> str:
        words = [f"not {happening.value} within {format_duration(each)}" for happening, each in self.not_within.items()]
        return ", ".join([str(self.tags), *words])


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """The rules for some repositories of one hosted registry, given by patterns of their names within it.

    `delete_untagged_after` is for how long a manifest must have been without a tag; None: it stays.
    """

    repositories: tuple[str, ...]
    keep: tuple[KeepRule, ...] = ()
    delete: tuple[DeleteRule, ...] = ()
    delete_untagged_after: float | None = None

    def is_about(self, name: str) -> bool:
        """Whether the rules are for the repository of this name within the registry."""
        return any(compile_pattern(pattern).fullmatch(name) for pattern in self.repositories)

    @property
    def asks_for_pulls(self) -> bool:
        """Whether it matters when tags were pulled."""
        return any(
            Happening.PULLED in rule.within or (rule.newest is not None and rule.by is Happening.PULLED)
            for rule in self.keep
        ) or any(Happening.PULLED in rule.not_within for rule in self.delete)


@dataclass(frozen=True, slots=True)
class RegistryRetention:
    """What the settings say about one hosted registry. `keep_deleted` is for how long what was deleted can be
    undeleted; `collect_dangling`: referrers whose subject is gone are collected.
    """

    policies: tuple[RetentionPolicy, ...] = ()
    keep_deleted: float = 7 * 86400.0
    collect_dangling: bool = False


@dataclass(frozen=True, slots=True)
class RetentionRules:
    """What the settings say about retention. `grace` is the grace time of collection."""

    registries: Mapping[str, RegistryRetention]
    grace: float = 86400.0

    def policies(self, repo: Repo) -> tuple[RetentionPolicy, ...]:
        """The policies for a repository; all of them apply."""
        registry = self.registries.get(repo.registry)
        return tuple(policy for policy in registry.policies if policy.is_about(repo.name)) if registry else ()

    def asks_for_pulls(self, repo: Repo) -> bool:
        """Whether it must be recorded when this repository is pulled from."""
        return any(policy.asks_for_pulls for policy in self.policies(repo))

    @property
    def registries_with_policies(self) -> Iterable[str]:
        """The names of the registries that have a policy, sorted."""
        return sorted(name for name, registry in self.registries.items() if registry.policies)

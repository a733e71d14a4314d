"""Which tags of hosted registries are immutable. A pure decision by names: no tag carries a mark.

    [[hosted.immutable]]
    repositories = ["team-*/**"]      the rule is about these repositories of the registry,
    tags = ["v*"]                     about these tags of theirs,
    except = ["v0.*"]                 and not about these

A tag is immutable if one rule at least covers it. So a rule that is added later covers the tags that exist already, and
an exception in one rule does not weaken another.

The tags under which clients attach signatures and the like to an image (`mirror.oci.attachments`) move whenever
something more is attached. They are immutable only by a pattern that begins like them (`sha256-*`).

    absent ── a push ──> points to a digest ── the same digest again ──> points there still
                             ├─ another digest ───> refused
                             ├─ a deletion ───────> refused, also of the manifest, and of what an index there names
                             └─ one with force ───> absent
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from mirror.oci.attachments import is_attached
from mirror.oci.reference import Repo
from mirror.policy.routing import compile_pattern

#: How attachment tags begin.
_ATTACHMENTS: Final = ("sha256-", "sha512-")


@dataclass(frozen=True, slots=True)
class ImmutableRule:
    """One `[[hosted.immutable]]`. `repositories` are patterns within the registry; `tags` and `exceptions` are patterns
    of tags, in which `*` matches anything and `?` one character.
    """

    repositories: tuple[str, ...] = ("**",)
    tags: tuple[str, ...] = ("*",)
    exceptions: tuple[str, ...] = ()
    _names: tuple[re.Pattern[str], ...] = field(init=False, repr=False, compare=False)
    _tags: tuple[re.Pattern[str], ...] = field(init=False, repr=False, compare=False)
    _attachments: tuple[re.Pattern[str], ...] = field(init=False, repr=False, compare=False)
    _exceptions: tuple[re.Pattern[str], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        compiled = {
            "_names": self.repositories,
            "_tags": self.tags,
            "_attachments": [pattern for pattern in self.tags if pattern.startswith(_ATTACHMENTS)],
            "_exceptions": self.exceptions,
        }
        for name, patterns in compiled.items():
            object.__setattr__(self, name, tuple(compile_pattern(pattern) for pattern in patterns))

    def __str__(self) -> str:
        exceptions = f", except {', '.join(self.exceptions)}" if self.exceptions else ""
        return f"{', '.join(self.tags)} in {', '.join(self.repositories)}{exceptions}"

    def is_about(self, name: str) -> bool:
        """Whether the rule is about the repository of this name within the registry."""
        return any(pattern.fullmatch(name) for pattern in self._names)

    def covers(self, name: str, tag: str) -> bool:
        """Whether the rule makes the tag of the repository of this name immutable."""
        patterns = self._attachments if is_attached(tag) else self._tags
        if not any(pattern.fullmatch(tag) for pattern in patterns):
            return False
        return not any(pattern.fullmatch(tag) for pattern in self._exceptions) and self.is_about(name)


@dataclass(frozen=True, slots=True)
class ImmutableTags:
    """The rules about immutable tags of all hosted registries, by the name of the registry."""

    rules: Mapping[str, Sequence[ImmutableRule]] = field(default_factory=dict)

    def rule(self, repo: Repo, tag: str) -> ImmutableRule | None:
        """The first rule that makes the tag immutable; None if it may move and go."""
        return next((rule for rule in self.rules.get(repo.registry, ()) if rule.covers(repo.name, tag)), None)

    def concern(self, repo: Repo) -> bool:
        """Whether any tag of the repository can be immutable."""
        return any(rule.is_about(repo.name) for rule in self.rules.get(repo.registry, ()))

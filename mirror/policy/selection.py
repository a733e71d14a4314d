"""Patterns that select images, as people write them: `alpine`, `library/*`, `ghcr.io/**:v1.*`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mirror.oci.reference import Repo
from mirror.policy.routing import RoutingTable, compile_pattern, full_name


@dataclass(frozen=True, slots=True)
class Selection:
    """A pattern for repositories (`registry/name`) and one for their tags.

    `tag` None selects all tags, and images without a tag as well.
    """

    repository: re.Pattern[str]
    tag: re.Pattern[str] | None = None

    def has(self, repo: Repo) -> bool:
        """Whether the selection may contain images of this repository."""
        return self.repository.fullmatch(str(repo)) is not None

    def has_tag(self, tag: str | None) -> bool:
        """Whether the tag is selected; None stands for an image without a tag."""
        return self.tag is None or (tag is not None and self.tag.fullmatch(tag) is not None)


def select(pattern: str, table: RoutingTable) -> Selection:
    """The selection for a pattern: `*` matches within one path component, `**` anything, `?` one character.

    A name without a registry belongs to the default registry, and `alpine` on Docker Hub is `library/alpine`. A pattern
    that begins with a wildcard is not completed in this way. A virtual registry stands for all its members.
    """
    head, slash, last = (pattern.strip() or "**").removeprefix("docker://").rpartition("/")
    last, colon, tag = last.partition(":")
    name = f"{head}{slash}{last}"
    if not name.startswith(("*", "?")):
        first, slash, rest = name.partition("/")
        configured = table.registry(first.lower()) if slash and table.is_registry(first) else None
        if configured is not None:
            name = f"{configured[0]}/{rest}"
        elif table.default is not None and not (slash and table.is_registry(first)):
            entry = table.registry(table.default)
            name = f"{table.default}/{full_name(name, library=entry is not None and entry[1].library)}"
    registry, _, rest = name.partition("/")
    members = [table.registry(member) for member in table.members(registry)]
    names = [f"{member[0]}/{rest}" for member in members if member is not None] or [name]
    repository = re.compile("|".join(compile_pattern(each).pattern for each in names))
    return Selection(repository, compile_pattern(tag) if colon else None)


def search(text: str, table: RoutingTable) -> Selection:
    """The selection for a text typed into a search box.

    A text with a wildcard is a pattern. Any other text is a part of the name, in upper or lower case; after a colon
    follows the beginning of the tag.
    """
    text = text.strip()
    if "*" in text or "?" in text:
        return select(text, table)
    head, slash, last = text.rpartition("/")
    last, colon, tag = last.partition(":")
    end = "" if colon else ".*"
    name = re.compile(f".*{re.escape(f'{head}{slash}{last}')}{end}", re.IGNORECASE)
    return Selection(name, re.compile(f"{re.escape(tag)}.*") if tag else None)

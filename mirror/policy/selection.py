"""Which images are meant by a pattern, as people write it: `alpine`, `library/*`, `ghcr.io/**:v1.*`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mirror.oci.reference import Repo
from mirror.policy.image_names import looks_like_host
from mirror.policy.routing import RoutingTable, compile_pattern

__all__ = ["Selection", "search", "select"]


@dataclass(frozen=True, slots=True)
class Selection:
    """Repositories by `registry/name`, and their tags; `tag` None: all of them, and what has no tag too."""

    repository: re.Pattern[str]
    tag: re.Pattern[str] | None = None

    def has(self, repo: Repo) -> bool:
        """Whether images of this repository may be meant."""
        return self.repository.fullmatch(str(repo)) is not None

    def has_tag(self, tag: str | None) -> bool:
        """Whether this tag is meant; None: an image without one."""
        return self.tag is None or (tag is not None and self.tag.fullmatch(tag) is not None)


def select(pattern: str, table: RoutingTable) -> Selection:
    """`*` is anything within one part, `**` anything at all, `?` one character.

    As everywhere, a name without a registry is one of the default registry, and `alpine` on Docker Hub is
    `library/alpine`; a pattern that begins with a wildcard is left as it is.
    """
    head, slash, last = (pattern.strip() or "**").removeprefix("docker://").rpartition("/")
    last, colon, tag = last.partition(":")
    name = f"{head}{slash}{last}"
    if not name.startswith(("*", "?")):
        first, slash, rest = name.partition("/")
        found = table.registry(first.lower()) if slash and looks_like_host(first) else None
        if found is not None:
            name = f"{found[0]}/{rest}"
        elif table.default is not None and not (slash and looks_like_host(first)):
            entry = table.registry(table.default)
            library = "library/" if entry and entry[1].library and not slash else ""
            name = f"{table.default}/{library}{name}"
    return Selection(compile_pattern(name), compile_pattern(tag) if colon else None)


def search(text: str, table: RoutingTable) -> Selection:
    """What somebody types who looks for an image: with a wildcard a pattern, else a part of the name, in any case;
    behind a colon the beginning of the tag.
    """
    text = text.strip()
    if "*" in text or "?" in text:
        return select(text, table)
    head, slash, last = text.rpartition("/")
    last, colon, tag = last.partition(":")
    end = "" if colon else ".*"
    name = re.compile(f".*{re.escape(f'{head}{slash}{last}')}{end}", re.IGNORECASE)
    return Selection(name, re.compile(f"{re.escape(tag)}.*") if tag else None)

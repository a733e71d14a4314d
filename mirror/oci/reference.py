"""Names: repositories, tags and references (distribution-spec, "Pulling manifests").

A `Repo` says the registry too, because one mirror stands in front of many.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, TypeAlias

from mirror.errors import NameInvalid, TagInvalid
from mirror.oci.digest import Digest

__all__ = ["Reference", "Repo", "check_name", "check_registry", "check_tag", "is_tag", "parse_reference"]

#: A manifest is asked for by tag (a string of the tag grammar) or by digest.
Reference: TypeAlias = Digest | str

_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG: Final = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_REGISTRY: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*(?::[0-9]{{1,5}})?")
_LONGEST: Final = 255


@dataclass(frozen=True, slots=True, order=True)
class Repo:
    """A repository of one registry: `registry` is its name as clients say it (`docker.io`), `name` the path below."""

    registry: str
    name: str

    def __str__(self) -> str:
        return f"{self.registry}/{self.name}"


def check_name(name: str) -> str:
    """A repository name within the grammar and at most 255 characters. Raises `NameInvalid`."""
    if len(name) > _LONGEST or not _NAME.fullmatch(name):
        raise NameInvalid(f"not a repository name: {name[:80]!r}")
    return name


def check_registry(host: str) -> str:
    """A registry's name: a DNS name or address with an optional port, lower case. Raises `NameInvalid`."""
    if len(host) > _LONGEST or not _REGISTRY.fullmatch(host):
        raise NameInvalid(f"not the name of a registry: {host[:80]!r}")
    return host


def is_tag(text: str) -> bool:
    """Whether it is within the grammar of tags (at most 128 characters)."""
    return _TAG.fullmatch(text) is not None


def check_tag(tag: str) -> str:
    """A tag within the grammar (at most 128 characters). Raises `TagInvalid`."""
    if not is_tag(tag):
        raise TagInvalid(f"not a tag: {tag[:140]!r}")
    return tag


def parse_reference(text: str) -> Reference:
    """A tag or a digest: only a digest holds a colon. Raises `TagInvalid` or `DigestInvalid`."""
    return Digest.parse(text) if ":" in text else check_tag(text)

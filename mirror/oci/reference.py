"""Names: repositories, tags and references (distribution-spec, "Pulling manifests").

A `Repo` includes the registry, because one mirror serves many registries.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, TypeAlias

from mirror.errors import NameInvalid, TagInvalid
from mirror.oci.digest import Digest

#: A manifest is requested by tag (a string that matches the tag grammar) or by digest.
Reference: TypeAlias = Digest | str

_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG: Final = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_REGISTRY: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*(?::[0-9]{{1,5}})?")
_LONGEST: Final = 255


@dataclass(frozen=True, slots=True, order=True)
class Repo:
    """A repository: `registry` is the registry's name as clients write it (`docker.io`), `name` the path within it."""

    registry: str
    name: str

    def __str__(self) -> str:
        return f"{self.registry}/{self.name}"


def check_name(name: str) -> str:
    """Return a repository name unchanged. Raises `NameInvalid` if it is invalid or longer than 255 characters."""
    if len(name) > _LONGEST or not _NAME.fullmatch(name):
        raise NameInvalid(f"not a repository name: {name[:80]!r}")
    return name


def check_registry(host: str) -> str:
    """Return a registry's name unchanged: a lower-case DNS name or address with an optional port.

    Raises `NameInvalid` if it is none.
    """
    if len(host) > _LONGEST or not _REGISTRY.fullmatch(host):
        why = ""
        if "/" in host:
            why = "; write the name alone, such as docker.io, without https:// and without a path"
        elif _REGISTRY.fullmatch(host.lower()):
            why = "; write it in small letters"
        raise NameInvalid(f"not the name of a registry: {host[:80]!r}{why}")
    return host


def read_repo(text: str) -> Repo | None:
    """Read `registry/name` back; None if it is no repository."""
    registry, _, name = text.partition("/")
    try:
        return Repo(check_registry(registry), check_name(name))
    except NameInvalid:
        return None


def is_tag(text: str) -> bool:
    """Whether the text matches the tag grammar (at most 128 characters)."""
    return _TAG.fullmatch(text) is not None


def check_tag(tag: str) -> str:
    """Return a tag unchanged. Raises `TagInvalid` if it does not match the grammar (at most 128 characters)."""
    if not is_tag(tag):
        raise TagInvalid(f"not a tag: {tag[:140]!r}")
    return tag


def parse_reference(text: str) -> Reference:
    """Parse a tag or a digest; only a digest contains a colon. Raises `TagInvalid` or `DigestInvalid`."""
    return Digest.parse(text) if ":" in text else check_tag(text)

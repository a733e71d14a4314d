"""Which platforms of an image are wanted (image-spec, image-index.md: `os`, `architecture`, `variant`)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mirror.oci.manifest import Descriptor

__all__ = ["Platform", "parse_platform", "parse_platforms", "read_platform", "wanted_children"]

_PART: Final = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
#: Other names that people use (the same that container runtimes take).
_ARCHITECTURES: Final = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386", "armhf": "arm"}
#: What an architecture means without a variant.
_VARIANTS: Final = {"arm64": "v8", "arm": "v7"}


@dataclass(frozen=True, slots=True, order=True)
class Platform:
    """`linux/arm/v7`; an empty `variant` is the architecture's usual one."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def matches(self, other: Mapping[str, Any]) -> bool:
        """Whether a descriptor's `platform` is this one."""
        return self._whole() == read_platform(other)._whole()

    def _whole(self) -> tuple[str, str, str]:
        return self.os, self.architecture, self.variant or _VARIANTS.get(self.architecture, "")


def read_platform(platform: Mapping[str, Any]) -> Platform:
    """A descriptor's `platform`, in the names that are usual."""
    architecture = str(platform.get("architecture", "")).lower()
    return Platform(
        str(platform.get("os", "")).lower(),
        _ARCHITECTURES.get(architecture, architecture),
        str(platform.get("variant", "") or "").lower(),
    )


def parse_platform(text: str) -> Platform:
    """`os/architecture` or `os/architecture/variant`. Raises `ValueError`."""
    parts = text.strip().lower().split("/")
    if len(parts) not in (2, 3) or not all(_PART.fullmatch(part) for part in parts):
        raise ValueError(f"not a platform such as linux/amd64: {text!r}")
    return read_platform(dict(zip(("os", "architecture", "variant"), parts, strict=False)))


def parse_platforms(texts: Iterable[str]) -> tuple[Platform, ...]:
    """Of texts that may each hold several, separated by commas; none means every platform. Raises `ValueError`."""
    return tuple(dict.fromkeys(parse_platform(one) for text in texts for one in text.split(",") if one.strip()))


def wanted_children(children: Iterable[Descriptor], platforms: Iterable[Platform]) -> list[Descriptor]:
    """Of an index's manifests those for one of `platforms`; all where none is given.

    Children that say no platform belong to every choice: an index of artifacts has no others. Attestations
    (`unknown/unknown`, written by build tools) belong only to the choice of everything.
    """
    chosen = tuple(platforms)
    if not chosen:
        return list(children)
    return [
        child
        for child in children
        if not child.platform or any(platform.matches(child.platform) for platform in chosen)
    ]
